package scenario

import (
	"time"

	"warren.example/messaging/contract"
	"warren.example/messaging/event"
)

// The broker node that leads the request queue dies by SIGKILL while calls are
// made, and the other two go on.
//
// Promise: another node takes over, nothing is lost, and every call is answered
// while the dead node is still away; for how long no answer came is reported.
// Control: in a classic queue, as durable as the other but on one node alone,
// the requests are out of reach until that node is back: calls must fail.
var leaderKilled = Scenario{
	Name:    "leader-killed",
	Topic:   "persistence",
	Broke:   "broker: SIGKILL of the node that leads the queue",
	Promise: "another leads, every call is answered",
	Needs:   Needs{Nodes: 3},
	Alone:   true,
	Run:     killLeader,
	Controls: []Control{{
		Name:   "classic queue",
		Shows:  "calls fail until its only node is back",
		Breaks: everyCall,
		Change: classicQueue,
		Run:    killLeader,
	}},
}

const everyCall = "every call is answered"

func killLeader(w *World) {
	// ARRANGE  two servers, and a client that asks at fixed instants, whatever becomes of earlier questions
	w.Serve(nil)
	w.Serve(nil)
	load := w.Load("--endless", "--rate", "50", "--timeout", "30s")
	w.Until("calls are answered", passed(event.Answered, 50))
	// BREAK
	leader := w.Broker.Leader(contract.RequestQueue)
	w.Broker.KillNode(leader)
	w.Until("a hundred calls more have ended, well or not", func(l seen) bool {
		return len(l.With(event.Answered, event.RequestReturned, event.PublishNacked)) >= 150
	})
	w.Broker.Start()
	next := w.Broker.Leader(contract.RequestQueue)
	load.Enough()
	// OBSERVE
	v := w.Settle()
	// VERDICT
	v.Hit("another leader", next != leader)
	v.Same(everyCall, v.With(event.Answered), v.asked())
	v.Note("no answer for %s at most", v.Silence().Round(10*time.Millisecond))
}
