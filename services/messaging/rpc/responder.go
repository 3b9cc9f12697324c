package rpc

import (
	"context"
	"errors"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/session"
)

// Responder publishes replies to calc.reply and nowhere else. A reply-to names
// a routing key there, never a queue, so that a forged one reaches nobody;
// contract.Validate has compared it with the user-id that the broker enforces.
type Responder struct {
	publisher *session.Publisher
	events    *event.Recorder
}

// NewResponder replies through publisher, which must be of contract.ReplyExchange.
func NewResponder(publisher *session.Publisher, events *event.Recorder) *Responder {
	return &Responder{publisher, events}
}

// maxReplyNacks is how often a reply is offered to a broker that refuses it. A
// reply queue is on the node that its caller was connected to, so whoever lost
// the one lost the other, and asks again on a new connection. Until the node is
// back the broker nacks every reply to it, and takes seconds for each, which the
// channel's others wait for, too (4.3.6). Without an end they would fill a
// server's prefetch, and nobody would be answered.
const maxReplyNacks = 2

// Reply publishes the reply to d and returns once its fate is known:
//
//	Confirmed  the caller's reply queue has it: d may be acked
//	Returned   the caller is gone, and that is on record: d may be acked
//	Nacked     the node with its reply queue is lost, likewise
//	Unknown    ctx or d's epoch ended first: settle nothing, d comes again
//
// Until then it publishes again whatever is not known to have arrived, because
// a second reply is dropped by the caller while a missing one is a timeout.
func (r *Responder) Reply(ctx context.Context, d *session.Delivery, reply contract.Reply) (session.Outcome, error) {
	m := message(d, reply)
	r.record(event.Replying, d, reply, nil)
	nacks := 0
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		outcome, err := r.publisher.Publish(ctx, m)
		switch outcome {
		case session.Confirmed:
			r.record(event.ReplyConfirmed, d, reply, nil)
			return outcome, nil
		case session.Returned:
			r.record(event.ReplyReturned, d, reply, err)
			r.record(event.Orphaned, d, reply, errors.New("nobody is bound to "+d.ReplyTo))
			return outcome, fmt.Errorf("reply to %s: %w", d.ReplyTo, err)
		case session.Nacked:
			if nacks++; nacks == maxReplyNacks {
				r.record(event.Orphaned, d, reply, fmt.Errorf("a queue bound to %s is away: %w", d.ReplyTo, err))
				return outcome, fmt.Errorf("reply to %s: %w", d.ReplyTo, err)
			}
			wait = time.Second // the other nodes may be about to notice
		}
		select {
		case <-time.After(wait):
		case <-d.Ended():
			return session.Unknown, fmt.Errorf("reply to %s: %w: %w", d.ReplyTo, session.ErrStale, err)
		case <-ctx.Done():
			return session.Unknown, fmt.Errorf("reply to %s: %w: %w", d.ReplyTo, ctx.Err(), err)
		}
	}
}

// ReplyUnconfirmed hands the reply over and learns nothing more. It is here to
// be watched losing replies.
func (r *Responder) ReplyUnconfirmed(ctx context.Context, d *session.Delivery, reply contract.Reply) {
	r.record(event.Replying, d, reply, nil)
	r.publisher.Send(ctx, message(d, reply), ignored{})
}

type ignored struct{}

func (ignored) Written(uint64)                         {}
func (ignored) Settled(session.Outcome, uint64, error) {}

func message(d *session.Delivery, reply contract.Reply) session.Message {
	m := session.Message{
		Exchange: contract.ReplyExchange, Key: d.ReplyTo,
		Mandatory: true, // 312 is how a server learns that its caller is gone
		Publishing: amqp.Publishing{
			CorrelationId: d.CorrelationId,
			Type:          contract.ReplyType,
			ContentType:   contract.ContentType,
			// Transient: the reply queue dies with its connection, so a disk has
			// nothing to add.
			DeliveryMode: amqp.Transient,
			Body:         contract.Encode(reply),
		},
	}
	if reply.Error != nil {
		m.Headers = amqp.Table{contract.HeaderErrorCode: string(reply.Error.Code)}
	}
	return m
}

func (r *Responder) record(k event.Kind, d *session.Delivery, reply contract.Reply, err error) {
	if r.events == nil {
		return
	}
	line := event.Line{Event: k, Request: d.MessageId, Epoch: d.Epoch(), Tag: d.DeliveryTag, Result: reply.Result}
	if reply.Error != nil {
		line.Code = string(reply.Error.Code)
	}
	if err != nil {
		line.Reason = err.Error()
	}
	r.events.Record(line)
}
