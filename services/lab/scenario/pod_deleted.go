package scenario

import (
	"warren.example/lab/ledger"
	"warren.example/lab/substrate"
	"warren.example/messaging/event"
)

// A server's pod is deleted under load: it gets SIGTERM, and another pod.
//
// Promise: it takes no more requests, finishes those in its hands and leaves, so
// that every call is answered and no request is delivered twice. Control: one
// that leaves at once must make the broker deliver again what it had in hand.
var podDeleted = Scenario{
	Name:    "pod-deleted",
	Topic:   "Kubernetes",
	Broke:   "Kubernetes deletes a server's pod under load",
	Promise: "no call fails, nothing is delivered twice",
	Needs:   Needs{Kubernetes: true},
	Run:     deletePod(nil),
	Controls: []Control{{
		Name:   "no drain",
		Shows:  "what it had in hand is delivered again",
		Breaks: onceEach,
		Run:    deletePod(Settings{"DRAIN": "false"}),
	}},
}

// Whether something was delivered twice is asked of the servers, not of the
// broker's flag: a quorum queue that has chosen a consumer whose cancel is on
// its way takes the request back, and flags it as redelivered though no server
// has seen it.
const onceEach = "nothing is delivered twice"

// slowly is work that takes so long that a server always has some in hand, and
// begins at once whatever is in its hands: what waits for a slot when a server
// drains is given back, and that is a second delivery.
var slowly = Settings{"WORK_DELAY": "200ms", "PREFETCH": "16", "CONCURRENCY": "16"}

func deletePod(settings Settings) func(*World) {
	return func(w *World) {
		// ARRANGE  two pods that share sixteen callers' requests, each with some in hand at any time
		servers := w.Deploy(substrate.CalculatorServer, 2, slowly.With(settings))
		load := w.Load("--endless", "--in-flight", "16", "--timeout", "60s")
		w.Until("calls are answered", passed(event.Answered, 100))
		// BREAK
		victim := servers.Pods()[0]
		servers.Delete(victim)
		load.Enough()
		// OBSERVE
		v := w.Settle()
		// VERDICT
		v.Hit("requests in its hands when it was told to leave", len(v.inHand(victim)) > 0)
		v.None(onceEach, v.AtLeast(2, event.Delivered))
		v.Same(everyCall, v.With(event.Answered), v.asked())
	}
}

// inHand is the requests that a server had taken and not yet acked when it was
// told to leave.
func (v *Verdict) inHand(server *Servant) ledger.Set {
	held := ledger.Set{}
	for _, line := range v.Lines() {
		switch {
		case line.Instance != server.Name():
		case line.Event == event.Delivered:
			held[line.Request] = struct{}{}
		case line.Event == event.Acked:
			delete(held, line.Request)
		case line.Event == event.Draining:
			return held
		}
	}
	return nil // it never was, or left without a word
}
