//go:build integration

package session

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"

	"warren.example/messaging/contract"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is one test's corner of the broker: an exchange and a queue of its
// own, reached through a proxy that can misbehave.
type bench struct {
	t        *testing.T
	name     string // of the queue, the key and, unless there is another, the exchange
	exchange string
	proxy    *proxy
	options  Options
	admin    string
}

func env(t *testing.T, name string) string {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		t.Fatalf("%s is not set: run the tests with `go run ./services/lab broker -- go test …`", name)
	}
	return v
}

func newBench(t *testing.T, args amqp.Table) *bench {
	t.Helper()
	b := &bench{t: t, name: "test." + strings.ToLower(t.Name()), admin: env(t, "AMQP_URL")}
	b.exchange = b.name
	b.onBroker(func(ch *amqp.Channel) error {
		if err := ch.ExchangeDeclare(b.name, "direct", true, false, false, false, nil); err != nil {
			return err
		}
		return b.declareQueue(ch, args)
	})
	t.Cleanup(func() {
		b.onBroker(func(ch *amqp.Channel) error {
			_, err := ch.QueueDelete(b.name, false, false, false)
			return errors.Join(err, ch.ExchangeDelete(b.name, false, false))
		})
	})
	b.connect()
	return b
}

// oldBench uses the queue of the topology. 3.10.8 was seen to leave a quorum
// queue without a leader for ever when it was killed within about a second of
// its declaration; this one is older.
func oldBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{t: t, name: contract.RequestQueue, exchange: contract.RequestExchange, admin: env(t, "AMQP_URL")}
	b.onBroker(func(ch *amqp.Channel) error { _, err := ch.QueuePurge(b.name, false); return err })
	b.connect()
	return b
}

func (b *bench) connect() {
	t := b.t
	t.Helper()
	uri, err := amqp.ParseURI(b.admin)
	if err != nil {
		t.Fatal("AMQP_URL is no AMQP URL")
	}
	b.proxy = newProxy(t, fmt.Sprintf("%s:%d", uri.Host, uri.Port))
	uri.Host, uri.Port = "127.0.0.1", b.proxy.port
	b.options = Options{Name: t.Name(), Config: Config{URL: []string{uri.String()},
		Heartbeat: time.Second, WriteTimeout: time.Second, OpenTimeout: 2 * time.Second, MaxBackoff: 200 * time.Millisecond}}
}

func (b *bench) declareQueue(ch *amqp.Channel, args amqp.Table) error {
	if args == nil {
		args = amqp.Table{"x-queue-type": "quorum"}
	}
	if _, err := ch.QueueDeclare(b.name, true, false, false, false, args); err != nil {
		return err
	}
	return ch.QueueBind(b.name, b.name, b.name, false, nil)
}

func (b *bench) dial() *amqp.Connection {
	b.t.Helper()
	conn, err := amqp.Dial(b.admin)
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// onBroker does something behind the session's back.
func (b *bench) onBroker(do func(*amqp.Channel) error) {
	b.t.Helper()
	conn := b.dial()
	defer conn.Close()
	ch, err := conn.Channel()
	if err == nil {
		err = do(ch)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

func (b *bench) publisher(o PublisherOptions) *Publisher {
	b.t.Helper()
	o.Exchange = b.exchange
	p := NewPublisher(b.options, o)
	closeAtEnd(b.t, p.Close)
	within(b.t, p.WaitReady)
	return p
}

// consumer hands every delivery to the returned channel.
func (b *bench) consumer() (*Consumer, chan *Delivery) {
	b.t.Helper()
	got := make(chan *Delivery, 1000)
	c := NewConsumer(b.options, ConsumerOptions{Queue: b.name, Prefetch: 100, Handle: func(d *Delivery) { got <- d }})
	closeAtEnd(b.t, c.Close)
	within(b.t, c.WaitReady)
	return c, got
}

func closeAtEnd(t *testing.T, close func(context.Context) error) {
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := close(ctx); err != nil {
			t.Error(err)
		}
	})
}

func within(t *testing.T, wait func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := wait(ctx); err != nil {
		t.Fatal(err)
	}
}

// until polls a condition; there is nothing to wait on for what the broker does.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited 30s until %s", what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func (b *bench) message(id string) Message {
	return Message{Exchange: b.exchange, Key: b.name, Mandatory: true,
		Publishing: amqp.Publishing{MessageId: id, CorrelationId: id, DeliveryMode: amqp.Persistent}}
}

