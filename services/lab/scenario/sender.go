package scenario

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/ledger"
	"warren.example/lab/link"
	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/session"
)

// Sender publishes messages and says what became of each. What its sender
// believes is what stands in the ledger.
type Sender struct {
	w        *World
	events   *event.Recorder
	way      *link.Link // to the broker; it breaks when it is told to
	url      string
	attempts map[string]int
	send     func(context.Context, session.Message) (session.Outcome, error) // one message
	connect  func(context.Context) error                                     // before write; the last message may have cost the connection
	write    func(context.Context, []session.Message) []fate                 // many: returns when all are on their way
	blocked  func() bool                                                     // the broker has told it to hold calls back
}

// fate waits for the outcome of a message.
type fate func(context.Context) (session.Outcome, error)

// Sender makes one on a session of ours.
func (b Broker) Sender(options session.PublisherOptions) *Sender {
	s := b.sender()
	p := session.NewPublisher(session.Options{Name: "lab", Config: sessionConfig(s.url)}, options)
	s.w.leave = append(s.w.leave, sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.w.ctx), goneWithin)
		defer cancel()
		_ = p.Close(ctx)
		s.end()
	}))
	s.connect = p.WaitReady
	s.blocked = func() bool { return errors.Is(p.Ready(), session.ErrBlocked) }
	s.send = func(ctx context.Context, m session.Message) (session.Outcome, error) {
		_ = p.WaitReady(ctx) // the last message may have cost the connection
		return p.Publish(ctx, m)
	}
	s.write = func(ctx context.Context, messages []session.Message) (fates []fate) {
		var all []*tracked
		for _, m := range messages {
			t := &tracked{written: make(chan struct{}), settled: make(chan struct{})}
			all, fates = append(all, t), append(fates, t.wait)
			p.Send(ctx, m, t)
		}
		for _, t := range all {
			select {
			case <-t.written:
			case <-t.settled:
			case <-ctx.Done():
			}
		}
		return fates
	}
	return s
}

// tracked learns from the session what became of one message.
type tracked struct {
	written, settled chan struct{}
	outcome          session.Outcome
	err              error
}

func (t *tracked) Written(uint64) { close(t.written) }
func (t *tracked) Settled(o session.Outcome, _ uint64, err error) {
	t.outcome, t.err = o, err
	close(t.settled)
}

func (t *tracked) wait(ctx context.Context) (session.Outcome, error) {
	select {
	case <-t.settled:
		return t.outcome, t.err
	case <-ctx.Done():
		return session.Unknown, ctx.Err()
	}
}

// NaiveSender makes one on the client library, which believes in what Wait says.
func (b Broker) NaiveSender() *Sender {
	s := b.sender()
	s.w.leave = append(s.w.leave, sync.OnceFunc(s.end))
	s.send = func(ctx context.Context, m session.Message) (session.Outcome, error) {
		conn, err := amqp.Dial(s.url) // another for each: some cost it
		if err != nil {
			return session.NotWritten, err
		}
		defer conn.Close()
		ch, err := conn.Channel()
		if err != nil {
			return session.NotWritten, err
		}
		if err := ch.Confirm(false); err != nil {
			return session.NotWritten, err
		}
		confirm, err := ch.PublishWithDeferredConfirmWithContext(ctx, m.Exchange, m.Key, m.Mandatory, false, m.Publishing)
		if err != nil {
			return session.NotWritten, err
		}
		acked, err := confirm.WaitContext(ctx)
		if acked {
			return session.Confirmed, err
		}
		return session.Nacked, err
	}
	return s
}

// belief says how many of the messages that were written are safe, in the eyes
// of whoever wrote them: the first so many.
type belief func(context.Context, []*amqp.DeferredConfirmation) int

// countAcks takes ten acks for the first ten messages.
func countAcks(ctx context.Context, written []*amqp.DeferredConfirmation) (acks int) {
	for _, confirm := range written {
		if acked, err := confirm.WaitContext(ctx); acked && err == nil {
			acks++
		}
	}
	return acks
}

