package scenario

import (
	"slices"

	"warren.example/lab/ledger"
	"warren.example/lab/substrate"
	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/topology"
)

// Somebody deletes the dead-letter queue, which takes its binding along. Requests
// are rejected while the dead-letter exchange leads nowhere. Then the queue is
// declared and bound again.
//
// Promise: with the dead-letter strategy at-least-once they wait in the request
// queue, where no consumer sees them, and the auditor has them on record when its
// queue is back (https://www.rabbitmq.com/docs/quorum-queues#dead-lettering). The
// broker does not notice that it is back: it tries again after
// dead_letter_worker_publisher_confirm_timeout, three minutes by default, three
// seconds here. Control: with at-most-once, the default, they must be gone: a dead
// letter that is routed to no queue is no error.
var deadQueueAway = Scenario{
	Name:    "dead-queue-away",
	Topic:   "dead letters",
	Broke:   "the dead-letter queue is deleted, for a while",
	Promise: "what is rejected meanwhile is audited later",
	Run:     rejectWithoutDeadQueue,
	Controls: []Control{{
		Name:   "at-most-once",
		Shows:  "the default: gone, and nobody is told",
		Breaks: string(ledger.NoLoss),
		Change: atMostOnce,
		Run:    rejectWithoutDeadQueue,
	}},
}

func rejectWithoutDeadQueue(w *World) {
	const sent = 3
	// ARRANGE  an auditor, and somebody with requests in hand
	w.Audit(nil)
	lab := w.Broker.Connect()
	lab.Send(contract.RequestQueue, messages(sent)...)
	inHand := lab.Take(contract.RequestQueue, sent, false).Next(sent)
	w.Broker.UntilQueue(contract.RequestQueue, "all are in hand", func(q substrate.QueueState) bool { return q.Unacked == sent })
	// BREAK  the dead-letter queue is deleted, and then all are rejected
	_, err := lab.QueueDelete(contract.DeadLetterQueue, false, false, false)
	w.must(err, "delete %s", contract.DeadLetterQueue)
	w.Until("the auditor has lost its queue", cancelled)
	for _, job := range inHand {
		w.must(job.Message.Reject(false), "reject")
	}
	w.Broker.UntilQueue(contract.RequestQueue, "all are rejected", func(q substrate.QueueState) bool { return q.Unacked == 0 })
	// OBSERVE  the queue is declared again, and bound; nobody restarts the auditor
	again := topology.For(w.broker.Version())
	again.Queues = slices.DeleteFunc(again.Queues, func(q topology.Queue) bool { return q.Name != contract.DeadLetterQueue })
	w.must(again.Declare(lab.Conn), "declare %s again", contract.DeadLetterQueue)
	v := w.Settle()
	// VERDICT
	v.Hit("requests rejected", len(v.With(event.Delivered)) == sent)
	v.Same("every request is audited", v.With(event.Audited), v.With(event.Confirmed))
}

// atMostOnce takes away that the request queue keeps a dead letter until another
// queue has it.
func atMostOnce(_ topology.Version, t *topology.Topology) {
	for _, q := range t.Queues {
		if q.Name == contract.RequestQueue {
			delete(q.Args, "x-dead-letter-strategy")
		}
	}
}