func (b *bench) publish(p *Publisher, m Message) (Outcome, error) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.t.Context(), 20*time.Second)
	defer cancel()
	return p.Publish(ctx, m)
}

func receive(t *testing.T, got chan *Delivery) *Delivery {
	t.Helper()
	select {
	case d := <-got:
		return d
	case <-time.After(30 * time.Second):
		t.Fatal("no delivery within 30s")
		return nil
	}
}

// control talks to the broker's keeper.
func control(t *testing.T, action string, args ...string) {
	t.Helper()
	body, _ := json.Marshal(args)
	req, err := http.NewRequest(http.MethodPost, env(t, "LAB_BROKER_CONTROL")+"/"+action, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Close = true
	r, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	if r.StatusCode > 299 {
		text, _ := io.ReadAll(r.Body)
		t.Fatalf("%s %v: %s %s", action, args, r.Status, text)
	}
}

func TestOutcomes(t *testing.T) {
	b := newBench(t, nil)
	p := b.publisher(PublisherOptions{})
	unroutable := b.message("b")
	unroutable.Key = "nobody"
	silent := unroutable
	silent.Mandatory = false
	for _, tc := range []struct {
		name string
		m    Message
		want Outcome
	}{
		{"routable", b.message("a"), Confirmed},
		{"unroutable", unroutable, Returned},
		{"unroutable and not mandatory: gone without a word", silent, Confirmed},
	} {
		if got, err := b.publish(p, tc.m); got != tc.want || (err == nil) != (tc.want == Confirmed) {
			t.Errorf("%s: got %s %v, want %s", tc.name, got, err, tc.want)
		}
	}
}

// What nobody can wait for any more is not written, and that is known.
func TestAnEndedContextIsNotWritten(t *testing.T) {
	p := newBench(t, nil).publisher(PublisherOptions{})
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for range 200 {
		if got, err := p.Publish(ended, Message{}); got != NotWritten || !errors.Is(err, context.Canceled) {
			t.Fatalf("got %s %v, want %s", got, err, NotWritten)
		}
	}
}

// A classic queue of length 0 that rejects is the one deterministic nack.
func TestNacksReplaceTheChannelAndAreThenTheAnswer(t *testing.T) {
	b := newBench(t, amqp.Table{"x-queue-type": "classic", "x-max-length": 0, "x-overflow": "reject-publish"})
	p := b.publisher(PublisherOptions{})
	epochs := map[uint64]bool{}
	for deadline := time.Now().Add(time.Minute); ; {
		tr := make(tracked, 1)
		until(t, "the publisher is ready", func() bool { return p.Ready() == nil })
		p.Send(t.Context(), b.message("m"), tr)
		got := <-tr
		if got.outcome == NotWritten { // between two channels
			continue
		}
		if got.outcome != Nacked || time.Now().After(deadline) {
			t.Fatalf("on epoch %d: got %s %v, want %s", got.epoch, got.outcome, got.err, Nacked)
		}
		epochs[got.epoch] = true
		if !errors.Is(got.err, ErrOnlyNacks) {
			break
		}
	}
	if len(epochs) != 1+maxRescues {
		t.Errorf("nacked on %d epochs, want %d replaced and one that is believed", len(epochs), maxRescues)
	}
}

type settledOutcome struct {
	outcome Outcome
	epoch   uint64
	err     error
}

type tracked chan settledOutcome

func (tracked) Written(uint64)                               {}
func (c tracked) Settled(o Outcome, epoch uint64, err error) { c <- settledOutcome{o, epoch, err} }

func TestEveryMessageOfAWindowHasItsOwnOutcome(t *testing.T) {
	b := newBench(t, nil)
	for name, id := range map[string]func(int) string{
		"ids of their own": func(i int) string { return fmt.Sprint(i) },
		"ids of two":       func(i int) string { return fmt.Sprint(i / 2) },
		"one id":           func(int) string { return "same" }, // as replies to one request that came again and again
	} {
		t.Run(name, func(t *testing.T) { b.testWindow(t, id) })
	}
}

func (b *bench) testWindow(t *testing.T, id func(int) string) {
	for _, every := range []int{0, 1, 10} {
		p := b.publisher(PublisherOptions{Window: 16, ConfirmEvery: every})
		const n = 300
		outcomes := make([]tracked, n)
		for i := range outcomes {
			outcomes[i] = make(tracked, 2)
			m := b.message(id(i))
			if i%3 == 0 {
				m.Key = "nobody"
			}
			m.Mandatory = i%6 != 3
			p.Send(t.Context(), m, outcomes[i])
		}
		for i, c := range outcomes {
			want := Confirmed
			if i%6 == 0 {
				want = Returned
			}
			if got := <-c; got.outcome != want {
				t.Fatalf("confirm every %d: message %d: got %s %v, want %s", every, i, got.outcome, got.err, want)
			}
		}
	}
}

func TestAMissingExchangeIsNotReadyAndAMissingOneMidwayIsUnknown(t *testing.T) {
	b := newBench(t, nil)
	p := b.publisher(PublisherOptions{})
	wrong := b.message("a")
	wrong.Exchange = "test.missing"
	if got, err := b.publish(p, wrong); got != Unknown || !strings.Contains(fmt.Sprint(err), "404") {
		t.Errorf("got %s %v, want %s with the broker's 404", got, err, Unknown)
	}
	within(t, p.WaitReady) // a fresh epoch: nothing has to be restarted
	if got, err := b.publish(p, b.message("b")); got != Confirmed {
		t.Errorf("afterwards: got %s %v, want %s", got, err, Confirmed)
	}
	q := NewPublisher(b.options, PublisherOptions{Exchange: "test.missing"})
	closeAtEnd(t, q.Close)
	until(t, "Ready names what is missing", func() bool { return strings.Contains(fmt.Sprint(q.Ready()), "exchange test.missing") })
}

func TestABrokerThatIsAwayIsAState(t *testing.T) {
	b := newBench(t, nil)
	b.proxy.refuse(true) // from the start
	p := NewPublisher(b.options, PublisherOptions{Exchange: b.name})
	closeAtEnd(t, p.Close)
	if got, err := b.publish(p, b.message("a")); got != NotWritten || !errors.Is(err, ErrConnecting) {
		t.Errorf("away: got %s %v, want %s and %v", got, err, NotWritten, ErrConnecting)
	}
	until(t, "an attempt has failed", func() bool { return p.Ready().Error() != ErrConnecting.Error() })
	b.proxy.refuse(false)
	within(t, p.WaitReady)
	if got, err := b.publish(p, b.message("a")); got != Confirmed {
		t.Errorf("back: got %s %v, want %s", got, err, Confirmed)
	}
}

func TestAStaleDeliverySettlesNothingAndComesAgain(t *testing.T) {
	b := newBench(t, nil)
	p := b.publisher(PublisherOptions{})
	_, got := b.consumer()
	for _, id := range []string{"a", "b"} {
		if o, err := b.publish(p, b.message(id)); o != Confirmed {
			t.Fatal(o, err)
		}
	}
	a1, b1 := receive(t, got), receive(t, got)
	b.proxy.cut()
	a2, b2 := receive(t, got), receive(t, got)
	// Tags start at 1 again. With a channel that lives on, this ack of the old
	// tag would settle the new delivery of the same number, unprocessed.
	for _, old := range []*Delivery{a1, b1} {
		if err := old.Ack(); !errors.Is(err, ErrStale) {
			t.Errorf("ack of tag %d of epoch %d: got %v, want %v", old.DeliveryTag, old.Epoch(), err, ErrStale)
		}
	}
	if !a2.Redelivered || a2.Epoch() == a1.Epoch() {
		t.Errorf("second delivery: redelivered %v on epoch %d after %d", a2.Redelivered, a2.Epoch(), a1.Epoch())
	}
	if err := errors.Join(a2.Ack(), b2.Ack()); err != nil {
		t.Error(err)
	}
	until(t, "the queue is empty", func() bool { return b.depth() == 0 })
}

// depth is how many messages are ready.
func (b *bench) depth() (n int) {
	b.onBroker(func(ch *amqp.Channel) error {
		q, err := ch.QueueDeclarePassive(b.name, true, false, false, false, nil)
		n = q.Messages
		return err
	})
	return n
}

func TestAConsumerThatTheBrokerCancelsStartsAgain(t *testing.T) {
	b := newBench(t, nil)
	p := b.publisher(PublisherOptions{})
	c, got := b.consumer()
	b.onBroker(func(ch *amqp.Channel) error { _, err := ch.QueueDelete(b.name, false, false, false); return err })
	until(t, "the consumer is not ready", func() bool { return c.Ready() != nil })
	until(t, "Ready names the queue", func() bool { return strings.Contains(fmt.Sprint(c.Ready()), b.name) })
	b.onBroker(func(ch *amqp.Channel) error { return b.declareQueue(ch, nil) })
	within(t, c.WaitReady)
	if o, err := b.publish(p, b.message("a")); o != Confirmed {
		t.Fatal(o, err)
	}
	if err := receive(t, got).Ack(); err != nil {
		t.Error(err)
	}
}

func TestAChannelClosedUnderTheConsumerIsReplaced(t *testing.T) {
	b := newBench(t, nil)
	p := b.publisher(PublisherOptions{})
	c, got := b.consumer()
	if o, err := b.publish(p, b.message("a")); o != Confirmed {
		t.Fatal(o, err)
	}
	first := receive(t, got)
	// 406 unknown delivery tag: the broker closes the channel, not the connection.
	if err := first.settler.ch.Ack(99, false); err != nil {
		t.Fatal(err)
	}
	again := receive(t, got)
	if again.Epoch() == first.Epoch() || !again.Redelivered {
		t.Errorf("got epoch %d, redelivered %v; want a new epoch and true", again.Epoch(), again.Redelivered)
	}
	if err := again.Ack(); err != nil {
		t.Error(err)
	}
	within(t, c.WaitReady)
}

func TestPauseKeepsWhatIsInHand(t *testing.T) {
	b := newBench(t, nil)
	p := b.publisher(PublisherOptions{})
	c, got := b.consumer()
	if o, err := b.publish(p, b.message("a")); o != Confirmed {
		t.Fatal(o, err)
	}
	inHand := receive(t, got)
	within(t, c.Pause)
	if err := c.Ready(); !errors.Is(err, ErrPaused) {
		t.Errorf("got %v, want %v", err, ErrPaused)
	}
	if o, err := b.publish(p, b.message("b")); o != Confirmed {
		t.Fatal(o, err)
	}
	until(t, "the broker keeps what comes now", func() bool { return b.depth() == 1 })
	if err := inHand.Ack(); err != nil {
		t.Errorf("ack while paused: %v", err)
	}
	c.Resume()
	if d := receive(t, got); d.MessageId != "b" || d.Redelivered {
		t.Errorf("after Resume: got %s, redelivered %v", d.MessageId, d.Redelivered)
	} else if err := d.Ack(); err != nil {
		t.Error(err)
	}
}

// A half-open connection: nothing arrives any more, nothing is closed.
func TestAHalfOpenConnectionEndsByHeartbeat(t *testing.T) {
	b := newBench(t, nil)
	p := b.publisher(PublisherOptions{})
	c, _ := b.consumer()
	b.proxy.freeze()
	tr := make(tracked, 1)
	p.Send(t.Context(), b.message("a"), tr)
	select {
	case got := <-tr:
		if got.outcome != Unknown {
			t.Errorf("got %s %v, want %s: it may have arrived", got.outcome, got.err, Unknown)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("heartbeats of 1s, and after 30s the connection still counts as alive")
	}
	within(t, p.WaitReady) // new connections pass
	within(t, c.WaitReady)
}

// Close says farewell, and a network that is frozen does not answer.
func TestCloseIsNotLongerThanItsContext(t *testing.T) {
	b := newBench(t, nil)
	b.options.Config.Heartbeat, b.options.Config.WriteTimeout = time.Minute, time.Minute
	p := b.publisher(PublisherOptions{})
	b.proxy.freeze()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	closed := make(chan error, 1)
	go func() { closed <- p.Close(ctx) }()
	select {
	case err := <-closed:
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want its own deadline", err)
		}
	case <-time.After(20 * time.Second):
		t.Fatal("after 20 s it still waits for an answer to its farewell")
	}
}

// A peer that accepts the connection and never says a word, as a stopped broker
// does: the next attempt may reach one that speaks.
func TestAHandshakeWithoutAnAnswerIsGivenUp(t *testing.T) {
	b := newBench(t, nil)
	b.proxy.mute(true)
	p := NewPublisher(b.options, PublisherOptions{Exchange: b.name})
	closeAtEnd(t, p.Close)
	until(t, "it has connected to nobody", func() bool { return b.proxy.connections() == 1 })
	b.proxy.mute(false)
	within(t, p.WaitReady)
}

func TestABlockedConnectionIsAState(t *testing.T) {
	b := newBench(t, nil)
	p := b.publisher(PublisherOptions{})
	control(t, "ctl", "set_vm_memory_high_watermark", "0")
	restore := sync.OnceFunc(func() { control(t, "ctl", "set_vm_memory_high_watermark", "0.6") })
	defer restore()
	tr := make(tracked, 1) // the broker says it to whoever publishes
	p.Send(t.Context(), b.message("a"), tr)
	until(t, "the publisher knows that it is blocked", func() bool { return errors.Is(p.Ready(), ErrBlocked) })
	if got, err := b.publish(p, b.message("b")); got != NotWritten || !errors.Is(err, ErrBlocked) {
		t.Errorf("while blocked: got %s %v, want %s and %v", got, err, NotWritten, ErrBlocked)
	}
	restore()
	if got := <-tr; got.outcome != Confirmed {
		t.Errorf("the publish before: got %s %v, want %s", got.outcome, got.err, Confirmed)
	}
	within(t, p.WaitReady)
}

func TestABrokerKilledAndRestartedKeepsWhatItConfirmed(t *testing.T) {
	b := oldBench(t)
	p := b.publisher(PublisherOptions{})
	c, got := b.consumer()
	within(t, c.Pause)
	confirmed := map[string]bool{}
	outcomes := map[string]tracked{}
	for i := range 200 {
		id := fmt.Sprint(i)
		outcomes[id] = make(tracked, 1)
		p.Send(t.Context(), b.message(id), outcomes[id])
		if i == 100 { // so that some are surely confirmed, and some probably not
			o := <-outcomes[id]
			if confirmed[id] = o.outcome == Confirmed; !confirmed[id] {
				t.Fatal(o)
			}
			delete(outcomes, id)
		}
	}
	control(t, "crash")
	for id, tr := range outcomes {
		switch o := <-tr; o.outcome {
		case Confirmed:
			confirmed[id] = true
		case Unknown, NotWritten:
		default:
			t.Errorf("%s: got %s %v", id, o.outcome, o.err)
		}
	}
	if o, err := b.publish(p, b.message("away")); o != NotWritten {
		t.Errorf("while it is away: got %s %v, want %s", o, err, NotWritten)
	}
	control(t, "start")
	c.Resume()
	within(t, p.WaitReady)
	within(t, c.WaitReady)
	for len(confirmed) > 0 {
		d := receive(t, got) // fails when one is missing
		delete(confirmed, d.MessageId)
		if err := d.Ack(); err != nil {
			t.Error(err)
		}
	}
}

func TestABrokerStoppedBySIGSTOPBlocksNobody(t *testing.T) {
	b := newBench(t, nil)
	p := b.publisher(PublisherOptions{})
	c, _ := b.consumer()
	control(t, "pause")
	resume := sync.OnceFunc(func() { control(t, "resume") })
	defer resume()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if o, err := p.Publish(ctx, b.message("a")); o != Unknown || !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %s %v, want %s at the deadline", o, err, Unknown)
	}
	until(t, "both noticed", func() bool { return p.Ready() != nil && c.Ready() != nil })
	short, stop := context.WithTimeout(t.Context(), 5*time.Second)
	defer stop()
	q := NewPublisher(b.options, PublisherOptions{Exchange: b.name}) // hangs in the handshake
	if err := q.Close(short); err != nil {
		t.Errorf("close while connecting to a broker that says nothing: %v", err)
	}
	resume()
	within(t, p.WaitReady)
	within(t, c.WaitReady)
}

