package scenario

import (
	"time"

	"warren.example/messaging/event"
)

// Nobody serves, for three different reasons that a caller can tell apart.
//
// Promise: behind an empty queue a request waits for a server or fails at once,
// as the caller asked; with no queue it fails in milliseconds (312); with no
// broker it is unavailable. None of them hangs. Control: without mandatory the
// broker confirms a request that no queue takes, and the call must hang until
// its deadline.
var noServer = Scenario{
	Name:    "no-server",
	Topic:   "request and reply",
	Broke:   "no server; then no queue; then no broker",
	Promise: "wait or fail at once as asked, never hang",
	Alone:   true,
	Run: func(w *World) {
		// ARRANGE  the queue is there, and an auditor for what expires in it
		w.Audit(nil)
		// BREAK  1. no server: one caller waits in vain, one asks first, one waits until a server comes
		gaveUp := w.Call("--timeout", "1500ms", "add", "1", "2")
		asked := w.Call("--if-no-server", "fail", "add", "1", "2")
		w.Load("--count", "1", "--timeout", "15s")
		w.Until("a request waits", passed(event.Confirmed, 2))
		server := w.Serve(nil)
		w.Until("it is answered, and the expired one audited", func(l seen) bool { return len(l.With(event.Answered)) == 1 && len(l.With(event.Audited)) == 1 })
		server.Leave()
		// 2. no queue
		w.Broker.RemoveQueue()
		absent := w.Call("add", "1", "2")
		// 3. no broker
		w.Broker.Kill()
		away := w.Call("add", "1", "2")
		w.Broker.Start()
		// OBSERVE
		v := w.Settle()
		// VERDICT
		v.That("a caller may wait", gaveUp.Outcome == "deadline", "%s", gaveUp)
		v.That("a caller may ask first", asked.Outcome == "no-server" && asked.Milliseconds < 2000 && !asked.MayHaveExecuted, "%s", asked)
		v.None("what expired was never run", v.With(event.TimedOut).And(v.With(event.Delivered)))
		v.That(failsAtOnce, absent.Outcome == "no-server" && !absent.MayHaveExecuted, "%s", absent)
		v.That(failsAtOnce, v.Took(absent.Request, event.Publishing, event.RequestReturned) < 500*time.Millisecond, "it took %s", v.Took(absent.Request, event.Publishing, event.RequestReturned))
		v.That("no broker is unavailable", away.Outcome == "unavailable" && away.Milliseconds < 2000 && !away.MayHaveExecuted, "%s", away)
	},
	Controls: []Control{{
		Name:   "not mandatory",
		Shows:  "the call hangs until its deadline",
		Breaks: failsAtOnce,
		Run: func(w *World) {
			// ARRANGE, BREAK  no queue
			w.Broker.RemoveQueue()
			absent := w.Call("--no-mandatory", "--timeout", "2s", "add", "1", "2")
			// OBSERVE
			v := w.Settle()
			// VERDICT
			v.That(failsAtOnce, absent.Outcome == "no-server", "%s", absent)
		},
	}},
}

const failsAtOnce = "no queue fails at once"
