package scenario

import (
	"time"

	"warren.example/messaging/contract"
	"warren.example/messaging/event"
)

// The broker node that leads the request queue dies by SIGKILL while calls are
// made, and the other two go on.
//
// Promise: another node takes over and calls are answered while the dead node is
// still away; nothing is lost, and every call is answered in the end; for how long
// no answer came is reported. Deadlines must outlast the node's absence for that:
// since 4.3 what was delivered over a connection to it counts as in somebody's
// hands until it is back, or for consumer_disconnected_timeout, 60 s.
// Control: in a classic queue, as durable as the other but on one node alone,
// the requests are out of reach until that node is back: calls must fail.
var leaderKilled = Scenario{
	Name:    "leader-killed",
	Topic:   "persistence",
	Broke:   "broker: SIGKILL of the node that leads the queue",
	Promise: "another leads, every call is answered",
	Needs:   Needs{Nodes: 3},
	Alone:   true,
	Run: killLeader("60s", func(w *World, _ *Client) {
		w.Until("a hundred calls more are answered", passed(event.Answered, 150))
	}),
	Controls: []Control{{
		Name:   "classic queue",
		Shows:  "calls fail until its only node is back",
		Breaks: everyCall,
		Change: classicQueue,
		// Patience is shorter than a node's restart, where somebody restarts it at once.
		Run: killLeader("5s", func(_ *World, load *Client) { load.Ended() }),
	}},
}

const everyCall = "every call is answered"

func killLeader(patience string, enough func(*World, *Client)) func(*World) {
	return func(w *World) {
		// ARRANGE  two servers, and a client that asks at fixed instants, whatever becomes of earlier questions
		w.Serve(nil)
		w.Serve(nil)
		load := w.Load("--count", "300", "--rate", "50", "--timeout", patience)
		w.Until("calls are answered", passed(event.Answered, 50))
		// BREAK
		leader := w.Broker.Leader(contract.RequestQueue)
		w.Broker.KillNode(leader)
		enough(w, load)
		w.Broker.Start()
		next := w.Broker.Leader(contract.RequestQueue)
		// OBSERVE
		v := w.Settle()
		// VERDICT
		v.Hit("another leader", next != leader)
		v.Same(everyCall, v.With(event.Answered), v.asked())
		v.Note("no answer for %s at most", v.Silence().Round(10*time.Millisecond))
	}
}
