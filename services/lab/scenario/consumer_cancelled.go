package scenario

import (
	"slices"

	"warren.example/messaging/event"
)

// A queue is deleted while a worker consumes it, and an administrator declares it
// again. The broker ends the consumer with basic.cancel; channel and connection
// stay open, so a program that watches only those notices nothing.
//
// Promise: a worker on a session of ours consumes the new queue by itself, and
// works on all that comes to it. Control: with the client library alone the
// deliveries just end, as they do on a shutdown, and the worker must be deaf
// from then on, on a connection that lives.
var consumerCancelled = Scenario{
	Name:    "consumer-cancelled",
	Topic:   "acknowledgements",
	Broke:   "the queue is deleted, and declared again",
	Promise: "its worker consumes again by itself",
	Run:     deleteQueue(func(w *World) *Worker { return w.Broker.Take(workQueue, 5) }),
	Controls: []Control{{
		Name:   "the library alone",
		Shows:  "connected, and deaf: it gets nothing more",
		Breaks: consumesAgain,
		Run:    deleteQueue(func(w *World) *Worker { return w.Broker.Connect().Take(workQueue, 5, false) }),
	}},
}

const consumesAgain = "the worker consumes again"

func deleteQueue(begin func(*World) *Worker) func(*World) {
	return func(w *World) {
		const each = 5
		// ARRANGE  a worker that has worked on five messages
		lab := w.Broker.Connect()
		lab.Declare(workQueue, quorum)
		lab.Send(workQueue, messages(each)...)
		worker := begin(w)
		before := worker.Finish(each)
		// BREAK
		_, err := lab.QueueDelete(workQueue, false, false, false)
		w.must(err, "delete %s", workQueue)
		w.Until("the broker has cancelled its consumer", cancelled)
		lab.Declare(workQueue, quorum)
		lab.Send(workQueue, messages(each)...)
		// OBSERVE  the worker takes what comes; another takes what it leaves
		again := worker.Finish(each)
		lab.Drain(workQueue)
		v := w.Settle()
		// VERDICT
		v.Hit("a worker that had worked", before == each)
		v.Count(consumesAgain, again, each)
		v.Same("every message is worked on", v.With(event.Audited), v.With(event.Confirmed))
	}
}

// cancelled is a condition for Until: the broker has ended somebody's consumer.
func cancelled(l seen) bool {
	return slices.ContainsFunc(l.Lines(), func(line event.Line) bool { return line.Event == event.ConsumerCancelled })
}
