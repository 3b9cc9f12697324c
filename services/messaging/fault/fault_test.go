package fault

import (
	"bytes"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"warren.example/messaging/event"
)

func TestAPointFiresOnceAtItsDelivery(t *testing.T) {
	var ledger bytes.Buffer
	p := New(event.NewRecorder(&ledger, "r", "s"), BeforeWork, AfterWork)
	died := 0
	p.kill = func() { died++ }
	if err := p.Arm(Order{AfterWork, Crash, 3}); err != nil {
		t.Fatal(err)
	}
	var fired []int
	for i := 1; i <= 5; i++ {
		before := died
		p.Hit(BeforeWork, "r", nil)
		p.Hit(AfterWork, "r", nil)
		if died > before {
			fired = append(fired, i)
		}
	}
	if len(fired) != 1 || fired[0] != 3 {
		t.Fatalf("fired at %v, want [3]", fired)
	}
	if !strings.Contains(ledger.String(), `"crash-armed"`) {
		t.Errorf("ledger %q does not say that a crash was armed", &ledger)
	}
}

func TestAHeldDeliveryGoesOnAtReleaseOrAtTheEndOfItsEpoch(t *testing.T) {
	for name, letGo := range map[string]func(*Points, chan struct{}){
		"release":          func(p *Points, _ chan struct{}) { p.Release() },
		"end of its epoch": func(_ *Points, done chan struct{}) { close(done) },
	} {
		held := make(held, 1)
		p := New(event.NewRecorder(held, "r", "s"), AfterReply)
		if err := p.Arm(Order{AfterReply, Hold, 1}); err != nil {
			t.Fatal(err)
		}
		<-held // crash-armed
		done, through := make(chan struct{}), make(chan struct{})
		go func() { p.Hit(AfterReply, "r", done); close(through) }()
		<-held
		select {
		case <-through:
			t.Fatalf("%s: went on by itself", name)
		default:
		}
		letGo(p, done)
		<-through
	}
}

type held chan struct{}

func (h held) Write(b []byte) (int, error) { h <- struct{}{}; return len(b), nil }

func TestRoutesRefuseWhatTheyDoNotKnow(t *testing.T) {
	mux := http.NewServeMux()
	New(nil, BeforeWork, AfterWork).Routes(mux)
	for body, want := range map[string]string{
		`{"point":"after-work","action":"crash","n":1}`:   "204 ",
		`{"point":"after-lunch","action":"crash","n":1}`:  `400 point "after-lunch": unknown here; there are [before-work after-work]`,
		`{"point":"after-commit","action":"crash","n":1}`: `400 point "after-commit": unknown here; there are [before-work after-work]`, // another service's
		`{"point":"after-work","action":"sleep","n":1}`:   `400 action "sleep"`,
		`{"point":"after-work","action":"hold","n":0}`:    "400 n 0",
		`{"point":"after-work","action":"hold","m":1}`:    `400 json: unknown field "m"`,
		``: "400 EOF",
	} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest("POST", "/faults", strings.NewReader(body)))
		if got := fmt.Sprint(w.Code, " ", w.Body); !strings.HasPrefix(got, want) {
			t.Errorf("%s: got %q, want %q", body, got, want)
		}
	}
}
