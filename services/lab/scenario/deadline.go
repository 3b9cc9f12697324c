package scenario

import (
	"warren.example/messaging/event"
	"warren.example/messaging/fault"
)

// Deadlines pass: of requests that no server takes, and of one whose server is
// held when the answer is ready.
//
// Promise: what expired in the queue is audited and never run, even when a
// server comes right after; the reply that comes too late is counted and not
// handed out. Control: without expiration and without the server's own check
// the server must run requests that nobody waits for.
var deadline = Scenario{
	Name:    "deadline",
	Topic:   "dead letters",
	Broke:   "deadlines pass: in the queue, and before the reply",
	Promise: "expired: audited, never run; late reply: counted",
	Run:     passDeadlines(nil),
	Controls: []Control{{
		Name:   "no expiration, no check",
		Shows:  "the server works for nobody",
		Breaks: neverRun,
		Run:    passDeadlines(Settings{"DEADLINE_CHECK": "false"}, "--no-expiration"),
	}},
}

const neverRun = "no server runs what expired"

func passDeadlines(settings Settings, flags ...string) func(*World) {
	return func(w *World) {
		// ARRANGE  an auditor; nobody serves
		w.Audit(nil)
		// BREAK  five callers give up; then a server comes, and is held with the sixth answer in hand
		w.Load(append(flags, "--count", "5", "--in-flight", "5", "--timeout", "1500ms")...)
		w.Until("five callers gave up", passed(event.TimedOut, 5))
		server := w.Serve(settings.With(Settings{"CONCURRENCY": "1"}))
		server.HoldAt(fault.AfterWork, 1)
		w.Load("--count", "2", "--in-flight", "1", "--timeout", "2s")
		w.Until("the sixth gave up", passed(event.TimedOut, 6))
		server.Release()
		// OBSERVE
		v := w.Settle()
		// VERDICT
		inQueue := v.Where(func(l event.Line) bool { return l.Event == event.TimedOut && l.Instance == "client-0" })
		v.Hit("a server held past a deadline", len(v.With(event.Held)) == 1)
		v.None(neverRun, inQueue.And(v.With(event.Computed)))
		v.Same("what expired is audited", expired(v), inQueue)
		v.Same("the late reply is counted", v.With(event.LateReply), v.With(event.Held))
		v.None("a late reply is not handed out", v.With(event.LateReply).And(v.With(event.Answered)))
	}
}

// expired is the requests that the auditor has on record as expired.
func expired(v *Verdict) map[string]struct{} {
	return v.Where(func(l event.Line) bool { return l.Event == event.Audited && l.Code == "expired" })
}
