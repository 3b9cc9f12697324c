package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/messaging/contract"
)

// raw is amqp091-go used directly and well: one channel, calls pipelined,
// confirms read by one listener, acks batched. It reconnects never.
type raw struct {
	safe       bool // durable quorum queue, persistent, mandatory, confirms on both sides
	replyQueue bool // an exclusive reply queue instead of direct reply-to
	contract   bool // all properties that the suite's contract asks for
}

var (
	unsafe         = raw{}
	safe           = raw{safe: true}
	safeReplyQueue = raw{safe: true, replyQueue: true}
	safeContract   = raw{safe: true, replyQueue: true, contract: true}
)

var (
	errReturned = errors.New("request returned: no queue")
	errNacked   = errors.New("publish nacked")
	errEnded    = errors.New("deliveries ended")
)

func declare(ch *amqp.Channel, queue string, quorum bool) error {
	var err error
	if quorum {
		_, err = ch.QueueDeclare(queue, true, false, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum})
	} else {
		_, err = ch.QueueDeclare(queue, false, true, true, false, nil) // lives and dies with the server's connection
	}
	if err != nil {
		return fmt.Errorf("declare queue %s: %w", queue, err)
	}
	return nil
}

func (o raw) serve(ctx context.Context, b broker, queue string, ready func()) error {
	conn, err := amqp.Dial(b.admin)
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("open channel: %w", err)
	}
	if err := declare(ch, queue, o.safe); err != nil {
		return err
	}
	defer ch.QueueDelete(queue, false, false, false)
	if err := ch.Qos(prefetch, 0, false); err != nil {
		return fmt.Errorf("qos: %w", err)
	}
	in, err := ch.Consume(queue, "", false, false, false, false, nil)
	if err != nil {
		return fmt.Errorf("consume %s: %w", queue, err)
	}
	failed := make(chan error, 2)
	acks := newAcker(ch)
	defer acks.close()
	if o.safe {
		if err := ch.Confirm(false); err != nil {
			return fmt.Errorf("confirm: %w", err)
		}
		// One goroutine replies, so the k-th reply answers the k-th delivery, and
		// the client library reports confirms in order: a confirm's number is the
		// delivery tag up to which everything may be acked.
		go func(confirms <-chan amqp.Confirmation) {
			for c := range confirms {
				if !c.Ack {
					failed <- errNacked
					return
				}
				acks.upTo(c.DeliveryTag)
			}
		}(ch.NotifyPublish(make(chan amqp.Confirmation, 2*prefetch)))
	}
	go func() {
		for d := range in {
			body, err := handle(d.Body)
			if err == nil {
				m := amqp.Publishing{ContentType: contract.ContentType, CorrelationId: d.CorrelationId, Body: body}
				if o.contract {
					m.Type = contract.ReplyType
				}
				err = ch.PublishWithContext(ctx, "", d.ReplyTo, false, false, m)
			}
			if err != nil {
				failed <- err
				return
			}
			if !o.safe {
				acks.upTo(d.DeliveryTag)
			}
		}
		failed <- errEnded
	}()
	ready()
	select {
	case <-ctx.Done():
		return nil
	case err := <-failed:
		return err
	}
}

// acker acks with multiple=true from its own goroutine: acks gather under load
// and go out at once when idle.
type acker struct {
	top  atomic.Uint64
	wake chan struct{}
	done chan struct{}
}

func newAcker(ch *amqp.Channel) *acker {
	a := &acker{wake: make(chan struct{}, 1), done: make(chan struct{})}
	go func() {
		var acked uint64
		for {
			select {
			case <-a.done:
				return
			case <-a.wake:
			}
			runtime.Gosched()
			if top := a.top.Load(); top > acked {
				if ch.Ack(top, true) != nil {
					return
				}
				acked = top
			}
		}
	}()
	return a
}

