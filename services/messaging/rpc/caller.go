// Package rpc is request/reply over RabbitMQ: a Caller that never waits past
// its deadline and always says whether the work may have been done, and a
// Responder that publishes replies which are confirmed or known to reach
// nobody.
package rpc

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/session"
)

// How a call may fail, other than by the server's own *contract.Error. Each
// comes wrapped in a *CallError, which says whether the request may have been
// executed.
var (
	ErrNoServer    = errors.New("no server takes such requests")           // never executed
	ErrDeadline    = errors.New("no reply before the deadline")            // may have been executed
	ErrOverloaded  = errors.New("the broker refuses more requests")        // back off, then retry
	ErrUnknown     = errors.New("nobody knows what became of the request") // the caller cancelled, or the connection died and NoRetry is set
	ErrUnavailable = errors.New("the broker is away or blocks publishers") // never left this process
)

// CallError is how a call failed and what its caller may conclude.
type CallError struct {
	Request         string // message-id; a retry under the same id is safe
	Attempts        int    // how often it was handed to the broker
	MayHaveExecuted bool
	Err             error
}

func (e *CallError) Error() string {
	executed := "it was not executed"
	if e.MayHaveExecuted {
		executed = "it may have been executed"
	}
	return fmt.Sprintf("request %s: %v (%s)", e.Request, e.Err, executed)
}

func (e *CallError) Unwrap() error { return e.Err }

// CallerOptions configure a Caller.
type CallerOptions struct {
	Session      session.Options
	Instance     string // unique per process: it is in the routing key of the replies
	ReplyQueue   string // contract.ClientReplyQueue or contract.AuditorReplyQueue
	ConfirmEvery int    // see session.PublisherOptions
	NoRetry      bool   // return ErrUnknown instead of publishing again
}

// Caller calls. All methods are safe for concurrent use; thousands of calls
// may be in flight on its two connections.
type Caller struct {
	options   CallerOptions
	user      string
	publisher *session.Publisher
	consumer  *session.Consumer
	events    *event.Recorder

	mu      sync.Mutex
	calls   map[string]*pending
	settled history
	key     string // routing key of the replies in this epoch
}

// NewCaller connects in the background; it does not fail when the broker is
// away. The error is one of settings.
func NewCaller(o CallerOptions) (*Caller, error) {
	user := o.Session.Config.User()
	if err := contract.CheckReplyKey(user, o.Instance); err != nil {
		return nil, err
	}
	c := &Caller{
		options: o,
		user:    user,
		events:  o.Session.Events,
		calls:   map[string]*pending{},
		settled: newHistory(),
	}
	c.publisher = session.NewPublisher(o.Session, session.PublisherOptions{Exchange: contract.RequestExchange, ConfirmEvery: o.ConfirmEvery})
	c.consumer = session.NewConsumer(o.Session, session.ConsumerOptions{
		Open:    c.openReplyQueue,
		AutoAck: true, // the queue dies with this process; an ack would save nothing
		Awaited: c.inFlight,
		Handle:  c.reply,
		Ended:   c.epochEnded,
	})
	return c, nil
}

func (c *Caller) inFlight() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.calls)
}

