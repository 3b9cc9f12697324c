package session

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"warren.example/messaging/event"
)

// Outcome is how a publish ended. Every publish ends in exactly one.
type Outcome uint8

// The outcomes. NotWritten and Returned are definite: no queue has the
// message. Confirmed is definite too: the broker has taken responsibility.
// Nacked is the broker's refusal; with ErrOnlyNacks the channel may be to blame,
// which has acked nothing yet. Unknown means that the channel died before
// the broker answered: publish again under the same message-id, and expect a
// duplicate. The client library reports the last two alike (ack=false).
const (
	NotWritten Outcome = iota + 1
	Returned
	Confirmed
	Nacked
	Unknown
)

func (o Outcome) String() string {
	switch o {
	case NotWritten:
		return "not-written"
	case Returned:
		return "returned"
	case Confirmed:
		return "confirmed"
	case Nacked:
		return "nacked"
	case Unknown:
		return "unknown"
	}
	return fmt.Sprintf("Outcome(%d)", uint8(o))
}

// Message is what to publish and where.
type Message struct {
	Exchange, Key string
	Mandatory     bool // an unroutable message is Returned; otherwise it is Confirmed and gone
	amqp.Publishing
}

// A Tracker learns what became of a message. Written comes once it was handed
// to the socket, Settled exactly once and last. Both are called from the
// session's own goroutines and must not block.
type Tracker interface {
	Written(epoch uint64)
	Settled(o Outcome, epoch uint64, err error)
}

// PublisherOptions are a publisher's own.
type PublisherOptions struct {
	Exchange     string // must exist, or the publisher is not ready
	Window       int    // most messages in flight, 2048 if 0
	ConfirmEvery int    // wait for all confirms after every n messages; 0: never, they are tracked as they come
}

// Publisher publishes with confirms. All methods are safe for concurrent use;
// one goroutine writes.
type Publisher struct {
	*link
	options PublisherOptions
	items   chan *item
	rescues int // channels that only nacked and were replaced, since the last ack
}

type item struct {
	Message
	ctx     context.Context
	tracker Tracker
	confirm *amqp.DeferredConfirmation
	twin    int64 // see writer.tell
}

// NewPublisher connects in the background. It does not fail when the broker is
// away; Ready says so.
func NewPublisher(o Options, p PublisherOptions) *Publisher {
	if p.Window == 0 {
		p.Window = 2048
	}
	pub := &Publisher{link: newLink(o, "publish"), options: p, items: make(chan *item, 256)}
	go pub.live()
	return pub
}

func (p *Publisher) live() {
	defer close(p.done)
	p.supervise(p.serve, p.refuse)
	p.refuseRest()
}

// Send hands m over and returns. It waits only for room among the messages in
// flight, at most until ctx ends; a message that ctx outlived is NotWritten.
// While the publisher is not ready everything is NotWritten at once.
func (p *Publisher) Send(ctx context.Context, m Message, t Tracker) {
	it := &item{Message: m, ctx: ctx, tracker: t}
	err := p.Ready()
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		select {
		case p.items <- it:
			if p.closing.Err() != nil { // perhaps too late for live to see it
				p.refuseRest()
			}
			return
		case <-ctx.Done():
			err = ctx.Err()
		case <-p.closing.Done():
			err = ErrClosed
		}
	}
	p.settle(it, NotWritten, 0, err)
}

// Publish sends m and waits for the outcome. If ctx ends first the outcome is
// Unknown: the message may be on its way. The error explains every outcome
// but Confirmed.
func (p *Publisher) Publish(ctx context.Context, m Message) (Outcome, error) {
	w := make(waiter, 1)
	p.Send(ctx, m, w)
	select {
	case r := <-w:
		return r.outcome, r.err
	case <-ctx.Done():
		if len(w) > 0 { // both are true, and this one is known
			r := <-w
			return r.outcome, r.err
		}
		return Unknown, fmt.Errorf("publish to %s: %w", m.Exchange, ctx.Err())
	}
}

type result struct {
	outcome Outcome
	err     error
}

type waiter chan result

func (w waiter) Written(uint64)                         {}
func (w waiter) Settled(o Outcome, _ uint64, err error) { w <- result{o, err} }

func (p *Publisher) settle(it *item, o Outcome, epoch uint64, err error) {
	p.Metrics.settled(o)
	if err != nil {
		err = fmt.Errorf("publish to %s: %s: %w", it.Exchange, o, err)
	}
	it.tracker.Settled(o, epoch, err)
}

// refuse passes the time without a connection.
func (p *Publisher) refuse(wake <-chan time.Time) {
	for {
		select {
		case it := <-p.items:
			p.settle(it, NotWritten, 0, p.Ready())
		case <-wake:
			return
		case <-p.closing.Done():
			return
		}
	}
}

// refuseRest settles what was sent just before Close, or since.
func (p *Publisher) refuseRest() {
	for {
		select {
		case it := <-p.items:
			p.settle(it, NotWritten, 0, ErrClosed)
		default:
			return
		}
	}
}

