package scenario

import (
	"time"

	"warren.example/messaging/contract"
	"warren.example/messaging/event"
)

// The broker node that leads the request queue is cut off from the two others
// while calls are made: each side takes the other for dead. Client and servers are
// connected to the two.
//
// Promise: the two elect another leader and calls are answered while the node is
// still cut off; what it had in hand is not lost, and every call is answered.
// Control: a classic queue is on one node alone. On the other side of the cut calls
// must fail.
var partition = Scenario{
	Name:    "partition",
	Topic:   "network",
	Broke:   "broker: one node of three is cut off",
	Promise: "the two go on, every call is answered",
	Needs:   Needs{Nodes: 3},
	Alone:   true,
	Run: cutOff("60s", func(w *World, _ *Client) {
		w.Until("a hundred calls more are answered", passed(event.Answered, 150))
	}),
	Controls: []Control{{
		Name:   "classic queue",
		Shows:  "calls fail until its node is back",
		Breaks: everyCall,
		Change: classicQueue,
		Run:    cutOff("5s", func(_ *World, load *Client) { load.Ended() }),
	}},
}

func cutOff(patience string, enough func(*World, *Client)) func(*World) {
	return func(w *World) {
		// ARRANGE  two servers and a client on the two nodes that stay together
		leader := w.Broker.Leader(contract.RequestQueue)
		w.Broker.ServeBeside(leader)
		w.Broker.ServeBeside(leader)
		load := w.Broker.LoadBeside(leader, "--count", "300", "--rate", "50", "--timeout", patience)
		w.Until("calls are answered", passed(event.Answered, 50))
		// BREAK
		join := w.Broker.CutOff(leader)
		enough(w, load)
		join()
		next := w.Broker.Leader(contract.RequestQueue)
		// OBSERVE
		v := w.Settle()
		// VERDICT
		v.Hit("another leader", next != leader)
		v.Same(everyCall, v.With(event.Answered), v.asked())
		v.Note("no answer for %s at most", v.Silence().Round(10*time.Millisecond))
	}
}
