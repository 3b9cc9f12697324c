package scenario

import (
	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/ledger"
	"warren.example/messaging/session"
)

// Messages are published under a key to which no queue is bound. The broker
// confirms them all: a confirm says that it has done what was asked, and nothing
// was asked for a message without a queue.
//
// Promise: what is mandatory is returned before its confirm, and what an
// alternate exchange catches is kept, so no message is lost unseen.
// Control: with neither the confirmed messages must be gone without a word.
var unroutable = Scenario{
	Name:    "unroutable",
	Topic:   "publishing",
	Broke:   "a key to which no queue is bound",
	Promise: "returned or kept, never lost unseen",
	Run:     publishToNobody(true),
	Controls: []Control{{
		Name:   "neither",
		Shows:  "confirmed, and gone without a word",
		Breaks: string(ledger.NoLoss),
		Run:    publishToNobody(false),
	}},
}

func publishToNobody(careful bool) func(*World) {
	return func(w *World) {
		// ARRANGE  an exchange without bindings, and one whose alternate keeps what it cannot route
		const plain, backed, alternate = "lesson.plain", "lesson.backed", "lesson.alternate"
		lab := w.Broker.Connect()
		lab.DeclareExchange(plain, amqp.ExchangeDirect, nil)
		lab.DeclareExchange(alternate, amqp.ExchangeFanout, nil)
		lab.DeclareExchange(backed, amqp.ExchangeDirect, amqp.Table{"alternate-exchange": alternate})
		lab.Declare(workQueue, quorum)
		w.must(lab.QueueBind(workQueue, "", alternate, false, nil), "bind %s", workQueue)
		// BREAK  to each, mandatory and not
		const each = 3
		returned := lab.Publish(plain, "nobody", messages(each)...)
		caught := lab.Publish(backed, "nobody", messages(each)...)
		lab.Mandatory = false
		unseen := lab.Publish(backed, "nobody", messages(each)...)
		if !careful {
			unseen = lab.Publish(plain, "nobody", messages(each)...)
		}
		// OBSERVE
		lab.Drain(workQueue)
		v := w.Settle()
		// VERDICT
		v.Hit("messages confirmed that no key led anywhere", all(unseen, session.Confirmed))
		v.That("mandatory is returned", all(returned, session.Returned), "%v", returned)
		v.That("an alternate exchange counts as a route", all(caught, session.Confirmed), "%v", caught)
	}
}

func all(fates map[string]session.Outcome, want session.Outcome) bool {
	for _, fate := range fates {
		if fate != want {
			return false
		}
	}
	return len(fates) > 0
}