// serve is one epoch: open, write until it ends.
func (p *Publisher) serve(e *epoch) error {
	ch, err := e.conn.Channel()
	if err != nil {
		return fmt.Errorf("open channel: %w", err)
	}
	go e.watch(ch.NotifyClose(make(chan *amqp.Error, 1)))
	if err := ch.Confirm(!noWait); err != nil {
		return fmt.Errorf("confirm.select: %w", err)
	}
	if err := ch.ExchangeDeclarePassive(p.options.Exchange, amqp.ExchangeDirect, durable, !autoDelete, !internal, !noWait, nil); err != nil {
		return fmt.Errorf("exchange %s: %w", p.options.Exchange, err)
	}
	// Room for a return of every message in flight: the library drops a return
	// that waits for five seconds, and holds up all confirms meanwhile.
	returns := ch.NotifyReturn(make(chan amqp.Return, p.options.Window+2))
	go p.watchBlocked(e, e.conn.NotifyBlocked(make(chan amqp.Blocking, 8)))
	w := &writer{
		Publisher: p, e: e, ch: ch,
		pending: make(chan *item, p.options.Window),
		idle:    make(chan struct{}, 1),
		only:    map[string]struct{}{},
	}
	e.raw.moderate(func() int { return len(w.pending) })
	confirmed := make(chan struct{})
	go func() {
		defer close(confirmed)
		w.readConfirms(returns)
	}()
	p.opened(e, nil)
	err = w.run()
	if err == nil { // closed on purpose: what is in flight may still be confirmed
		close(w.pending)
		select {
		case <-confirmed:
		case <-p.hard.Done():
			e.fail(errOver)
		}
	} else {
		e.fail(err)
		close(w.pending)
	}
	<-confirmed
	return err
}

const (
	durable    = true
	autoDelete = true
	internal   = true
	exclusive  = true
	noWait     = true
)

// watchBlocked makes "the broker is short of memory or disk" a state. Publishes
// that are already written stay unanswered until the alarm ends.
func (p *Publisher) watchBlocked(e *epoch, blocked <-chan amqp.Blocking) {
	defer p.Metrics.setBlocked(false)
	for b := range blocked {
		p.Metrics.setBlocked(b.Active)
		if b.Active {
			p.Log.Warn("publishers blocked", zap.String("reason", b.Reason))
			p.Events.Record(event.Line{Event: event.Blocked, Epoch: e.id, Reason: b.Reason})
			p.setFor(e, fmt.Errorf("%w: %s", ErrBlocked, b.Reason))
			continue
		}
		p.Log.Info("publishers unblocked")
		p.Events.Record(event.Line{Event: event.Unblocked, Epoch: e.id})
		p.setFor(e, nil)
	}
}

// A writer is the one goroutine that publishes on a channel, and the one that
// reads its confirms.
type writer struct {
	*Publisher
	e       *epoch
	ch      *amqp.Channel
	pending chan *item    // written, in order of their confirm numbers
	idle    chan struct{} // signalled when pending was empty
	frames  []byte        // of the message at hand
	unread  int           // messages since the last wait for all confirms
	twins   int64         // messages that were told from another, see tell

	mu   sync.Mutex
	only map[string]struct{} // ids in flight, see tell
}

func (w *writer) run() error {
	for {
		select {
		case it := <-w.items:
			runtime.Gosched() // whoever is about to publish does so first: one write for all
			w.burst(it)
			if w.options.ConfirmEvery > 0 && w.unread >= w.options.ConfirmEvery {
				w.awaitConfirms()
			}
		case <-w.e.ctx.Done():
			return context.Cause(w.e.ctx)
		case <-w.closing.Done():
			return nil
		}
	}
}

// burst publishes it and whatever else is waiting, with one write to the
// socket. A burst grows with the load; when idle it is a single message.
func (w *writer) burst(it *item) {
	w.e.raw.cork()
	defer w.e.raw.uncork()
	for n := 1; ; n++ {
		w.publish(it)
		if n == cap(w.items) { // whoever closes must be heard
			return
		}
		if w.options.ConfirmEvery > 0 && w.unread >= w.options.ConfirmEvery {
			return
		}
		select {
		case it = <-w.items:
		default:
			return
		}
	}
}

func (w *writer) publish(it *item) {
	if err := it.ctx.Err(); err != nil {
		w.settle(it, NotWritten, w.e.id, err)
		return
	}
	w.tell(it)
	frames, err := appendPublish(w.frames[:0], w.e.conn.Config.FrameSize, &it.Message)
	if err != nil {
		w.forget(it)
		w.settle(it, NotWritten, w.e.id, err)
		return
	}
	if cap(frames) <= gather { // a large message does not keep its memory
		w.frames = frames
	}
	w.e.raw.substitute(frames)
	it.confirm, err = w.ch.PublishWithDeferredConfirm("", "", false, false, amqp.Publishing{})
	switch {
	case errors.Is(err, amqp.ErrClosed): // checked before anything is written
		w.settle(it, NotWritten, w.e.id, err)
		return
	case err != nil: // part of it may have been written
		w.settle(it, Unknown, w.e.id, err)
		return
	}
	it.tracker.Written(w.e.id)
	w.unread++
	select {
	case w.pending <- it:
	default: // the window is full: let the broker see what it shall confirm
		w.e.raw.uncork()
		w.pending <- it // readConfirms takes it, also when the epoch is over
		w.e.raw.cork()
	}
}

