package scenario

import (
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/session"
)

// Messages are worth something only now: one that nobody is ready for must not
// wait in its queue, and not be gone without a trace.
//
// Promise: with an expiration of 0 a ready consumer has them, and without one they
// die at once of "expired", and the auditor has them on record. Control: the flag
// of AMQP for this, immediate, must cost the connection (540): RabbitMQ has not
// known it since 3.0, and of what is in flight beside it nobody knows anything.
//
// https://www.rabbitmq.com/docs/ttl: a TTL of 0 expires a message upon reaching a
// queue unless it can be delivered to a consumer immediately.
var immediate = Scenario{
	Name:    "immediate",
	Topic:   "publishing",
	Broke:   "nobody is ready for a message",
	Promise: "expiration 0: delivered now, or on record",
	Run:     nowOrNever(func(m *amqp.Publishing, _ *Peer) { m.Expiration = "0" }),
	Controls: []Control{{
		Name:   "the immediate flag",
		Shows:  "540: the connection ends, nothing is known",
		Breaks: nowOrOnRecord,
		Run:    nowOrNever(func(_ *amqp.Publishing, p *Peer) { p.Immediate = true }),
	}},
}

const nowOrOnRecord = "each is delivered or on record"

func nowOrNever(now func(*amqp.Publishing, *Peer)) func(*World) {
	return func(w *World) {
		const each = 3
		const nobody, consumer = ".nobody", ".consumer"
		// ARRANGE  for each type of queue one with a consumer, and one without
		w.Audit(nil)
		lab, sender := w.Broker.Connect(), w.Broker.Connect()
		var queues []string
		for _, kind := range []string{"classic", "quorum"} {
			args := amqp.Table{"x-queue-type": kind, "x-dead-letter-exchange": contract.DeadLetterExchange}
			for _, who := range []string{nobody, consumer} {
				queue := "lesson." + kind + who
				lab.Declare(queue, args)
				queues = append(queues, queue)
				if who == consumer {
					lab.Drain(queue)
				}
			}
		}
		// BREAK
		closed := sender.Conn.NotifyClose(make(chan *amqp.Error, 1))
		fates := map[string]map[string]session.Outcome{}
		for _, queue := range queues {
			some := messages(each)
			for i := range some {
				now(&some[i], sender)
			}
			fates[queue] = sender.Publish("", queue, some...)
		}
		// OBSERVE
		v := w.Settle()
		why := <-closed // nil of a connection that was closed in peace
		// VERDICT
		expired := v.Where(func(l event.Line) bool { return l.Event == event.Audited && l.Code == "expired" })
		delivered := v.Where(func(l event.Line) bool { return l.Event == event.Audited && l.Code == "" })
		v.Hit("messages for a consumer, and for nobody", len(v.With(event.Publishing)) == 4*each)
		v.Same(nowOrOnRecord, expired.Or(delivered), v.With(event.Publishing))
		v.That("nobody loses the connection for it", why == nil, "%v", why)
		for _, queue := range queues {
			ids := idsOf(fates[queue])
			v.Note("%s: %s, %d delivered, %d expired", strings.TrimPrefix(queue, "lesson."), tally(fates[queue]), len(delivered.And(ids)), len(expired.And(ids)))
			if strings.HasSuffix(queue, consumer) {
				v.Same("a ready consumer has it", delivered.And(ids), ids)
			}
		}
	}
}
