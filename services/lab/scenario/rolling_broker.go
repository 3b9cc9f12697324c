package scenario

import (
	"time"

	"warren.example/lab/substrate"
	"warren.example/messaging/event"
)

// RabbitMQ's nodes are restarted one after the other under load, as for a new
// version of it.
//
// Promise: a node hands over what it leads and closes its connections before it
// goes; whoever was connected to it connects elsewhere and asks again under the
// same id, and every call is answered. Control: a client that does not ask again
// must be left, for what it had in flight, not knowing what became of it.
var rollingBroker = Scenario{
	Name:    "rolling-broker",
	Topic:   "Kubernetes",
	Broke:   "RabbitMQ's nodes restart, one after the other",
	Promise: "every call is answered",
	Needs:   Needs{Kubernetes: true, Nodes: 3},
	Alone:   true,
	Run:     rollBroker(),
	Controls: []Control{{
		Name:   "no retry",
		Shows:  "the fate of calls in flight is unknown",
		Breaks: everyCall,
		Run:    rollBroker("--no-retry"),
	}},
}

func rollBroker(flags ...string) func(*World) {
	return func(w *World) {
		// ARRANGE  two servers, and sixteen callers who are never all without a question
		w.Deploy(substrate.CalculatorServer, 2, slowly)
		load := w.Load(append(flags, "--endless", "--in-flight", "16", "--timeout", "60s")...)
		w.Until("calls are answered", passed(event.Answered, 100))
		// BREAK
		w.Broker.Roll()
		load.Enough()
		// OBSERVE
		v := w.Settle()
		// VERDICT
		// The epoch counts connections: each was to one node, and every node has gone.
		v.Hit("an answer after a reconnect", len(v.Where(func(l event.Line) bool { return l.Event == event.Answered && l.Epoch > 1 })) > 0)
		v.Same(everyCall, v.With(event.Answered), v.asked())
		v.Note("no answer for %s at most", v.Silence().Round(10*time.Millisecond))
	}
}
