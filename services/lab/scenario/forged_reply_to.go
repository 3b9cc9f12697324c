package scenario

import (
	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/ledger"
	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/fault"
)

// A thief asks, and has the answers sent to others. A reply-to is text that the
// caller writes; the broker looks at the user-id alone, which must be the name
// under which it has logged in.
//
// Promise: our server replies to a key that belongs to the user-id, through an
// exchange where a key leads to nobody else's queue; a forged one is
// dead-lettered and not run, one that leads nowhere is returned, and the victim
// hears what it has asked for. Control: a server that publishes to whatever queue
// reply-to names, as the default exchange lets it, must hand the victim an answer
// that it never asked for.
//
// What this does not keep apart is two processes of one user: whoever may log in
// as the victim may have its replies.
var forgedReplyTo = Scenario{
	Name:    "forged-reply-to",
	Topic:   "request and reply",
	Broke:   "requests with somebody else's reply-to",
	Promise: "no caller hears what it has not asked for",
	Run:     forge(serveByKey, func(_, key string) string { return key }),
	Controls: []Control{{
		Name:   "the default exchange",
		Shows:  "the victim's queue takes a stranger's answer",
		Breaks: string(ledger.Origin),
		Run:    forge(serveByQueue, func(queue, _ string) string { return queue }),
	}},
}

// forgeries are the ways of a thief who knows the victim's queue, its key, and
// the question that it has asked.
var forgeries = []struct {
	kind  string
	known bool // the server can know that it is forged
	spoil func(p *amqp.Publishing, victim amqp.Publishing, queue, key string)
}{
	{"the victim's key", true, func(p *amqp.Publishing, _ amqp.Publishing, _, key string) { p.ReplyTo = key }},
	{"and no user-id", true, func(p *amqp.Publishing, _ amqp.Publishing, _, key string) { p.ReplyTo, p.UserId = key, "" }},
	{"and its correlation-id", true, func(p *amqp.Publishing, victim amqp.Publishing, _, key string) {
		p.ReplyTo, p.CorrelationId = key, victim.CorrelationId
	}},
	{"the victim's queue", true, func(p *amqp.Publishing, _ amqp.Publishing, queue, _ string) { p.ReplyTo = queue }},
	{"the dead-letter queue", true, func(p *amqp.Publishing, _ amqp.Publishing, _, _ string) { p.ReplyTo = contract.DeadLetterQueue }},
	{"nobody's key, and the victim's correlation-id", false, func(p *amqp.Publishing, victim amqp.Publishing, _, _ string) {
		p.ReplyTo, p.CorrelationId = contract.ReplyKey(contract.UserAuditor, "nobody"), victim.CorrelationId
	}},
}

func forge(serve func(*World) (goOn func()), address func(queue, key string) string) func(*World) {
	return func(w *World) {
		// ARRANGE  a victim that waits for an answer, and a thief with another user's password
		w.Audit(nil)
		goOn := serve(w)
		victim, queue, key := w.Broker.Caller(contract.UserClient, contract.ClientReplyQueue)
		thief, ownQueue, ownKey := w.Broker.Caller(contract.UserAuditor, contract.AuditorReplyQueue)
		victim.Listen(queue)
		thief.Listen(ownQueue)
		asked := request(contract.Add, "1", "2")
		asked.ReplyTo = address(queue, key)
		victim.Publish(contract.RequestExchange, contract.RequestKey, asked)
		w.Until("the victim waits", func(l seen) bool { return l.With(event.Delivered).Has(asked.MessageId) })
		// BREAK  a request for each way, and one that asks for itself
		own := request(contract.Add, "3", "4")
		own.UserId, own.ReplyTo = contract.UserAuditor, address(ownQueue, ownKey)
		all, forged, known := []amqp.Publishing{own}, ledger.Set{}, ledger.Set{}
		for _, f := range forgeries {
			p := request(contract.Add, "5", "6")
			p.UserId = contract.UserAuditor
			f.spoil(&p, asked, queue, key)
			all = append(all, p)
			forged[p.MessageId] = struct{}{}
			if f.known {
				known[p.MessageId] = struct{}{}
			}
		}
		thief.Publish(contract.RequestExchange, contract.RequestKey, all...)
		goOn()
		// OBSERVE
		v := w.Settle()
		// VERDICT
		v.Hit("forged requests in a server's hands", len(v.With(event.Delivered).And(forged)) == len(forgeries))
		v.Same("who asks for itself is answered", v.With(event.Answered), ledger.SetOf(asked.MessageId, own.MessageId))
		v.Same("what is forged is dead-lettered", v.With(event.Audited), known)
		v.None("and not run", v.With(event.Computed).And(known))
		v.Same("what leads nowhere is returned, and on record", v.With(event.Orphaned), forged.Minus(known))
	}
}

// serveByKey is our server; it holds the victim's answer until the thief has had its.
func serveByKey(w *World) (goOn func()) {
	server := w.Serve(nil)
	server.HoldAt(fault.AfterWork, 1)
	return func() {
		w.Until("the thief's requests are settled", func(l seen) bool { return len(l.With(event.Acked, event.DeadLettered)) == len(forgeries)+1 })
		server.Release()
	}
}

// serveByQueue replies as the client library's examples do.
func serveByQueue(w *World) (goOn func()) {
	lab := w.Broker.Connect()
	worker := lab.Take(contract.RequestQueue, most, false)
	return func() {
		jobs := worker.Next(1 + 1 + len(forgeries))
		for _, j := range append(jobs[1:], jobs[0]) { // the victim's, who was first, is the last
			lab.Answer(j, "", "3")
		}
	}
}
