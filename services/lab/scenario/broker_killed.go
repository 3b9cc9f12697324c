package scenario

import (
	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/ledger"
	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/fault"
	"warren.example/messaging/topology"
)

// Every broker node dies by SIGKILL at once with requests in its queue and in a
// server's hands and with callers waiting, and is started again.
//
// Promise: what was persistent, in a durable queue and confirmed is still
// there; callers that were waiting get their answers without noticing; and the
// server settles nothing on its new connection that came on the old one.
// Control: transient messages in a classic queue, durable though the queue is
// and confirmed though they were, must be gone.
var brokerKilled = Scenario{
	Name:    "broker-killed",
	Topic:   "persistence",
	Broke:   "broker: SIGKILL of its VM, and a restart",
	Promise: "every confirmed request is still there",
	Alone:   true,
	Run:     killBroker(amqp.Persistent),
	Controls: []Control{{
		Name:   "transient, classic queue",
		Shows:  "confirmed requests are gone",
		Breaks: string(ledger.NoLoss),
		Change: classicQueue,
		Run:    killBroker(amqp.Transient),
	}},
}

func killBroker(mode uint8) func(*World) {
	return func(w *World) {
		const strangers, calls = 50, 20
		// ARRANGE  a server with ten requests in hand, held; the others in the queue; callers waiting
		server := w.Serve(Settings{"PREFETCH": "10", "CONCURRENCY": "1"})
		server.HoldAt(fault.AfterWork, 1)
		var requests []amqp.Publishing
		for range strangers {
			r := request(contract.Add, "1", "2")
			r.DeliveryMode = mode
			requests = append(requests, r)
		}
		w.Publish(requests...)
		w.Load("--count", "20", "--in-flight", "20", "--timeout", "60s")
		w.Until("all are confirmed", passed(event.Confirmed, strangers+calls))
		w.Until("a server has ten in hand", passed(event.Delivered, 10))
		// BREAK
		w.Broker.Kill()
		w.Broker.Start()
		// OBSERVE  the server comes back by itself and takes what is left in the queue
		v := w.Settle()
		// VERDICT
		// The epoch counts connections: an answer on the second was asked for on the first.
		v.Hit("an answer after a reconnect", len(v.Where(func(l event.Line) bool { return l.Event == event.Answered && l.Epoch > 1 })) > 0)
		v.Hit("a request delivered again", len(v.Redelivered()) > 0)
		v.Same("everything confirmed is answered", v.With(event.ReplyConfirmed, event.ReplyReturned), v.With(event.Confirmed))
		v.Count("every caller is answered", min(len(v.With(event.Answered)), calls), calls)
	}
}

// classicQueue keeps the requests on one node, durable all the same.
func classicQueue(_ topology.Version, t *topology.Topology) {
	for i := range t.Queues {
		if t.Queues[i].Name == contract.RequestQueue {
			t.Queues[i].Args = amqp.Table{"x-queue-type": "classic"}
		}
	}
}
