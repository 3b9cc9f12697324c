package scenario

import (
	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/ledger"
	"warren.example/lab/substrate"
	"warren.example/messaging/contract"
	"warren.example/messaging/event"
)

// Messages are rejected while the dead-letter exchange of their queue does not
// exist: somebody deleted it, or misspelled it. Later it is declared again. The
// auditor is told what the publisher wrote, and says what never came to it.
//
// Promise: with the dead-letter strategy at-least-once, which needs a quorum
// queue that rejects publishes when it is full, they wait in their queue and are
// dead-lettered as soon as that can be done
// (https://www.rabbitmq.com/docs/quorum-queues#dead-lettering).
// Control: with a queue that drops its head when it is full the broker falls back
// to at-most-once, the default: they must be gone, and the auditor's
// reconciliation must name them, all and no others: nobody else does.
var dlxMissing = Scenario{
	Name:    "dlx-missing",
	Topic:   "dead letters",
	Broke:   "the dead-letter exchange, for a while",
	Promise: "what is rejected meanwhile waits for it",
	Run:     rejectToNowhere("reject-publish"),
	Controls: []Control{{
		Name:   "overflow drop-head",
		Shows:  "at-most-once after all: gone; reconciling tells",
		Breaks: string(ledger.NoLoss),
		Run:    rejectToNowhere("drop-head"),
	}},
}

func rejectToNowhere(overflow string) func(*World) {
	return func(w *World) {
		const sent = 3
		const exchange = "lesson.dlx"
		// ARRANGE  a queue that names an exchange that is not there, and somebody with its messages in hand
		auditor := w.Audit(nil)
		lab := w.Broker.Connect()
		lab.Declare(workQueue, amqp.Table{
			"x-queue-type": "quorum", "x-dead-letter-exchange": exchange, "x-dead-letter-strategy": "at-least-once", "x-overflow": overflow,
		})
		lab.Send(workQueue, messages(sent)...)
		inHand := lab.Take(workQueue, sent, false).Next(sent)
		w.Broker.UntilQueue(workQueue, "all are in hand", func(q substrate.QueueState) bool { return q.Unacked == sent })
		// BREAK
		for _, job := range inHand {
			w.must(job.Message.Reject(false), "reject")
		}
		w.Broker.UntilQueue(workQueue, "all are rejected", func(q substrate.QueueState) bool { return q.Unacked == 0 })
		// OBSERVE  the exchange is declared, and leads to the auditor
		lab.DeclareExchange(exchange, amqp.ExchangeFanout, nil)
		w.must(lab.QueueBind(contract.DeadLetterQueue, "", exchange, false, nil), "bind %s", contract.DeadLetterQueue)
		gaps := auditor.Reconcile()
		v := w.Settle()
		// VERDICT
		v.Hit("messages rejected", len(v.With(event.Delivered)) == sent)
		v.Same("every message is dead-lettered", v.With(event.Audited), v.With(event.Confirmed))
		v.Always("the reconciliation names what is lost", gaps, v.Lost())
		v.Note("the auditor names %d of %d", len(gaps), sent)
	}
}
