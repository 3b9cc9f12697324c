package scenario

import (
	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/messaging/event"
)

// Two callers ask, and the connection of one is cut while a server works for
// both.
//
// Promise: where a reply goes through an exchange to a queue of the caller's own,
// mandatory, the one to the gone caller is returned and the other is not.
// Control: with RabbitMQ's direct reply-to, which is faster because there is no
// queue, the server must learn nothing from either: up to 4.1 the broker returns
// both replies, though the one has arrived; since 4.2 it confirms both and drops
// the other without a word. There a server can only ask, with a passive declare of
// the reply-to, and be wrong a moment later.
var directReplyTo = Scenario{
	Name:    "direct-reply-to",
	Topic:   "request and reply",
	Broke:   "the connection of one of two callers",
	Promise: "the server learns which reply reached nobody",
	Run:     replyToTheGone(replyExchange, (*Peer).ownReplyQueue),
	Controls: []Control{{
		Name:   "direct reply-to",
		Shows:  "of both replies it is told the same",
		Breaks: knowsTheGone,
		Run:    replyToTheGone("", (*Peer).directReplies),
	}},
}

const (
	knowsTheGone  = "what is returned reached nobody"
	replyExchange = "lesson.replies"
)

// ownReplyQueue makes a reply queue that ends with the connection, and returns
// its key.
func (p *Peer) ownReplyQueue() string {
	const exclusive = true
	queue := "lesson.reply." + uuid.NewString()
	_, err := p.QueueDeclare(queue, false, true, exclusive, false, nil)
	p.w.must(err, "declare %s", queue)
	p.w.must(p.QueueBind(queue, queue, replyExchange, false, nil), "bind %s", queue)
	p.Listen(queue)
	return queue
}

// directReplies has no queue: the broker remembers who asked on this channel.
func (p *Peer) directReplies() string {
	const replyTo = "amq.rabbitmq.reply-to"
	p.Listen(replyTo)
	return replyTo
}

func replyToTheGone(exchange string, replyTo func(*Peer) string) func(*World) {
	return func(w *World) {
		// ARRANGE  two callers, and a server with both questions in hand
		lab := w.Broker.Connect()
		lab.Declare(workQueue, quorum)
		lab.DeclareExchange(replyExchange, amqp.ExchangeDirect, nil)
		var callers []*Peer
		for _, m := range messages(2) {
			caller := w.Broker.Connect()
			m.CorrelationId, m.ReplyTo = m.MessageId, replyTo(caller)
			caller.Send(workQueue, m)
			callers = append(callers, caller)
		}
		jobs := lab.Take(workQueue, 2, false).Next(2)
		// BREAK  the first caller's connection, and the broker has noticed
		callers[0].Die()
		lab.Gone(jobs[0].Message.ReplyTo)
		// OBSERVE
		for _, j := range jobs {
			lab.Answer(j, exchange, "done")
		}
		v := w.Settle()
		// VERDICT
		unanswered := v.With(event.Computed).Minus(v.With(event.Answered))
		v.Hit("a reply to a caller who is gone, and one to a caller who is there", len(unanswered) == 1 && unanswered.Has(jobs[0].ID))
		v.Same(knowsTheGone, v.With(event.ReplyReturned), unanswered)
		v.Note("returned: %d of 2 replies", len(v.With(event.ReplyReturned)))
	}
}
