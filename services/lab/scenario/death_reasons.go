package scenario

import (
	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/ledger"
	"warren.example/messaging/contract"
	"warren.example/messaging/event"
)

// Messages die of each of the four reasons: rejected, expired, pushed out of a
// full queue, and delivered more often than the limit allows.
//
// Promise: each is in the dead-letter queue, and the auditor has its reason on
// record. Control: where the dead-letter exchange does not exist, the same
// messages must be gone without an error to anybody.
var deathReasons = Scenario{
	Name:    "death-reasons",
	Topic:   "dead letters",
	Broke:   "messages die, of each of the four reasons",
	Promise: "each is audited, with its reason",
	Run:     dieFourWays(contract.DeadLetterExchange),
	Controls: []Control{{
		Name:   "no dead-letter exchange",
		Shows:  "gone, and nobody is told",
		Breaks: string(ledger.NoLoss),
		Run:    dieFourWays("lesson.nowhere"),
	}},
}

func dieFourWays(exchange string) func(*World) {
	return func(w *World) {
		// ARRANGE  the auditor, and a queue for each way to die
		w.Audit(nil)
		lab := w.Broker.Connect()
		queue := func(reason, kind string, args amqp.Table) string {
			args["x-queue-type"], args["x-dead-letter-exchange"] = kind, exchange
			lab.Declare("lesson."+reason, args)
			return "lesson." + reason
		}
		rejected := queue("rejected", "classic", amqp.Table{})
		expired := queue("expired", "classic", amqp.Table{"x-message-ttl": int64(100)})
		maxlen := queue("maxlen", "classic", amqp.Table{"x-max-length": int64(1)})
		limited := queue("delivery_limit", "quorum", amqp.Table{"x-delivery-limit": int64(1)})
		all := messages(5)
		want := map[string]string{all[0].MessageId: "rejected", all[1].MessageId: "expired", all[2].MessageId: "maxlen", all[4].MessageId: "delivery_limit"}
		// BREAK
		lab.Send(rejected, all[0])
		lab.Send(expired, all[1])
		lab.Send(maxlen, all[2], all[3]) // the second pushes the first out, and stays
		lab.Send(limited, all[4])
		lab.Refuse(rejected, 1, func(d amqp.Delivery) error { return d.Reject(false) })
		lab.Refuse(limited, 2, func(d amqp.Delivery) error { return d.Reject(true) }) // once more than the limit
		// OBSERVE
		lab.Drain(maxlen)
		v := w.Settle()
		// VERDICT
		v.Hit("five messages confirmed", len(v.With(event.Confirmed)) == len(all))
		audited := v.Where(func(l event.Line) bool { return l.Event == event.Audited && l.Code != "" })
		v.Same("each is audited", audited, idsOf(want))
		v.None("with its reason", v.Where(func(l event.Line) bool { return l.Event == event.Audited && l.Code != want[l.Request] }))
	}
}

func idsOf[T any](of map[string]T) ledger.Set {
	ids := ledger.Set{}
	for id := range of {
		ids[id] = struct{}{}
	}
	return ids
}