// BelievingSender makes one on the client library, for many messages at once.
func (b Broker) BelievingSender(confirms bool, safe belief) *Sender {
	s := b.sender()
	var conn *amqp.Connection
	var ch *amqp.Channel
	s.w.leave = append(s.w.leave, sync.OnceFunc(func() {
		s.end() // first: nobody waits for a farewell
		if conn != nil {
			_ = conn.Close()
		}
	}))
	s.connect = func(context.Context) (err error) {
		if ch != nil && !ch.IsClosed() {
			return nil
		}
		if conn == nil || conn.IsClosed() {
			if conn, err = amqp.Dial(s.url); err != nil {
				return err
			}
		}
		if ch, err = conn.Channel(); err == nil && confirms {
			err = ch.Confirm(false)
		}
		return err
	}
	s.write = func(ctx context.Context, messages []session.Message) (fates []fate) {
		var written []*amqp.DeferredConfirmation
		count := sync.OnceValue(func() int { return safe(ctx, written) })
		for _, m := range messages {
			confirm, err := ch.PublishWithDeferredConfirm(m.Exchange, m.Key, m.Mandatory, false, m.Publishing)
			if err != nil {
				fates = append(fates, func(context.Context) (session.Outcome, error) { return session.NotWritten, err })
				continue
			}
			written = append(written, confirm)
			n := len(written)
			fates = append(fates, func(context.Context) (session.Outcome, error) {
				if n <= count() {
					return session.Confirmed, nil
				}
				return session.Unknown, nil
			})
		}
		return fates
	}
	return s
}

func (b Broker) sender() *Sender {
	w := b.w
	node, _, _ := strings.Cut(w.room.AdminURL(), ",")
	u, err := url.Parse(node)
	w.must(err, "read the room's URL")
	s := &Sender{w: w, events: event.NewRecorder(lineWriter(w.record), "lab", w.name(ledger.Peer)), attempts: map[string]int{}}
	s.way, err = link.Listen("127.0.0.1:0", u.Host)
	w.must(err, "make a link")
	u.Host = s.way.Addr()
	s.url = u.String()
	return s
}

func (s *Sender) end() {
	_ = s.way.Close()
	s.events.Record(event.Line{Event: event.EOF})
}

// BreakAt does something to its connection at the n-th next frame with this
// method from a side, before the other has it.
func (s *Sender) BreakAt(from link.Side, method string, n int, how link.Action) {
	s.w.must(s.way.Do(link.Order{Action: how, Method: method, From: from, N: n}), "order the link to %s", how)
}

// Slow makes every frame to and from the broker take so much longer.
func (s *Sender) Slow(delay time.Duration) {
	s.w.must(s.way.Do(link.Order{Action: link.Slow, Delay: delay}), "slow the link")
}

// Broken waits until so many frames that were waited for have come.
func (s *Sender) Broken(times int) {
	ctx, cancel := context.WithTimeout(s.w.ctx, s.w.slow*seenWithin)
	defer cancel()
	for s.way.Hit() < times {
		s.w.must(ctx.Err(), "wait until the link has broken %d times", times)
		time.Sleep(look / 10)
	}
}

// Blocked waits until it holds calls back because of the broker.
func (s *Sender) Blocked() {
	ctx, cancel := context.WithTimeout(s.w.ctx, s.w.slow*seenWithin)
	defer cancel()
	for !s.blocked() {
		s.w.must(ctx.Err(), "wait until the sender is blocked")
		time.Sleep(look / 10)
	}
}

// Send publishes a message, and waits for its outcome.
func (s *Sender) Send(m session.Message) (session.Outcome, error) {
	ctx, cancel := context.WithTimeout(s.w.ctx, s.w.slow*seenWithin)
	defer cancel()
	s.begin(&m)
	outcome, err := s.send(ctx, m)
	s.ended(m.MessageId, outcome, err)
	return outcome, err
}