func (a *acker) upTo(tag uint64) {
	a.top.Store(tag)
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

func (a *acker) close() { close(a.done) }

type rawClient struct {
	raw
	conn    *amqp.Connection
	ch      *amqp.Channel
	user    string
	queue   string
	replyTo string

	mu      sync.Mutex
	pending map[string]*rawCall
	last    uint64

	publish sync.Mutex // keeps sequence numbers and publishes in step
	bySeq   sync.Map   // sequence number → correlation-id
	calls   sync.Pool
}

type rawCall struct {
	reply chan []byte
	err   error
}

func (o raw) dial(_ context.Context, b broker, queue string, _ int) (Client, error) {
	uri, err := amqp.ParseURI(b.admin)
	if err != nil {
		return nil, errors.New("AMQP_URL: not an AMQP URL") // the cause would print the password
	}
	conn, err := amqp.Dial(b.admin)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	ch, err := conn.Channel()
	if err != nil {
		return nil, fmt.Errorf("open channel: %w", err)
	}
	c := &rawClient{raw: o, conn: conn, ch: ch, user: uri.Username, queue: queue, replyTo: "amq.rabbitmq.reply-to", pending: map[string]*rawCall{}}
	c.calls.New = func() any { return &rawCall{reply: make(chan []byte, 1)} }
	if o.replyQueue {
		q, err := ch.QueueDeclare("", false, true, true, false, nil)
		if err != nil {
			return nil, fmt.Errorf("declare reply queue: %w", err)
		}
		c.replyTo = q.Name
	}
	in, err := ch.Consume(c.replyTo, "", true, false, false, false, nil)
	if err != nil {
		return nil, fmt.Errorf("consume %s: %w", c.replyTo, err)
	}
	go func() {
		for d := range in {
			c.finish(d.CorrelationId, d.Body, nil)
		}
	}()
	if !o.safe {
		return c, nil
	}
	if err := ch.Confirm(false); err != nil {
		return nil, fmt.Errorf("confirm: %w", err)
	}
	go func(returns <-chan amqp.Return) {
		for r := range returns {
			c.finish(r.CorrelationId, nil, errReturned)
		}
	}(ch.NotifyReturn(make(chan amqp.Return, 16)))
	go func(confirms <-chan amqp.Confirmation) {
		for confirm := range confirms {
			id, _ := c.bySeq.LoadAndDelete(confirm.DeliveryTag)
			if !confirm.Ack {
				c.finish(id.(string), nil, errNacked)
			}
		}
	}(ch.NotifyPublish(make(chan amqp.Confirmation, 2*prefetch)))
	return c, nil
}

func (c *rawClient) finish(id string, body []byte, err error) {
	if call := c.take(id); call != nil {
		call.err = err
		call.reply <- body
	}
}

func (c *rawClient) take(id string) *rawCall {
	c.mu.Lock()
	defer c.mu.Unlock()
	call := c.pending[id]
	delete(c.pending, id)
	return call
}

func (c *rawClient) Call(ctx context.Context, r contract.Request) (contract.Reply, error) {
	call := c.calls.Get().(*rawCall)
	call.err = nil
	c.mu.Lock()
	c.last++
	id := strconv.FormatUint(c.last, 36)
	c.pending[id] = call
	c.mu.Unlock()

	if err := c.send(ctx, id, contract.Encode(r)); err != nil {
		c.take(id)
		return contract.Reply{}, fmt.Errorf("publish: %w", err)
	}
	select {
	case body := <-call.reply:
		err := call.err
		c.calls.Put(call)
		if err != nil {
			return contract.Reply{}, err
		}
		return decode(body)
	case <-ctx.Done():
		c.take(id)
		return contract.Reply{}, ctx.Err()
	}
}

func (c *rawClient) send(ctx context.Context, id string, body []byte) error {
	m := amqp.Publishing{CorrelationId: id, ReplyTo: c.replyTo, ContentType: contract.ContentType, Body: body}
	if !c.safe {
		return c.ch.PublishWithContext(ctx, "", c.queue, false, false, m)
	}
	m.DeliveryMode = amqp.Persistent
	if c.contract {
		now := time.Now()
		m.MessageId, m.UserId, m.AppId, m.Type, m.Timestamp = uuid.NewString(), c.user, "bench-client", contract.RequestType, now
		m.Expiration = strconv.FormatInt(callTimeout.Milliseconds(), 10)
		m.Headers = amqp.Table{contract.HeaderDeadline: now.Add(callTimeout).UnixMilli()}
	}
	c.publish.Lock()
	defer c.publish.Unlock()
	c.bySeq.Store(c.ch.GetNextPublishSeqNo(), id)
	return c.ch.PublishWithContext(ctx, "", c.queue, true, false, m)
}

func (c *rawClient) Close(context.Context) error { return c.conn.Close() }
