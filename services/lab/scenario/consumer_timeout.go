package scenario

import (
	"errors"
	"time"

	"warren.example/messaging/event"
	"warren.example/messaging/session"
)

// A worker holds its messages for longer than the consumer timeout, half an hour
// by default. Before RabbitMQ 4.3 the broker closes its channel (406); since then
// it cancels the consumer, and channel and connection stay open
// (https://www.rabbitmq.com/docs/quorum-queues#consumer-timeout). Either way the
// messages go back into the queue.
//
// Promise: a worker on a session of ours gets them again, and learns from its
// late ack that the message was no longer its own. Control: with the client
// library alone the deliveries just end, and the worker must be deaf from then on;
// since 4.3 not even the late ack reports anything.
var consumerTimeout = Scenario{
	Name:    "consumer-timeout",
	Topic:   "acknowledgements",
	Broke:   "a worker acks later than the broker waits",
	Promise: "it consumes again; its late ack is refused",
	Alone:   true, // before 4.3 the timeout is everybody's
	Run:     workTooLong(func(w *World) *Worker { return w.Broker.Take(workQueue, 3) }),
	Controls: []Control{{
		Name:   "the library alone",
		Shows:  "deaf: it gets nothing more",
		Breaks: consumesAgain,
		Run:    workTooLong(func(w *World) *Worker { return w.Broker.Connect().Take(workQueue, 3, false) }),
	}},
}

func workTooLong(begin func(*World) *Worker) func(*World) {
	return func(w *World) {
		const sent = 3
		// ARRANGE  a worker with three messages in hand
		lab := w.Broker.Connect()
		lab.Declare(workQueue, w.Broker.AckWithin(w.slow*time.Second))
		lab.Send(workQueue, messages(sent)...)
		worker := begin(w)
		jobs := worker.Next(sent)
		// BREAK  it works on the first until the broker has taken all three back
		again := worker.Finish(sent)
		// OBSERVE  it is done with the first; another takes what it leaves
		worker.Work(jobs[0])
		late := jobs[0].Ack()
		lab.Drain(workQueue)
		v := w.Settle()
		// VERDICT
		v.Hit("messages delivered again", len(v.Redelivered()) > 0)
		v.Hit("since 4.3: a consumer cancelled", cancelled(v.Ledger) || !w.broker.Version().AtLeast(4, 3))
		v.Count(consumesAgain, again, sent)
		v.That("the late ack is refused", errors.Is(late, session.ErrStale), "it was answered %v", late)
		v.Same("every message is worked on", v.With(event.Audited), v.With(event.Confirmed))
	}
}