// Write publishes messages without waiting in between, and returns when all are
// on their way. What it returns waits for their outcomes.
func (s *Sender) Write(messages ...session.Message) (outcomes func() map[string]session.Outcome) {
	ctx, cancel := context.WithTimeout(s.w.ctx, s.w.slow*seenWithin)
	defer cancel()
	s.w.must(s.connect(ctx), "connect the sender")
	return s.writeConnected(messages)
}

func (s *Sender) writeConnected(messages []session.Message) (outcomes func() map[string]session.Outcome) {
	ctx, cancel := context.WithTimeout(s.w.ctx, s.w.slow*seenWithin)
	for i := range messages {
		s.begin(&messages[i])
	}
	fates := s.write(ctx, messages)
	return func() map[string]session.Outcome {
		defer cancel()
		told := map[string]session.Outcome{}
		for i, wait := range fates {
			outcome, err := wait(ctx)
			told[messages[i].MessageId] = outcome
			s.ended(messages[i].MessageId, outcome, err)
		}
		return told
	}
}

// WriteOn publishes one message after the other until one is not confirmed, and
// returns what became of those that it published. It may run beside the story: it
// needs a connection, and makes none.
func (s *Sender) WriteOn(messages []session.Message) map[string]session.Outcome {
	const (
		unread = 128                    // outcomes, more than any sender has in flight
		pause  = 100 * time.Microsecond // nothing else stops whoever waits for no confirm
	)
	told := map[string]session.Outcome{}
	var outcomes []func() map[string]session.Outcome
	for pace := time.Tick(pause); len(messages) > 0; messages = messages[1:] {
		<-pace
		if outcomes = append(outcomes, s.writeConnected(messages[:1])); len(outcomes) < unread {
			continue
		}
		first := outcomes[0]()
		maps.Copy(told, first)
		if outcomes = outcomes[1:]; !all(first, session.Confirmed) {
			break
		}
	}
	for _, outcome := range outcomes {
		maps.Copy(told, outcome())
	}
	return told
}

// WriteAtOnce publishes messages so that all are on their way before the broker
// has read the first, and returns what became of them.
func (s *Sender) WriteAtOnce(messages ...session.Message) map[string]session.Outcome {
	s.w.must(s.connect(s.w.ctx), "connect the sender")
	s.w.must(s.way.Do(link.Order{Action: link.Freeze}), "freeze the link")
	outcomes := s.Write(messages...)
	s.w.must(s.way.Do(link.Order{Action: link.Heal}), "heal the link")
	return outcomes()
}

// WriteAgain publishes again what may be in no queue, until it is known of each
// that it is in one, or that it will be in none.
func (s *Sender) WriteAgain(messages []session.Message, fates map[string]session.Outcome) {
	last := maps.Clone(fates)
	for {
		var again []session.Message
		for _, m := range messages {
			if fate := last[m.MessageId]; fate == session.Unknown || fate == session.NotWritten {
				again = append(again, m)
			}
		}
		if len(again) == 0 {
			return
		}
		s.w.must(s.w.ctx.Err(), "publish %d messages again", len(again))
		maps.Copy(last, s.Write(again...)())
	}
}

// begin puts an attempt on record, and counts the second and later ones in a
// header, so that whoever receives both can tell them apart.
func (s *Sender) begin(m *session.Message) {
	s.attempts[m.MessageId]++
	n := s.attempts[m.MessageId]
	if n > 1 {
		m.Headers = amqp.Table{contract.HeaderAttempt: int64(n)}
	}
	s.events.Record(event.Line{Event: event.Publishing, Request: m.MessageId, Attempt: n})
}

func (s *Sender) ended(id string, outcome session.Outcome, err error) {
	line := event.Line{Event: fateEvents[outcome], Request: id, Attempt: s.attempts[id]}
	if err != nil {
		line.Reason = fmt.Sprint(err)
	}
	s.events.Record(line)
}