// openReplyQueue declares the queue of this epoch. Its name is new each time,
// because the broker may still hold the exclusive queue of a connection that
// it does not yet know to be dead (405). It is also bound to the key of the last
// epoch, so that replies to requests of then arrive: those stand further ahead
// in the request queue than what is published again now.
//
// A key for the process would be simpler, and would cost it every confirm of a
// reply: a queue whose node is lost stays bound until that node is back (4.3.6),
// and the broker nacks whatever is routed to it, also if another queue has it.
func (c *Caller) openReplyQueue(ch *amqp.Channel, epoch uint64) (string, error) {
	const durable, autoDelete, exclusive, noWait = false, true, true, false
	name := fmt.Sprintf("%s.%s.%d", c.options.ReplyQueue, c.options.Instance, epoch)
	if _, err := ch.QueueDeclare(name, durable, autoDelete, exclusive, noWait, amqp.Table{"x-queue-type": "classic"}); err != nil {
		return "", fmt.Errorf("declare reply queue %s: %w", name, err)
	}
	c.mu.Lock()
	last := c.key
	c.mu.Unlock()
	now := contract.EpochReplyKey(c.user, c.options.Instance, epoch)
	for _, key := range []string{now, last} {
		if key == "" {
			continue // there was none before
		}
		if err := ch.QueueBind(name, key, contract.ReplyExchange, noWait, nil); err != nil {
			return "", fmt.Errorf("bind reply queue %s: %w", name, err)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.key = now
	return name, nil
}

// Ready returns nil if a call can be made now, or why not.
func (c *Caller) Ready() error { return errors.Join(c.publisher.Ready(), c.consumer.Ready()) }

// WaitReady waits until a call can be made. The error says what for, when ctx
// ended.
func (c *Caller) WaitReady(ctx context.Context) error {
	for {
		if err := c.consumer.WaitReady(ctx); err != nil {
			return err
		}
		if err := c.publisher.WaitReady(ctx); err != nil {
			return err
		}
		if c.Ready() == nil {
			return nil
		}
	}
}

// Close ends the sessions. Calls in flight end at their deadline.
func (c *Caller) Close(ctx context.Context) error {
	return errors.Join(c.publisher.Close(ctx), c.consumer.Close(ctx))
}

// Call is one request. The zero value of everything but Request is right for
// most.
type Call struct {
	ID           string // message-id, also the idempotency key; empty: a new UUIDv7
	Request      contract.Request
	Body         []byte // sent instead of Request, as it is
	Replay       int    // generation; the auditor's
	OriginalUser string // who asked first; the auditor's
	Trace        contract.Traceparent

	WaitForSession bool // while the broker is away wait, instead of ErrUnavailable at once
	FailIfNoServer bool // ask for consumers first: none is ErrNoServer. Advisory, and a round trip more.

	NoMandatory  bool // an unroutable request is lost in silence: only to show that
	NoExpiration bool // the request outlives its deadline in the queue: only to show that
}

// Call sends a request and waits for its reply, at most until ctx ends; ctx
// must have a deadline, because a call without one waits for ever when a
// server drops its request. The error is the server's *contract.Error, or one
// of the sentinels in a *CallError.
//
// While it waits it survives reconnects: whatever an epoch leaves unfinished
// is published again, under the same message-id and with what is left of the
// deadline. The server may therefore see the request twice.
func (c *Caller) Call(ctx context.Context, call Call) (contract.Reply, error) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return contract.Reply{}, errors.New("rpc: a call needs a deadline")
	}
	if call.ID == "" {
		id, err := uuid.NewV7()
		if err != nil {
			return contract.Reply{}, fmt.Errorf("message-id: %w", err)
		}
		call.ID = id.String()
	}
	if call.Body == nil {
		call.Body = contract.Encode(call.Request)
	}
	// No server reads more than that. Where the broker takes less it closes the
	// channel under every call in flight, again with each attempt.
	if n := len(call.Body); n > contract.MaxBody {
		return contract.Reply{}, fmt.Errorf("rpc: a request of %d bytes, at most %d", n, contract.MaxBody)
	}
	p := &pending{Caller: c, call: call, deadline: deadline, signals: make(chan signal, 8)}
	if err := c.begin(p); err != nil {
		return contract.Reply{}, err
	}
	reply, err := p.run(ctx)
	c.end(p, err)
	return reply, err
}

func (c *Caller) begin(p *pending) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if _, taken := c.calls[p.call.ID]; taken {
		return fmt.Errorf("rpc: request %s is in flight already", p.call.ID)
	}
	c.calls[p.call.ID] = p
	return nil
}

// end writes the one line of the ledger that says how the call ended.
func (c *Caller) end(p *pending, err error) {
	failed, _ := err.(*CallError)
	c.mu.Lock()
	delete(c.calls, p.call.ID)
	c.settled.add(p.call.ID, failed == nil)
	late := failed != nil && p.reply != nil // it came in the last instant
	c.mu.Unlock()
	if failed == nil {
		return // answered or refused: on record since the reply came
	}
	if late {
		c.events.Record(event.Line{Event: event.LateReply, Request: p.call.ID, Epoch: p.reply.Epoch(), Reason: "correlation-id " + p.reply.CorrelationId})
	}
	line := event.Line{Request: p.call.ID, Attempt: p.attempts, Replay: p.call.Replay, Reason: failed.Err.Error(), Executed: "no"}
	if failed.MayHaveExecuted {
		line.Executed = "maybe"
	}
	switch {
	case errors.Is(err, ErrDeadline):
		line.Event = event.TimedOut
	case errors.Is(err, ErrNoServer) && p.attempts > 0:
		line.Event = event.RequestReturned
	case errors.Is(err, ErrOverloaded):
		line.Event = event.PublishNacked
	case errors.Is(err, ErrUnknown):
		line.Event = event.Unknown
	default:
		line.Event = event.NotWritten
	}
	c.events.Record(line)
}

// reply takes one delivery of the reply queue. Replies that nobody waits for
// are counted, never handed out: the first reply wins.
func (c *Caller) reply(d *session.Delivery) {
	id := d.CorrelationId[:max(0, strings.LastIndexByte(d.CorrelationId, '.'))] // the attempt follows
	c.mu.Lock()
	p := c.calls[id]
	if p != nil && p.reply == nil {
		p.reply = d
		c.mu.Unlock()
		p.signal(signal{kind: replied})
		return
	}
	answered := p != nil
	if !answered {
		answered = c.settled.answered(id)
	}
	c.mu.Unlock()
	line := event.Line{Event: event.LateReply, Request: id, Epoch: d.Epoch(), Reason: "correlation-id " + d.CorrelationId}
	if answered {
		line.Event = event.DuplicateReply
	}
	c.events.Record(line)
}