func TestSeveralHosts(t *testing.T) {
	b := newBench(t, nil)
	dead := newProxy(t, "127.0.0.1:1")
	dead.refuse(true)
	uri, _ := amqp.ParseURI(b.options.Config.URL[0])
	uri.Port = dead.port
	b.options.Config.URL = append([]string{uri.String()}, b.options.Config.URL...)
	b.publisher(PublisherOptions{}) // ready, whichever comes first
}

// The broker is another version only in what it says of itself.
func TestABrokerThatIsTooOldIsAStateAndAnError(t *testing.T) {
	b := newBench(t, nil)
	version, _ := b.dial().Properties["version"].(string)
	old := "3.9." + strings.Repeat("9", len(version)-4)
	b.proxy.pretend(version, old)
	err := b.options.Config.Probe(t.Context())
	if want := "RabbitMQ " + old + ": " + ErrTooOld.Error(); !strings.Contains(fmt.Sprint(err), want) {
		t.Errorf("got %v, want %q", err, want)
	}
	p := NewPublisher(b.options, PublisherOptions{Exchange: b.name})
	closeAtEnd(t, p.Close)
	until(t, "Ready says why", func() bool { return errors.Is(p.Ready(), ErrTooOld) })
	b.proxy.pretend(version, version)
	within(t, p.WaitReady) // it was upgraded: nothing has to be restarted
}

