package scenario

import (
	"errors"
	"fmt"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/ledger"
	"warren.example/messaging/event"
	"warren.example/messaging/session"
)

// The broker closes a worker's connection while it works; its client comes back
// by itself, the worker acks what it has finished meanwhile, and dies.
//
// Promise: our session refuses that ack, because the delivery belongs to a
// connection that is gone, and every message is worked on. Control: with the
// client library's own recovery, where the channel is the same and delivery tags
// begin at 1 again, the ack must remove a message that nobody has worked on.
var staleAck = Scenario{
	Name:    "stale-ack",
	Topic:   "acknowledgements",
	Broke:   "a connection, under a worker that acks late",
	Promise: "the late ack is refused, and nothing is lost",
	Run:     ackLate(func(w *World) *Worker { return w.Broker.Take(workQueue, 10) }),
	Controls: []Control{{
		Name:   "the library's recovery",
		Shows:  "the ack removes another message",
		Breaks: string(ledger.NoLoss),
		Run:    ackLate(func(w *World) *Worker { return w.Broker.ConnectRecovering().Take(workQueue, 10, false) }),
	}},
}

func ackLate(begin func(*World) *Worker) func(*World) {
	return func(w *World) {
		const sent, inHand, done = 20, 10, 5
		// ARRANGE  a worker with ten of twenty messages in hand has acked five, and the next five have come
		_, worker, jobs := handOut(w, begin, sent, inHand)
		for _, j := range jobs[:done] {
			worker.Work(j)
			w.must(j.Ack(), "ack")
		}
		worker.Next(done)
		// BREAK  its connection ends while it works on the sixth; it has a new one, with tags 1 to 10, when the sixth is done
		w.Broker.Cut()
		worker.Next(inHand)
		worker.Work(jobs[done])
		late := jobs[done].Ack()
		worker.Die()
		// OBSERVE  another takes what is left
		w.Broker.Connect().Drain(workQueue)
		v := w.Settle()
		// VERDICT
		v.Hit("messages delivered again", len(v.Redelivered()) >= inHand)
		v.That("the late ack is refused", errors.Is(late, session.ErrStale), "it was answered %v", late)
		v.Same("every message is worked on", v.With(event.Audited), v.With(event.Confirmed))
	}
}

// handOut sends messages to the work queue, and waits until a worker has so many
// of them in hand.
func handOut(w *World, begin func(*World) *Worker, sent, inHand int) (*Peer, *Worker, []Job) {
	lab := w.Broker.Connect()
	lab.Declare(workQueue, quorum)
	lab.Send(workQueue, messages(sent)...)
	worker := begin(w)
	return lab, worker, worker.Next(inHand)
}

// workQueue is for stories that need no server.
const workQueue = "lesson.work"

var quorum = amqp.Table{"x-queue-type": "quorum"}

// messages are so many that say nothing, persistent, each with an id.
func messages(n int) []amqp.Publishing {
	all := make([]amqp.Publishing, n)
	for i := range all {
		all[i] = amqp.Publishing{
			MessageId: fmt.Sprintf("m%d-%s", i+1, uuid.NewString()[:8]), DeliveryMode: amqp.Persistent, Body: []byte("work"),
		}
	}
	return all
}