// epochEnded makes every unfinished call publish again: its reply may have
// been sent to the queue that is gone.
func (c *Caller) epochEnded(uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, p := range c.calls {
		p.signal(signal{kind: interrupted})
	}
}

// pending is a call in flight. Everything but reply belongs to the goroutine
// that called.
type pending struct {
	*Caller
	call     Call
	deadline time.Time
	attempts int
	first    attempt
	maybe    bool // an attempt was written and may have been executed
	signals  chan signal
	reply    *session.Delivery // guarded by Caller.mu
}

type kind uint8

const (
	replied kind = iota + 1
	interrupted
	settled
)

type signal struct {
	kind    kind
	attempt int
	outcome session.Outcome
	err     error
}

// signal never blocks: whoever finds the channel full finds a call that has
// more than enough to look at.
func (p *pending) signal(s signal) {
	select {
	case p.signals <- s:
	default:
	}
}

// attempt tracks one publish of a call.
type attempt struct {
	*pending
	n int
}

func (a *attempt) Written(epoch uint64) {
	a.events.Record(event.Line{Event: event.Published, Request: a.call.ID, Epoch: epoch, Attempt: a.n})
}

var outcomeEvents = map[session.Outcome]event.Kind{
	session.NotWritten: event.NotWritten, session.Returned: event.RequestReturned, session.Confirmed: event.Confirmed,
	session.Nacked: event.PublishNacked, session.Unknown: event.Unknown,
}

func (a *attempt) Settled(o session.Outcome, epoch uint64, err error) {
	if a.events != nil {
		line := event.Line{Event: outcomeEvents[o], Request: a.call.ID, Epoch: epoch, Attempt: a.n}
		if err != nil {
			line.Reason = err.Error()
		}
		a.events.Record(line)
	}
	if o != session.Confirmed { // a confirm changes nothing for whoever waits for the reply
		a.signal(signal{kind: settled, attempt: a.n, outcome: o, err: err})
	}
}

// run publishes until there is a reply, a definite failure or no time left.
func (p *pending) run(ctx context.Context) (contract.Reply, error) {
	nacks := 0
	for {
		if err := p.await(ctx); err != nil {
			return p.fail(err)
		}
		if p.replied() {
			return p.finish()
		}
		if p.call.FailIfNoServer && p.attempts == 0 {
			if err := p.findServer(ctx); err != nil {
				return p.fail(err)
			}
		}
		p.publish(ctx)
	wait:
		for {
			select {
			case s := <-p.signals:
				switch {
				case s.kind == replied:
					return p.finish()
				case s.kind == interrupted:
					p.maybe = true
					if p.options.NoRetry {
						return p.fail(ErrUnknown)
					}
					break wait // publish again
				case s.attempt != p.attempts:
					p.maybe = p.maybe || s.outcome != session.NotWritten && s.outcome != session.Returned
					continue // an older attempt's; the newer one decides
				}
				switch s.outcome {
				case session.Returned:
					return p.fail(ErrNoServer)
				case session.NotWritten:
					if !p.call.WaitForSession && p.attempts == 1 && !p.maybe {
						return p.fail(fmt.Errorf("%w: %w", ErrUnavailable, s.err))
					}
				case session.Unknown:
					p.maybe = true
					if p.options.NoRetry {
						return p.fail(fmt.Errorf("%w: %w", ErrUnknown, s.err))
					}
				case session.Nacked:
					p.maybe = true                               // refused by one, but no proof that none has it
					if !errors.Is(s.err, session.ErrOnlyNacks) { // the channel will be replaced
						nacks++
					}
					if nacks == maxNacks || !pause(ctx, time.Duration(max(1, nacks))*50*time.Millisecond) {
						return p.fail(fmt.Errorf("%w: %w", ErrOverloaded, s.err))
					}
				}
				break wait // publish again
			case <-ctx.Done():
				p.maybe = true // it was handed over, and nothing said that it was not written
				if errors.Is(ctx.Err(), context.Canceled) {
					return p.fail(fmt.Errorf("%w: %w", ErrUnknown, ctx.Err()))
				}
				return p.fail(ErrDeadline)
			}
		}
	}
}

// maxNacks is how often a request is offered to a broker that refuses it.
const maxNacks = 4

