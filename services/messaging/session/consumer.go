package session

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"warren.example/messaging/event"
)

// ConsumerOptions are a consumer's own.
type ConsumerOptions struct {
	Queue string
	// Open, if not nil, prepares the epoch and names the queue to consume instead
	// of Queue: it is for queues that live no longer than their connection.
	Open func(ch *amqp.Channel, epoch uint64) (queue string, err error)
	// Prefetch is the most deliveries in hand, and so the most that a crash of
	// this process makes the broker deliver again. 0 would mean unlimited.
	Prefetch int
	// AckDelay is how long an ack may wait for others, and for the deliveries
	// below it, so that one frame acks many and the broker writes less to disk.
	// It is for handlers that run at the same time, 1 ms being enough; one that
	// takes delivery after delivery would wait for nobody. The price: a crash
	// makes the broker deliver again what was finished so much earlier.
	AckDelay time.Duration
	// AutoAck lets the broker forget a delivery as soon as it is sent.
	AutoAck bool
	// Awaited, if not nil, says how many deliveries somebody is waiting for; it
	// is asked often. Nil means those in hand.
	Awaited func() int
	// Handle takes the deliveries in order, from one goroutine. It must not
	// block: work belongs into goroutines of its own, which Prefetch bounds.
	Handle func(*Delivery)
	// Ended, if not nil, is called after each epoch.
	Ended func(epoch uint64)
}

// Consumer consumes one queue. All methods are safe for concurrent use.
type Consumer struct {
	*link
	options ConsumerOptions

	gate   sync.Mutex
	pauses int           // Pause minus Resume
	turned chan struct{} // closed and replaced whenever pauses changes
	rest   chan struct{} // closed while nothing is consumed
	tags   int           // consumer tags used
}

// NewConsumer connects in the background. It does not fail when the broker or
// the queue is away; Ready says so.
func NewConsumer(o Options, c ConsumerOptions) *Consumer {
	con := &Consumer{link: newLink(o, "consume"), options: c, turned: make(chan struct{}), rest: make(chan struct{})}
	close(con.rest)
	go func() {
		defer close(con.done)
		con.supervise(con.serve, func(wake <-chan time.Time) {
			select {
			case <-wake:
			case <-con.closing.Done():
			}
		})
	}()
	return con
}

// serve is one epoch: open, consume, settle, until it ends.
func (c *Consumer) serve(e *epoch) (err error) {
	ch, err := e.conn.Channel()
	if err != nil {
		return fmt.Errorf("open channel: %w", err)
	}
	go e.watch(ch.NotifyClose(make(chan *amqp.Error, 1)))
	queue := c.options.Queue
	if c.options.Open != nil {
		if queue, err = c.options.Open(ch, e.id); err != nil {
			return err
		}
	}
	if !c.options.AutoAck {
		if err := ch.Qos(c.options.Prefetch, 0, false); err != nil {
			return fmt.Errorf("qos %d: %w", c.options.Prefetch, err)
		}
	}
	s := newSettler(ch, e, c.options.Prefetch, c.options.AckDelay)
	awaited := c.options.Awaited
	if awaited == nil {
		awaited = func() int { return int(s.inHand.Load()) }
	}
	e.raw.moderate(awaited)
	settled := make(chan struct{})
	go func() {
		defer close(settled)
		s.run()
	}()
	if c.options.Ended != nil {
		defer c.options.Ended(e.id)
	}
	defer func() {
		if errors.Is(err, errClosing) {
			err = nil
		}
		if err == nil { // on purpose: channel.close-ok comes after all our acks
			_ = ch.Close()
		}
		e.fail(errOver)
		<-settled
	}()
	for {
		if err := c.whilePaused(e); err != nil {
			return err
		}
		if err := c.consume(e, ch, queue, s); err != nil {
			return err
		}
	}
}

// whilePaused returns when there is something to consume for, or the epoch or
// the session ends.
func (c *Consumer) whilePaused(e *epoch) error {
	for {
		c.gate.Lock()
		pauses, turned := c.pauses, c.turned
		if pauses == 0 {
			c.rest = make(chan struct{}) // from here on a Pause has something to wait for
		}
		c.gate.Unlock()
		if pauses == 0 {
			return nil
		}
		c.opened(e, ErrPaused)
		select {
		case <-turned:
		case <-e.ctx.Done():
			return context.Cause(e.ctx)
		case <-c.closing.Done():
			return errClosing
		}
	}
}

// errClosing stands for "on purpose" until serve returns nil for it.
var errClosing = errors.New("closing")