func TestAWrongPasswordIsToldWithoutIt(t *testing.T) {
	b := newBench(t, nil)
	uri, _ := amqp.ParseURI(b.options.Config.URL[0])
	uri.Password = "s3cret"
	b.options.Config.URL = []string{uri.String()}
	err := b.options.Config.Probe(t.Context())
	if err == nil || !strings.Contains(err.Error(), "403") || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("got %v, want the broker's 403 and no password", err)
	}
}

// A proxy stands between a session and the broker.
type proxy struct {
	t        *testing.T
	upstream string
	port     int
	listener net.Listener

	mu      sync.Mutex
	refused bool
	muted   bool
	spoken  [2]string // what the broker says, and what is said instead
	pairs   map[*pair]bool
	wg      sync.WaitGroup
}

type pair struct {
	client, broker net.Conn
	frozen         chan struct{}
}

func newProxy(t *testing.T, upstream string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{t: t, upstream: upstream, port: l.Addr().(*net.TCPAddr).Port, listener: l, pairs: map[*pair]bool{}}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.cut()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return
		}
		p.mu.Lock()
		refused, muted, spoken := p.refused, p.muted, p.spoken
		p.mu.Unlock()
		broker, err := net.Dial("tcp", p.upstream)
		if refused || err != nil {
			_ = client.Close()
			if err == nil {
				_ = broker.Close()
			}
			continue
		}
		c := &pair{client, broker, make(chan struct{})}
		if muted {
			close(c.frozen)
		}
		p.mu.Lock()
		p.pairs[c] = true
		p.mu.Unlock()
		p.wg.Go(func() { c.pump(client, broker, spoken) })
		p.wg.Go(func() { c.pump(broker, client, [2]string{}) })
	}
}

