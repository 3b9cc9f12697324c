package link

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// method is a method frame.
func method(name string) []byte {
	frame := []byte{1, 0, 1, 0, 0, 0, 8}
	frame = binary.BigEndian.AppendUint32(frame, Methods[name])
	return append(frame, 'a', 'r', 'g', 's', 0xCE)
}

// ends makes a link, and is its two ends after the protocol header.
func ends(t *testing.T) (k *Link, service, broker net.Conn) {
	t.Helper()
	target, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer target.Close()
	if k, err = Listen("127.0.0.1:0", target.Addr().String()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { k.Close() })
	if service, err = net.Dial("tcp", k.Addr()); err != nil {
		t.Fatal(err)
	}
	if broker, err = target.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { service.Close(); broker.Close() })
	header := []byte("AMQP\x00\x00\x09\x01")
	send(t, service, header)
	receive(t, broker, header)
	return k, service, broker
}

func send(t *testing.T, c net.Conn, frames ...[]byte) {
	t.Helper()
	if _, err := c.Write(bytes.Join(frames, nil)); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, c net.Conn, frames ...[]byte) {
	t.Helper()
	want := bytes.Join(frames, nil)
	got := make([]byte, len(want))
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
		t.Fatalf("got %x, %v, want %x", got[:n], err, want)
	}
}

// cut waits for the reset, and returns what came before it.
func cut(t *testing.T, c net.Conn) []byte {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	got, err := io.ReadAll(c)
	if !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("got %x, %v, want a reset", got, err)
	}
	return got
}

// silent checks that nothing comes for a moment.
func silent(t *testing.T, c net.Conn) {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := c.Read(make([]byte, 1)); n > 0 || err == nil {
		t.Errorf("got a byte (%v), want silence", err)
	}
}

func TestWithoutOrdersAllPasses(t *testing.T) {
	_, service, broker := ends(t)
	send(t, service, method("basic.publish"), method("basic.ack"))
	receive(t, broker, method("basic.publish"), method("basic.ack"))
	send(t, broker, method("basic.deliver"))
	receive(t, service, method("basic.deliver"))
	_ = broker.Close()
	_ = service.SetReadDeadline(time.Now().Add(10 * time.Second))
	if _, err := service.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("the broker has closed: got %v", err)
	}
}

func TestResetAtTheNthFrame(t *testing.T) {
	k, service, broker := ends(t)
	if err := k.Do(Order{Action: Reset, Method: "basic.ack", From: Service, N: 2}); err != nil {
		t.Fatal(err)
	}
	send(t, service, method("basic.ack"), method("basic.nack"))
	receive(t, broker, method("basic.ack"), method("basic.nack"))
	send(t, broker, method("basic.ack")) // a confirm, which is another's ack
	receive(t, service, method("basic.ack"))
	if k.Hit() != 0 {
		t.Error("hit before the service's second ack")
	}
	send(t, service, method("basic.ack"))
	if got := cut(t, broker); len(got) != 0 {
		t.Errorf("the broker got %x, want nothing of the frame", got)
	}
	cut(t, service)
	if k.Hit() != 1 {
		t.Errorf("%d hits, want 1", k.Hit())
	}
}

func TestTearPassesHalfOfTheFrame(t *testing.T) {
	k, service, broker := ends(t)
	if err := k.Do(Order{Action: Tear, Method: "basic.publish", From: Service, N: 1}); err != nil {
		t.Fatal(err)
	}
	frame := method("basic.publish")
	send(t, service, frame)
	got := make([]byte, len(frame)/2)
	_ = broker.SetReadDeadline(time.Now().Add(10 * time.Second))
	n, err := io.ReadFull(broker, got) // the reset may overtake it
	if err != nil && !errors.Is(err, syscall.ECONNRESET) || !bytes.HasPrefix(frame, got[:n]) {
		t.Errorf("got %x, %v, want %x or a reset", got[:n], err, frame[:len(got)])
	}
	cut(t, broker)
}

func TestFreezeUntilHeal(t *testing.T) {
	for name, o := range map[string]Order{"at once": {Action: Freeze}, "at a frame": {Action: Freeze, Method: "basic.publish", From: Service, N: 1}} {
		t.Run(name, func(t *testing.T) {
			k, service, broker := ends(t)
			if err := k.Do(o); err != nil {
				t.Fatal(err)
			}
			send(t, service, method("basic.publish"))
			silent(t, broker)
			send(t, broker, method("basic.deliver"))
			silent(t, service)
			if err := k.Do(Order{Action: Heal}); err != nil {
				t.Fatal(err)
			}
			receive(t, broker, method("basic.publish"))
			receive(t, service, method("basic.deliver"))
		})
	}
}

