package scenario

import (
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/ledger"
	"warren.example/messaging/event"
	"warren.example/messaging/session"
)

// A worker fails at every message, each time.
//
// Promise: each is tried three times, with a longer pause before each, and then
// parked: the worker publishes it to a queue with a TTL, the next rung of a
// ladder, from which it comes back by dead-lettering; it counts in a header of its
// own, and acks only what is confirmed. Control: a worker that gives messages back
// at once must get them again at once, for as long as there is no limit; where
// there is one, 20 by default since RabbitMQ 4.0, it is used up before anything
// could have become better.
var retryLadder = Scenario{
	Name:    "retry-ladder",
	Topic:   "dead letters",
	Broke:   "a worker fails at every message",
	Promise: "three tries with growing pauses, then parked",
	Run:     failAtEach((*Peer).climb),
	Controls: []Control{{
		Name:   "requeue at once",
		Shows:  "a hot loop, and nobody counts",
		Breaks: fewTries,
		Run:    failAtEach(func(_ *Peer, d amqp.Delivery) error { return d.Reject(true) }),
	}},
}

const (
	fewTries = "none is tried more often"
	parking  = "lesson.parking"
)

var ladder = []struct {
	queue string
	pause time.Duration
}{{"lesson.wait.1", 100 * time.Millisecond}, {"lesson.wait.2", 400 * time.Millisecond}}

func failAtEach(then func(*Peer, amqp.Delivery) error) func(*World) {
	return func(w *World) {
		const sent = 3
		tries := 1 + len(ladder)
		// ARRANGE  the ladder, and somebody who takes what is parked
		lab, worker := w.Broker.Connect(), w.Broker.Connect()
		lab.Declare(workQueue, quorum)
		lab.Declare(parking, quorum)
		for _, rung := range ladder {
			lab.Declare(rung.queue, retryQueue(rung.pause, workQueue))
		}
		lab.Drain(parking)
		lab.Send(workQueue, messages(sent)...)
		// BREAK
		worker.Handle(workQueue, func(d amqp.Delivery) error {
			worker.events.Record(event.Line{Event: event.Computed, Request: d.MessageId, Reason: "in vain"})
			return then(worker, d)
		})
		w.Until("all are parked, or tried too often", func(l seen) bool {
			return len(l.With(event.Audited).Or(l.AtLeast(tries+1, event.Computed))) == sent
		})
		// OBSERVE  another does what is left
		worker.Die()
		lab.Drain(workQueue)
		v := w.Settle()
		// VERDICT
		v.Hit("messages tried again", len(v.AtLeast(2, event.Computed)) == sent)
		v.Same("each is tried three times", v.AtLeast(tries, event.Computed), v.With(event.Confirmed))
		v.None(fewTries, v.AtLeast(tries+1, event.Computed))
		v.Same("each is parked", v.With(event.Audited), v.With(event.Confirmed))
		v.Note("pauses: %s", pauses(v.Ledger, event.Computed))
	}
}

// climb publishes a message to the next rung, or to the parking queue. Dying in
// between costs a duplicate; the other order would cost the message.
func (p *Peer) climb(d amqp.Delivery) error {
	tries := attempt(d)
	next := parking
	if tries <= len(ladder) {
		next = ladder[tries-1].queue
	}
	again := amqp.Publishing{MessageId: d.MessageId, DeliveryMode: amqp.Persistent, Headers: amqp.Table{triesHeader: int64(tries)}, Body: d.Body}
	if p.Publish("", next, again)[d.MessageId] != session.Confirmed {
		return d.Nack(false, true)
	}
	return d.Ack(false)
}

// pauses is the times between the steps of one kind, of the first request that
// passed them.
func pauses(l *ledger.Ledger, step event.Kind) (pauses []time.Duration) {
	var first event.Line
	for _, line := range l.Lines() {
		if line.Event != step || first.Request != "" && first.Request != line.Request {
			continue
		}
		if first.Request != "" {
			pauses = append(pauses, line.Time.Sub(first.Time).Round(time.Millisecond))
		}
		first = line
	}
	return pauses
}
