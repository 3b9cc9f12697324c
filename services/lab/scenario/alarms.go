package scenario

import (
	"warren.example/messaging/event"
	"warren.example/messaging/session"
)

// The broker is short of memory and of disk. It stops reading from connections
// that publish, and tells those that listen (connection.blocked).
//
// Promise: a session of ours holds calls back while it lasts, and what was written
// is confirmed when it is over; its consumer has a connection of its own, so what
// is queued is worked on meanwhile. Control: where both share a connection the
// broker does not read the acks on it either, and the worker gets no more to do
// than its prefetch.
var alarms = Scenario{
	Name:    "alarms",
	Topic:   "publishing",
	Broke:   "the broker is short of memory and of disk",
	Promise: "calls wait, and what is queued is worked on",
	Alone:   true,
	Run: raiseAlarms(func(w *World) pressed {
		sender := w.Broker.Sender(session.PublisherOptions{Exchange: failExchange})
		return pressed{w.Broker.Take(workQueue, 1), sender.Blocked, func(n int) (confirmed func() bool) {
			outcomes := sender.Write(toWork(n)...)
			return func() bool { return all(outcomes(), session.Confirmed) }
		}}
	}),
	Controls: []Control{{
		Name:   "one connection for both",
		Shows:  "acks wait behind publishes, and work stops",
		Breaks: worksOn,
		Run: raiseAlarms(func(w *World) pressed {
			both := w.Broker.Connect()
			return pressed{both.Take(workQueue, 1, false), both.Blocked(), func(n int) (confirmed func() bool) {
				confirms := both.Throw(workQueue, messages(n)...)
				return func() bool { return countAcks(w.ctx, confirms) == n }
			}}
		}),
	}},
}

const worksOn = "what is queued is worked on"

// pressed is a program that publishes and works.
type pressed struct {
	worker  *Worker
	blocked func() // waits until the broker has told it
	write   func(n int) (confirmed func() bool)
}

func raiseAlarms(begin func(*World) pressed) func(*World) {
	return func(w *World) {
		const queued, written = 10, 5
		// ARRANGE  a queue of work, and a worker with one of it in hand
		lab := w.Broker.Connect()
		lab.DeclareFailing()
		lab.Send(workQueue, messages(queued)...)
		program := begin(w)
		jobs := program.worker.Next(1)
		// BREAK  its connection is blocked when it publishes
		over := w.Broker.Alarm()
		during := program.write(written)
		program.blocked()
		// OBSERVE  it works on, and publishes again when the alarm is over
		worked := program.worker.WorkOn(jobs, queued)
		over()
		confirmed := during()
		confirmed = program.write(written)() && confirmed
		program.worker.Die()
		w.Broker.Connect().Drain(workQueue)
		v := w.Settle()
		// VERDICT
		v.Hit("a worker with one of it in hand", v.Times(jobs[0].ID, event.Delivered) > 0)
		v.That(worksOn, worked >= queued, "%d of %d were", worked, queued)
		v.That("what was written is confirmed in the end", confirmed, "it is not")
		v.Same("every message is worked on", v.With(event.Audited), v.With(event.Publishing))
		v.Note("%d of %d worked on during the alarm", worked, queued)
	}
}
