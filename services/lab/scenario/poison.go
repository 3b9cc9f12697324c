package scenario

import (
	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/ledger"
	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/topology"
)

// A request kills every server that touches it.
//
// Promise: the delivery limit stops it after limit + 1 deliveries, the auditor
// says why, and at prefetch 1 no other request is harmed. Controls: without a
// limit it must kill more often than that; at prefetch 50 requests that were
// only in the same hands must die with it.
var poison = Scenario{
	Name:    "poison",
	Topic:   "dead letters",
	Broke:   "a request kills every server that takes it",
	Promise: "the limit stops it; no other request is harmed",
	Run:     poisonServers("1"),
	Controls: []Control{{
		Name:   "no delivery limit",
		Shows:  "it goes on killing",
		Breaks: limitStopsIt,
		Change: noDeliveryLimit,
		Run:    poisonServers("1"),
	}, {
		Name:   "prefetch 50",
		Shows:  "innocents in the same hands die with it",
		Breaks: innocentsLive,
		Run:    poisonServers("50"),
	}},
}

const (
	limitStopsIt  = "the limit stops it"
	innocentsLive = "no innocent is harmed"
)

func poisonServers(prefetch string) func(*World) {
	return func(w *World) {
		const deliveries = topology.DeliveryLimit + 1
		// ARRANGE  an auditor, and a server that dies of every sqrt and is started again
		w.Audit(nil)
		server := w.Serve(Settings{"CRASH_ON": "sqrt", "PREFETCH": prefetch, "CONCURRENCY": "1"})
		// BREAK  a sqrt comes, among innocents
		poison := request(contract.Sqrt, "4")
		var queue []amqp.Publishing
		for range 5 {
			queue = append(queue, request(contract.Add, "1", "2"))
		}
		queue = append(queue, poison)
		for range 4 {
			queue = append(queue, request(contract.Add, "1", "2"))
		}
		server.Doomed(deliveries + 2)
		w.Publish(queue...)
		w.Until("the poison is gone, or has killed too often", func(l seen) bool {
			return l.Times(poison.MessageId, event.Audited) > 0 || l.Times(poison.MessageId, event.Delivered) >= deliveries+2
		})
		server.Leave()
		// OBSERVE  a server without that bug does the rest
		w.Serve(nil)
		v := w.Settle()
		// VERDICT
		bad := ledger.SetOf(poison.MessageId)
		v.Hit("a server killed by it", v.Times(poison.MessageId, event.Delivered) > 1)
		v.Count(limitStopsIt, v.Times(poison.MessageId, event.Delivered), deliveries)
		v.Same("the auditor says why", v.Where(func(l event.Line) bool { return l.Event == event.Audited && l.Code == "delivery_limit" }), bad)
		v.None(innocentsLive, v.With(event.Audited).Or(v.Redelivered()).Minus(bad))
		v.Same("every innocent is answered", v.With(event.Answered), v.With(event.Publishing).Minus(bad))
	}
}

// noDeliveryLimit takes the limit away: before 4.0 there is none by default,
// since then the default is 20 and -1 means none.
func noDeliveryLimit(version topology.Version, t *topology.Topology) {
	for _, q := range t.Queues {
		if q.Name != contract.RequestQueue {
			continue
		}
		delete(q.Args, "x-delivery-limit")
		if version.AtLeast(4, 0) {
			q.Args["x-delivery-limit"] = int64(-1)
		}
	}
}