// headerTwin tells a message from another of the same correlation-id.
// Nobody reads it but whoever published.
const headerTwin = "calc-twin"

// tell makes sure that a return will find its message. A return holds no confirm
// number, and two messages with one correlation-id may be in flight: two replies
// to a request that was delivered twice, or requests of two clients who chose
// alike. Only the second of such has a number in a header, which comes back with
// the return: in every message it would be a table for every receiver to decode.
func (w *writer) tell(it *item) {
	if !it.Mandatory {
		return
	}
	w.mu.Lock()
	_, taken := w.only[it.CorrelationId]
	if !taken {
		w.only[it.CorrelationId] = struct{}{}
	}
	w.mu.Unlock()
	if taken {
		w.twins++
		it.twin = w.twins
		headers := make(amqp.Table, len(it.Headers)+1) // the sender's own stays as it is
		maps.Copy(headers, it.Headers)
		headers[headerTwin] = it.twin
		it.Headers = headers
	}
}

// forget lets the next message with its correlation-id go without a number.
func (w *writer) forget(it *item) {
	if it.Mandatory && it.twin == 0 {
		w.mu.Lock()
		delete(w.only, it.CorrelationId)
		w.mu.Unlock()
	}
}

// sender is what a return says of the message that it returns.
type sender struct {
	correlationID string
	twin          int64
}

func senderOf(r amqp.Return) sender {
	twin, _ := r.Headers[headerTwin].(int64)
	return sender{r.CorrelationId, twin}
}

// awaitConfirms returns once nothing is in flight: the price of confirms one
// by one, or in batches.
func (w *writer) awaitConfirms() {
	w.unread = 0
	barrier := &item{tracker: barrier(w.idle)}
	w.pending <- barrier
	select {
	case <-w.idle:
	case <-w.e.ctx.Done():
	}
}

// barrier passes through pending like a message and says when it arrives.
type barrier chan struct{}

func (b barrier) Written(uint64)                 {}
func (b barrier) Settled(Outcome, uint64, error) { b <- struct{}{} }

// maxRescues is how many channels in a row are to blame for their nacks; it is
// reached after seven seconds of nacks, more than 3.10.8 takes to elect a leader.
const maxRescues = 5

// rescueAfter is how long a channel may only nack after so many that did.
func rescueAfter(rescues int) time.Duration {
	if rescues == 0 {
		return 0
	}
	return min(250*time.Millisecond<<min(rescues, 10), 30*time.Second)
}

// readConfirms settles what was written, in that order. The broker sends a
// return before the confirm of the same message, and the library's one reader
// hands both over in that order: so whoever drains the returns after the
// confirm has seen them all.
func (w *writer) readConfirms(returns <-chan amqp.Return) {
	returned := map[sender]amqp.Return{}
	nacks, acked, opened := 0, false, time.Now()
	for it := range w.pending {
		if it.confirm == nil {
			it.tracker.Settled(Confirmed, w.e.id, nil) // a barrier
			continue
		}
		select {
		case <-it.confirm.Done():
		case <-w.e.ctx.Done():
		}
	drain:
		for {
			select {
			case r, ok := <-returns:
				if !ok {
					break drain
				}
				returned[senderOf(r)] = r
			default:
				break drain
			}
		}
		w.forget(it)
		from := sender{it.CorrelationId, it.twin}
		r, unroutable := returned[from]
		switch {
		case unroutable && it.Mandatory:
			delete(returned, from)
			w.settle(it, Returned, w.e.id, fmt.Errorf("%d %s", r.ReplyCode, r.ReplyText))
		case it.confirm.Acked():
			acked, w.rescues = true, 0
			w.settle(it, Confirmed, w.e.id, nil)
		case w.e.ctx.Err() != nil || w.ch.IsClosed(): // the library says "nack" of a dying channel
			<-w.e.ctx.Done() // the reason is on its way
			w.settle(it, Unknown, w.e.id, context.Cause(w.e.ctx))
		default:
			// 3.10.8 was seen to nack for ever on a channel that was opened right
			// after a leader died. A fresh epoch mends that, once there is another
			// leader; where it does not, the queue is full or away, and the callers
			// must know.
			refused := errors.New("the broker refused it")
			if !acked && w.rescues < maxRescues {
				refused = fmt.Errorf("%w: %w", refused, ErrOnlyNacks)
			}
			if nacks++; !acked && nacks >= 3 && time.Since(opened) >= rescueAfter(w.rescues) {
				w.rescues++
				w.e.fail(ErrOnlyNacks)
			}
			w.settle(it, Nacked, w.e.id, refused)
		}
	}
}
