package scenario

import (
	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/ledger"
	"warren.example/messaging/event"
	"warren.example/messaging/topology"
)

// Workers give a message back ten times, because they are about to leave, from a
// queue with a delivery limit of three.
//
// Promise: with nack it is still there: since RabbitMQ 4.3 a nack with requeue
// says "not me, not now" and does not count towards the limit
// (https://www.rabbitmq.com/docs/quorum-queues#poison-message-handling).
// Control: with reject, which says "this failed", it must be gone after the
// fourth. Before 4.3 both counted, so draining used the limit up.
var nackOrReject = Scenario{
	Name:    "nack-or-reject",
	Topic:   "acknowledgements",
	Broke:   "ten workers leave with a message in hand",
	Promise: "a nack is not counted as a failure",
	Needs:   Needs{MinVersion: topology.Version{Major: 4, Minor: 3}},
	Run:     giveBack(10, func(d amqp.Delivery) error { return d.Nack(false, true) }),
	Controls: []Control{{
		Name:   "reject",
		Shows:  "the delivery limit takes it after the fourth",
		Breaks: string(ledger.NoLoss),
		Run:    giveBack(4, func(d amqp.Delivery) error { return d.Reject(true) }),
	}},
}

func giveBack(times int, how func(amqp.Delivery) error) func(*World) {
	return func(w *World) {
		// ARRANGE  one message, in a queue that forgets what has failed too often
		lab := w.Broker.Connect()
		lab.Declare(workQueue, amqp.Table{"x-queue-type": "quorum", "x-delivery-limit": int64(3)})
		lab.Send(workQueue, messages(1)...)
		// BREAK
		lab.Refuse(workQueue, times, how)
		// OBSERVE  whoever comes next does the work
		lab.Drain(workQueue)
		v := w.Settle()
		// VERDICT
		v.Hit("a message given back more often than the limit", len(v.AtLeast(4, event.Delivered)) == 1)
		v.Same("the message is worked on", v.With(event.Audited), v.With(event.Confirmed))
	}
}
