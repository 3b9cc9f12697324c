package fault

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"warren.example/messaging/event"
)

func TestAPointFiresOnceAtItsDelivery(t *testing.T) {
	var ledger bytes.Buffer
	p := New(event.NewRecorder(&ledger, "r", "s"))
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
		p := New(event.NewRecorder(held, "r", "s"))
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
	New(nil).Routes(mux)
	for body, want := range map[string]int{
		`{"point":"after-work","action":"crash","n":1}`:  http.StatusNoContent,
		`{"point":"after-lunch","action":"crash","n":1}`: http.StatusBadRequest,
		`{"point":"after-work","action":"sleep","n":1}`:  http.StatusBadRequest,
		`{"point":"after-work","action":"hold","n":0}`:   http.StatusBadRequest,
		`{"point":"after-work","action":"hold","m":1}`:   http.StatusBadRequest,
		``: http.StatusBadRequest,
	} {
		w := httptest.NewRecorder()
		mux.ServeHTTP(w, httptest.NewRequest("POST", "/faults", strings.NewReader(body)))
		if w.Code != want {
			t.Errorf("%s: got %d %s, want %d", body, w.Code, w.Body, want)
		}
	}
}
