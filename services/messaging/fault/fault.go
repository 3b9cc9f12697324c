// Package fault lets a running service die, or stop, at an exact instant of a
// delivery's life. It does nothing until it is enabled and armed.
package fault

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"slices"
	"sync"
	"syscall"

	"warren.example/messaging/event"
)

// Point is an instant in the life of a delivery.
type Point string

// The points of the server, in the order in which a delivery passes them,
// then the auditor's one.
const (
	BeforeWork  Point = "before-work"
	AfterWork   Point = "after-work"
	AfterReply  Point = "after-reply" // the reply is confirmed, the request not yet acked
	AfterAck    Point = "after-ack"
	AfterCommit Point = "after-commit" // auditor: the row is committed, the dead letter not yet acked
)

// Action is what happens at an armed point.
type Action string

// Crash ends the process as hard as SIGKILL does; Hold stops the delivery
// there until Release.
const (
	Crash Action = "crash"
	Hold  Action = "hold"
)

// Order arms one point: at the n-th next delivery that passes it, act once.
type Order struct {
	Point  Point  `json:"point"`
	Action Action `json:"action"`
	N      int    `json:"n"` // 1 is the next one
}

// Points is the set of armed points of one process. A nil *Points is never
// armed: Hit costs a nil check.
type Points struct {
	events *event.Recorder
	points []Point
	kill   func() // replaced by tests

	mu    sync.Mutex
	armed map[Point]*Order
	hold  chan struct{} // closed by Release
}

// New returns points that can be armed. They are those that the service
// passes: an order for another would wait for ever.
func New(events *event.Recorder, points ...Point) *Points {
	return &Points{events: events, points: points, kill: Die, armed: map[Point]*Order{}, hold: make(chan struct{})}
}

// Die ends this process without any deferred work. In a container the process
// may be PID 1 of its namespace, which the kernel shields from its own
// SIGKILL; then the exit status says the same.
func Die() {
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	os.Exit(137)
}

// Arm takes an order. A point holds one order; a new one replaces it.
func (p *Points) Arm(o Order) error {
	switch {
	case !slices.Contains(p.points, o.Point):
		return fmt.Errorf("point %q: unknown here; there are %v", o.Point, p.points)
	case o.Action != Crash && o.Action != Hold:
		return fmt.Errorf("action %q: want crash or hold", o.Action)
	case o.N < 1:
		return fmt.Errorf("n %d: 1 is the next delivery", o.N)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.armed[o.Point] = &o
	p.events.Record(event.Line{Event: event.CrashArmed, Point: string(o.Point), Reason: fmt.Sprintf("%s at delivery %d", o.Action, o.N)})
	return nil
}

// Release lets every held delivery go on.
func (p *Points) Release() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.hold)
	p.hold = make(chan struct{})
}

// Hit is called where a delivery passes a point. It does not return if the
// point crashes; it returns after Release, or when done is closed, if the
// point holds.
func (p *Points) Hit(at Point, request string, done <-chan struct{}) {
	if p == nil {
		return
	}
	p.mu.Lock()
	o := p.armed[at]
	if o != nil {
		o.N--
	}
	if o == nil || o.N > 0 {
		p.mu.Unlock()
		return
	}
	delete(p.armed, at)
	hold := p.hold
	p.mu.Unlock()
	if o.Action == Crash {
		p.kill()
		return
	}
	p.events.Record(event.Line{Event: event.Held, Request: request, Point: string(at)})
	select {
	case <-hold:
	case <-done:
	}
}

// Routes adds the admin endpoints: POST /faults arms (body: an Order), POST
// /faults/release lets held deliveries go, POST /crash dies at once.
func (p *Points) Routes(mux *http.ServeMux) {
	mux.HandleFunc("POST /faults", func(w http.ResponseWriter, r *http.Request) {
		var o Order
		dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10))
		dec.DisallowUnknownFields()
		err := dec.Decode(&o)
		if err == nil {
			err = p.Arm(o)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /faults/release", func(w http.ResponseWriter, _ *http.Request) {
		p.Release()
		w.WriteHeader(http.StatusNoContent)
	})
	mux.HandleFunc("POST /crash", func(http.ResponseWriter, *http.Request) { p.kill() })
}
