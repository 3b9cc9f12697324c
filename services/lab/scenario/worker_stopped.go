package scenario

import (
	"time"

	"warren.example/messaging/event"
)

// A worker node of the cluster stops, as by a power cut, while calls are made.
// With it go a server with requests in hand and a node of the broker.
//
// Promise: the other server and the other two nodes go on, what the lost server
// had in hand is delivered to the other, and every call is answered; for how long
// no answer came is reported. Deadlines must be longer than a minute for that: a
// delivery over a connection to the lost node, whoever's it was, counts as in
// somebody's hands until RabbitMQ's consumer_disconnected_timeout, 60 s since 4.3.
// Control: with as many servers, but both on that worker, calls must end at their
// deadline.
var workerStopped = Scenario{
	Name:    "worker-stopped",
	Topic:   "Kubernetes",
	Broke:   "a worker stops, with a server and a broker node",
	Promise: "the rest answers every call",
	Needs:   Needs{Kubernetes: true, Own: true, Nodes: 3},
	Alone:   true,
	Run:     stopWorker(true, "150s"),
	Controls: []Control{{
		Name:   "both servers on it",
		Shows:  "calls end at their deadline",
		Breaks: everyCall,
		Run:    stopWorker(false, "15s"),
	}},
}

func stopWorker(apart bool, patience string) func(*World) {
	return func(w *World) {
		// ARRANGE  two servers; an auditor for what expires; a client, who asks at fixed instants, where it survives
		workers := w.Workers()
		doomed, safe := workers[0], workers[1]
		beside := doomed
		if apart {
			beside = safe
		}
		// Each second of questions is in hand; and the broker takes a silent peer for dead after three heartbeats.
		settings := Settings{"WORK_DELAY": "1s", "PREFETCH": "64", "CONCURRENCY": "64", "AMQP_HEARTBEAT": "3s"}
		doomed.Serve(settings)
		beside.Serve(settings)
		safe.Audit(nil)
		load := safe.Load("--endless", "--rate", "20", "--timeout", patience)
		w.Until("calls are answered", passed(event.Answered, 50))
		nodes := doomed.BrokerNodes()
		// BREAK
		doomed.Stop()
		ended := len(w.ledger.With(event.Answered, event.TimedOut))
		w.Until("a hundred calls more have ended, well or not", func(l seen) bool { return len(l.With(event.Answered, event.TimedOut)) >= ended+100 })
		doomed.Start()
		load.Enough()
		// OBSERVE
		v := w.Settle()
		// VERDICT
		v.Hit("requests in the lost server's hands", len(v.AtLeast(2, event.Delivered)) > 0)
		v.Hit("one node of the broker on the worker", nodes == 1)
		v.Same(everyCall, v.With(event.Answered), v.asked())
		v.Note("no answer for %s at most", v.Silence().Round(10*time.Millisecond))
	}
}
