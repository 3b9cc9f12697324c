package scenario

import (
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/messaging/event"
	"warren.example/messaging/topology"
)

// A worker fails at a message, each time, and rejects it with requeue. Since
// RabbitMQ 4.3 the quorum queue itself can wait before it delivers again: the
// least pause times the failures so far, up to a most
// (https://www.rabbitmq.com/docs/quorum-queues#delayed-retry).
//
// Promise: the message never comes back at once; after as many failures as the
// delivery limit allows and one it is parked. There is no other queue to wait in,
// and nothing to publish again. Control: without the arguments the same rejections
// must bring it back at once.
var delayedRetry = Scenario{
	Name:    "delayed-retry",
	Topic:   "dead letters",
	Broke:   "a worker fails at a message, each time",
	Promise: "the queue itself waits, then parks it",
	Needs:   Needs{MinVersion: topology.Version{Major: 4, Minor: 3}},
	Run:     failAtOne(true),
	Controls: []Control{{
		Name:   "no delayed retry",
		Shows:  "a hot loop up to the limit",
		Breaks: neverAtOnce,
		Run:    failAtOne(false),
	}},
}

const neverAtOnce = "it never comes back at once"

func failAtOne(delayed bool) func(*World) {
	return func(w *World) {
		const limit = 2
		// ARRANGE  a queue that parks what has failed too often
		lab := w.Broker.Connect()
		lab.Declare(parking, quorum)
		args := retryQueue(0, parking)
		args["x-delivery-limit"] = int64(limit)
		if delayed {
			least := (w.slow * time.Second).Milliseconds()
			args["x-delayed-retry-type"], args["x-delayed-retry-min"], args["x-delayed-retry-max"] = "failed", least, 2*least
		}
		lab.Declare(workQueue, args)
		lab.Send(workQueue, messages(1)...)
		// BREAK  after each failure somebody looks whether it is there
		atOnce := 0
		for range limit {
			lab.Refuse(workQueue, 1, func(d amqp.Delivery) error { return d.Reject(true) })
			d, ok, err := lab.Get(workQueue, false)
			w.must(err, "get from %s", workQueue)
			if ok {
				atOnce++
				lab.got(d)
				w.must(d.Nack(false, true), "nack") // which is no failure
			}
		}
		lab.Refuse(workQueue, 1, func(d amqp.Delivery) error { return d.Reject(true) })
		// OBSERVE
		lab.Drain(parking)
		v := w.Settle()
		// VERDICT
		v.Hit("more failures than the limit allows", len(v.AtLeast(limit+1, event.Delivered)) == 1)
		v.Count(neverAtOnce, atOnce, 0)
		v.Same("it is parked", v.With(event.Audited), v.With(event.Confirmed))
		came := pauses(v.Ledger, event.Delivered)
		v.Note("pauses: %s", came[:min(limit, len(came))]) // without the way to the parking queue
	}
}