// pause returns false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// await waits for a session, or says that there is none. A call that was
// published before waits in any case: it survives a reconnect.
func (p *pending) await(ctx context.Context) error {
	err := p.Ready()
	if err == nil {
		return nil
	}
	if p.attempts == 0 && !p.call.WaitForSession {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	ready := make(chan error, 1)
	go func() { ready <- p.WaitReady(ctx) }()
	for {
		select {
		case err := <-ready:
			switch {
			case err == nil:
				return nil
			case p.maybe:
				return fmt.Errorf("%w: %w", ErrDeadline, err)
			default:
				return fmt.Errorf("%w: %w", ErrUnavailable, err)
			}
		case s := <-p.signals: // a reply may come while the publisher is away
			if s.kind == replied {
				return nil
			}
		}
	}
}

// replied says whether the reply came while the call was about to publish again.
func (p *pending) replied() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.reply != nil
}

// findServer asks for consumers of the request queue.
func (p *pending) findServer(ctx context.Context) error {
	_, consumers, err := p.consumer.Inspect(ctx, contract.RequestQueue)
	var missing *amqp.Error
	switch {
	case errors.As(err, &missing) && missing.Code == amqp.NotFound:
		return fmt.Errorf("%w: %w", ErrNoServer, err)
	case err != nil:
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	case consumers == 0:
		return fmt.Errorf("%w: queue %s has no consumers", ErrNoServer, contract.RequestQueue)
	}
	return nil
}

func (p *pending) publish(ctx context.Context) {
	p.attempts++
	left := time.Until(p.deadline)
	p.mu.Lock()
	replyTo := p.key
	p.mu.Unlock()
	m := session.Message{
		Exchange: contract.RequestExchange, Key: contract.RequestKey, Mandatory: !p.call.NoMandatory,
		Publishing: amqp.Publishing{
			MessageId:     p.call.ID,
			CorrelationId: p.call.ID + "." + strconv.Itoa(p.attempts),
			ReplyTo:       replyTo,
			Type:          contract.RequestType,
			ContentType:   contract.ContentType,
			UserId:        p.user,
			AppId:         p.options.Session.Name,
			Timestamp:     time.Now(),
			DeliveryMode:  amqp.Persistent,
			Headers:       amqp.Table{contract.HeaderDeadline: p.deadline.UnixMilli()},
			Body:          p.call.Body,
		},
	}
	if !p.call.NoExpiration {
		// A request that nobody takes in time leaves the queue for the auditor.
		// At least 1: "0" would expire at once.
		m.Expiration = strconv.FormatInt(max(1, left.Milliseconds()+1), 10)
	}
	if p.attempts > 1 {
		m.Headers[contract.HeaderAttempt] = int64(p.attempts)
	}
	if p.call.Trace != "" {
		m.Headers[contract.HeaderTraceparent] = string(p.call.Trace)
	}
	if p.call.Replay > 0 {
		m.Headers[contract.HeaderReplay] = int64(p.call.Replay)
		m.Headers[contract.HeaderOriginalUser] = p.call.OriginalUser
	}
	if p.events != nil {
		p.events.Record(event.Line{Event: event.Publishing, Request: p.call.ID, Attempt: p.attempts, Replay: p.call.Replay,
			Operation: string(p.call.Request.Operation)})
	}
	a := &p.first
	if p.attempts > 1 {
		a = new(attempt) // the session may still call the one before
	}
	*a = attempt{p, p.attempts}
	p.publisher.Send(ctx, m, a)
}

// finish turns the reply into the call's outcome.
func (p *pending) finish() (contract.Reply, error) {
	reply, err := contract.DecodeReply(&p.reply.Delivery)
	line := event.Line{Event: event.Answered, Request: p.call.ID, Epoch: p.reply.Epoch(), Attempt: p.attempts, Replay: p.call.Replay, Result: reply.Result}
	if err != nil {
		var refused *contract.Error
		errors.As(err, &refused) // DecodeReply has no others
		line.Event, line.Code, line.Reason = event.Refused, string(refused.Code), refused.Message
	}
	p.events.Record(line)
	return reply, err
}

func (p *pending) fail(err error) (contract.Reply, error) {
	if errors.Is(err, ErrDeadline) && !p.maybe {
		err = fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return contract.Reply{}, &CallError{Request: p.call.ID, Attempts: p.attempts, MayHaveExecuted: p.maybe, Err: err}
}

// A history remembers how the last calls ended, so that a reply that comes
// after the end can be told late from duplicate.
type history struct {
	ring []string
	at   int
	ends map[string]bool // answered?
}

const remembered = 4096

func newHistory() history {
	return history{ring: make([]string, remembered), ends: make(map[string]bool, remembered)}
}

func (h *history) add(id string, answered bool) {
	delete(h.ends, h.ring[h.at])
	h.ring[h.at] = id
	h.ends[id] = answered
	h.at = (h.at + 1) % len(h.ring)
}

func (h *history) answered(id string) bool { return h.ends[id] }