func TestSlowAndDripDelayAndLoseNothing(t *testing.T) {
	for _, action := range []Action{Slow, Drip} {
		t.Run(string(action), func(t *testing.T) {
			k, service, broker := ends(t)
			const delay = 2 * time.Millisecond
			if err := k.Do(Order{Action: action, Delay: delay}); err != nil {
				t.Fatal(err)
			}
			began := time.Now()
			send(t, service, method("basic.publish"), method("basic.ack"))
			receive(t, broker, method("basic.publish"), method("basic.ack"))
			if took := time.Since(began); took < delay { // the least that it can be, on any machine
				t.Errorf("it took %s, want %s at least", took, delay)
			}
		})
	}
}

func TestADripOfOneSideLeavesTheOtherAlone(t *testing.T) {
	k, service, broker := ends(t)
	if err := k.Do(Order{Action: Drip, From: Service, Delay: 700 * time.Millisecond}); err != nil { // longer than silent waits
		t.Fatal(err)
	}
	send(t, service, method("basic.publish"))
	silent(t, broker)
	send(t, broker, method("basic.deliver"))
	receive(t, service, method("basic.deliver"))
}

func TestHealEndsADripInTheMiddleOfAFrame(t *testing.T) {
	k, service, broker := ends(t)
	if err := k.Do(Order{Action: Drip, Delay: 700 * time.Millisecond}); err != nil { // longer than receive waits
		t.Fatal(err)
	}
	frame := method("basic.deliver")
	send(t, service, frame)
	receive(t, broker, frame[:1])
	if err := k.Do(Order{Action: Heal}); err != nil {
		t.Fatal(err)
	}
	receive(t, broker, frame[1:])
}

func TestResetAtOnceAndCloseWhileFrozen(t *testing.T) {
	k, service, broker := ends(t)
	if err := k.Do(Order{Action: Freeze}); err != nil {
		t.Fatal(err)
	}
	send(t, service, method("basic.publish"))
	if err := k.Do(Order{Action: Reset}); err != nil {
		t.Fatal(err)
	}
	cut(t, service)
	cut(t, broker)
	if err := k.Close(); err != nil { // and goleak sees what is left
		t.Error(err)
	}
}

func TestWrongOrders(t *testing.T) {
	for want, o := range map[string]Order{
		`action "explode"`:     {Action: "explode"},
		`method "basic.smile"`: {Action: Reset, Method: "basic.smile", N: 1},
		"n 0":                  {Action: Reset, Method: "basic.ack", From: Broker},
		`from ""`:              {Action: Reset, Method: "basic.ack", N: 1},
		"delay 0s":             {Action: Slow},
		`from "both"`:          {Action: Drip, From: "both", Delay: time.Second},
		"waits for no frame":   {Action: Heal, Method: "basic.ack", N: 1},
		"tear needs a frame":   {Action: Tear},
	} {
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: got %v, want %s", o, err, want)
		}
	}
}

func TestControl(t *testing.T) {
	k, service, broker := ends(t)
	api := httptest.NewServer(k.Control())
	defer api.Close()
	defer api.Client().CloseIdleConnections()
	order := func(body string) (status int, said string) {
		t.Helper()
		res, err := api.Client().Post(api.URL+"/orders", "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(b)
	}
	for body, want := range map[string]string{
		`{"action":"explode"}`:           `action "explode"`,
		`{"action":"reset","metod":"x"}`: "metod",
	} {
		if status, said := order(body); status != http.StatusBadRequest || !strings.Contains(said, want) {
			t.Errorf("%s: got %d %s, want 400 and %s", body, status, said, want)
		}
	}
	if status, said := order(`{"action":"reset","method":"basic.ack","from":"service","n":1}`); status != http.StatusNoContent {
		t.Fatalf("got %d %s, want 204", status, said)
	}
	send(t, service, method("basic.ack"))
	cut(t, broker)
	res, err := api.Client().Get(api.URL + "/hit")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if b, _ := io.ReadAll(res.Body); string(b) != "1\n" {
		t.Errorf("hit: got %q, want 1", b)
	}
}
