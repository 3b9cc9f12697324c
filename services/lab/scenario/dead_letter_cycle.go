package scenario

import (
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/ledger"
	"warren.example/lab/substrate"
	"warren.example/messaging/event"
)

// Messages come out of a work queue by dead-lettering, wait in a queue with a TTL,
// and come back by dead-lettering.
//
// Promise: when a worker rejects them they come back, round after round, until it
// does the work. Control: when they have expired in the work queue, too, since no
// worker was there in time, they must be gone on their way back: the broker takes
// a round of expiries alone for a mistake, and drops what comes to a queue where
// it has been, with no more than a line in its log
// (https://www.rabbitmq.com/docs/dlx#routing).
var deadLetterCycle = Scenario{
	Name:    "dead-letter-cycle",
	Topic:   "dead letters",
	Broke:   "messages go round: work, wait, work",
	Promise: "with a rejection in the round they come back",
	Run:     goRound(true),
	Controls: []Control{{
		Name:   "by expiry alone",
		Shows:  "dropped on its way back, nobody is told",
		Breaks: string(ledger.NoLoss),
		Run:    goRound(false),
	}},
}

func goRound(byRejection bool) func(*World) {
	return func(w *World) {
		const sent, rounds = 2, 3
		// ARRANGE  two queues, each the other's dead-letter queue
		const wait = "lesson.wait"
		lab := w.Broker.Connect()
		lab.Declare(wait, retryQueue(300*time.Millisecond, workQueue))
		args := retryQueue(0, wait)
		if !byRejection {
			args = retryQueue(100*time.Millisecond, wait)
		}
		lab.Declare(workQueue, args)
		lab.Send(workQueue, messages(sent)...)
		// BREAK  no worker is there until the control's have expired
		if !byRejection {
			w.Broker.UntilQueue(workQueue, "they wait", func(q substrate.QueueState) bool { return q.Ready == 0 })
		}
		// OBSERVE  one rejects what comes, and does the work after three rounds of a rejection and an expiry each
		lab.Handle(workQueue, func(d amqp.Delivery) error {
			if attempt(d) <= 2*rounds {
				return d.Reject(false)
			}
			lab.worked(d)
			return d.Ack(false)
		})
		v := w.Settle()
		// VERDICT
		v.Hit("messages gone round", len(v.AtLeast(rounds+1, event.Delivered)) == sent)
		v.Same("they come back", v.With(event.Audited), v.With(event.Confirmed))
	}
}

// retryQueue is the arguments of a queue whose messages go on to another when they
// are rejected, or when they expire; 0 means never.
func retryQueue(ttl time.Duration, next string) amqp.Table {
	args := amqp.Table{"x-queue-type": "quorum", "x-dead-letter-exchange": "", "x-dead-letter-routing-key": next}
	if ttl > 0 {
		args["x-message-ttl"] = ttl.Milliseconds()
	}
	return args
}
