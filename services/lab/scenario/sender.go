package scenario

import (
	"context"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/ledger"
	"warren.example/lab/link"
	"warren.example/messaging/event"
	"warren.example/messaging/session"
)

// Sender publishes one message after the other and says what became of each.
type Sender struct {
	w      *World
	events *event.Recorder
	way    *link.Link // to the broker; it breaks when it is told to
	url    string
	send   func(context.Context, session.Message) (session.Outcome, error)
}

// Sender makes one on a session of ours.
func (b Broker) Sender(exchange string) *Sender {
	s := b.sender()
	p := session.NewPublisher(session.Options{Name: "lab", Config: sessionConfig(s.url)}, session.PublisherOptions{Exchange: exchange})
	s.w.leave = append(s.w.leave, sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(s.w.ctx), goneWithin)
		defer cancel()
		_ = p.Close(ctx)
		s.end()
	}))
	s.send = func(ctx context.Context, m session.Message) (session.Outcome, error) {
		for p.Ready() != nil && s.w.ctx.Err() == nil { // the last message may have cost the connection
			time.Sleep(look / 10)
		}
		return p.Publish(ctx, m)
	}
	return s
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

func (b Broker) sender() *Sender {
	w := b.w
	node, _, _ := strings.Cut(w.room.AdminURL(), ",")
	u, err := url.Parse(node)
	w.must(err, "read the room's URL")
	s := &Sender{w: w, events: event.NewRecorder(lineWriter(w.record), "lab", w.name(ledger.Peer))}
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

// BreakAt does something to its connection at the next frame with this method
// from the broker.
func (s *Sender) BreakAt(method string, how link.Action) {
	s.w.must(s.way.Do(link.Order{Action: how, Method: method, From: link.Broker, N: 1}), "order the link to %s", how)
}

// Send publishes a message, and waits for its outcome.
func (s *Sender) Send(m session.Message) (session.Outcome, error) {
	ctx, cancel := context.WithTimeout(s.w.ctx, s.w.slow*seenWithin)
	defer cancel()
	s.events.Record(event.Line{Event: event.Publishing, Request: m.MessageId})
	outcome, err := s.send(ctx, m)
	line := event.Line{Event: fateEvents[outcome], Request: m.MessageId}
	if err != nil {
		line.Reason = fmt.Sprint(err)
	}
	s.events.Record(line)
	return outcome, err
}