func (c *pair) pump(dst, src net.Conn, spoken [2]string) {
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		select {
		case <-c.frozen: // swallow, and close nothing
		default:
			_, _ = dst.Write(bytes.Replace(buf[:n], []byte(spoken[0]), []byte(spoken[1]), 1))
			if err != nil {
				_ = dst.Close()
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *proxy) refuse(on bool) { p.mu.Lock(); p.refused = on; p.mu.Unlock() }

// mute lets connections come and swallows all that is sent on them.
func (p *proxy) mute(on bool) { p.mu.Lock(); p.muted = on; p.mu.Unlock() }

// pretend changes a word of the broker's, on later connections, for another of
// the same length.
func (p *proxy) pretend(word, other string) {
	p.mu.Lock()
	p.spoken = [2]string{word, other}
	p.mu.Unlock()
}

func (p *proxy) connections() int { p.mu.Lock(); defer p.mu.Unlock(); return len(p.pairs) }

// cut resets every connection.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.pairs {
		for _, s := range []net.Conn{c.client, c.broker} {
			_ = s.(*net.TCPConn).SetLinger(0)
			_ = s.Close()
		}
		delete(p.pairs, c)
	}
}

// freeze swallows what is sent on the connections of now; later ones pass.
func (p *proxy) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.pairs {
		close(c.frozen)
	}
}