// consume runs one consumer from basic.consume to its end. It returns nil if
// a Pause ended it.
func (c *Consumer) consume(e *epoch, ch *amqp.Channel, queue string, s *settler) error {
	defer func() {
		c.gate.Lock()
		close(c.rest)
		c.gate.Unlock()
	}()
	// A tag of its own for each, because on 3.10.8 a quorum queue ends the
	// channel of a consumer that comes back under its old tag with deliveries
	// still in hand (rabbitmq-server issue 5927).
	c.tags++
	tag := fmt.Sprintf("warren-%d", c.tags)
	deliveries, err := ch.Consume(queue, tag, c.options.AutoAck, !exclusive, false, !noWait, nil)
	if err != nil {
		return fmt.Errorf("consume %s: %w", queue, err)
	}
	c.gate.Lock()
	turned, paused := c.turned, c.pauses > 0
	c.gate.Unlock()
	c.opened(e, nil)

	closing, ours := c.closing.Done(), false
	cancel := func() {
		ours, turned, closing = true, nil, nil
		c.setFor(e, ErrPaused)
		// With noWait the deliveries on their way would be dropped unseen. The
		// call is not waited for here, because the deliveries that come before its
		// answer must be taken.
		go func() { _ = ch.Cancel(tag, !noWait) }()
	}
	if paused {
		cancel()
	}
	for {
		select {
		case d, ok := <-deliveries:
			switch {
			case ok:
				d.Acknowledger = nil // settle through the Delivery only
				s.inHand.Add(1)
				c.options.Handle(&Delivery{Delivery: d, settler: s, auto: c.options.AutoAck})
			case ours:
				if c.closing.Err() != nil {
					return errClosing
				}
				return nil
			case e.ctx.Err() != nil:
				return context.Cause(e.ctx)
			default:
				// The queue was deleted, or since 4.3 a delivery was held for longer
				// than the consumer timeout. The channel is still open, but a late ack
				// of such a delivery would remove the requeued message unseen: only a
				// new epoch makes our old deliveries stale.
				c.Log.Warn("consumer cancelled by the broker", zap.String("queue", queue))
				c.Events.Record(event.Line{Event: event.ConsumerCancelled, Epoch: e.id, Reason: queue})
				return fmt.Errorf("consume %s: %w", queue, ErrCancelled)
			}
		case <-turned:
			c.gate.Lock()
			turned = c.turned
			paused := c.pauses > 0
			c.gate.Unlock()
			if paused {
				cancel()
			}
		case <-closing:
			cancel()
		case <-e.ctx.Done():
			return context.Cause(e.ctx)
		}
	}
}

// Pause stops the flow of new deliveries and returns when no more will come.
// Those in hand stay in hand: channel and connection stay open, and they can
// be settled. Every Pause needs a Resume; they count.
//
// It is for trouble of our own, such as a database that is away: rejecting
// would burn the delivery limit of innocent requests.
func (c *Consumer) Pause(ctx context.Context) error {
	c.turn(+1)
	c.gate.Lock()
	rest := c.rest
	c.gate.Unlock()
	select {
	case <-rest:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("pause: %w", ctx.Err())
	}
}

// Resume takes one Pause back.
func (c *Consumer) Resume() { c.turn(-1) }

func (c *Consumer) turn(by int) {
	c.gate.Lock()
	defer c.gate.Unlock()
	c.pauses += by
	close(c.turned)
	c.turned = make(chan struct{})
}

// Inspect asks for a queue's ready messages and consumers. The answer is
// advisory: a server may die a moment later. From 4.3 on the user needs some
// permission on the queue.
func (c *Consumer) Inspect(ctx context.Context, queue string) (messages, consumers int, err error) {
	e := c.epoch()
	if e == nil {
		return 0, 0, fmt.Errorf("inspect %s: %w", queue, ErrConnecting)
	}
	type answer struct {
		queue amqp.Queue
		err   error
	}
	got := make(chan answer, 1)
	go func() { // the library bounds none of these calls in time; the epoch's end does
		ch, err := e.conn.Channel() // of its own, because a missing queue closes it
		if err != nil {
			got <- answer{err: err}
			return
		}
		q, err := ch.QueueDeclarePassive(queue, durable, !autoDelete, !exclusive, !noWait, nil)
		got <- answer{q, err}
		_ = ch.Close()
	}()
	select {
	case a := <-got:
		if a.err != nil {
			return 0, 0, fmt.Errorf("inspect %s: %w", queue, a.err)
		}
		return a.queue.Messages, a.queue.Consumers, nil
	case <-ctx.Done():
		return 0, 0, fmt.Errorf("inspect %s: %w", queue, ctx.Err())
	case <-e.ctx.Done():
		return 0, 0, fmt.Errorf("inspect %s: %w", queue, context.Cause(e.ctx))
	}
}
