package scenario

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/ledger"
	"warren.example/messaging/contract"
	"warren.example/messaging/event"
)

// author publishes what our client would refuse to. It keeps its own part of
// the ledger: intents, confirms, and the replies that it gets.
type author struct {
	conn    *amqp.Connection
	ch      *amqp.Channel
	events  *event.Recorder
	replies sync.WaitGroup
	closing sync.Once
}

// lineWriter lets a Recorder write where lines are taken.
type lineWriter func(event.Line)

func (take lineWriter) Write(b []byte) (int, error) {
	var line event.Line
	if err := json.Unmarshal(b, &line); err != nil {
		return 0, err
	}
	take(line)
	return len(b), nil
}

func newAuthor(url string, take func(event.Line)) (*author, error) {
	url, _, _ = strings.Cut(url, ",") // one of several nodes is enough
	conn, err := amqp.Dial(url)
	if err != nil {
		return nil, err
	}
	a := &author{conn: conn, events: event.NewRecorder(lineWriter(take), "lab", ledger.Author)}
	if err := a.open(); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return a, nil
}

// open makes a reply queue like a client's, and a channel with confirms.
func (a *author) open() error {
	var err error
	if a.ch, err = a.conn.Channel(); err != nil {
		return err
	}
	queue := contract.ClientReplyQueue + "." + ledger.Author + ".1"
	if _, err := a.ch.QueueDeclare(queue, false, false, true, false, nil); err != nil {
		return fmt.Errorf("declare %s: %w", queue, err)
	}
	if err := a.ch.QueueBind(queue, contract.ReplyKey(contract.UserClient, ledger.Author), contract.ReplyExchange, false, nil); err != nil {
		return fmt.Errorf("bind %s: %w", queue, err)
	}
	replies, err := a.ch.Consume(queue, "", true, true, false, false, nil)
	if err != nil {
		return fmt.Errorf("consume %s: %w", queue, err)
	}
	a.replies.Go(func() {
		told := map[string]bool{}
		for d := range replies { // ends with the connection
			line := event.Line{Event: event.Answered, Request: d.CorrelationId}
			if reply, err := contract.DecodeReply(&d); err != nil {
				line.Event, line.Code = event.Refused, string(errorCode(err))
			} else {
				line.Result = reply.Result
			}
			if told[d.CorrelationId] {
				line.Event = event.DuplicateReply
			}
			told[d.CorrelationId] = true
			a.events.Record(line)
		}
	})
	return a.ch.Confirm(false)
}

func errorCode(err error) contract.Code {
	if e, ok := err.(*contract.Error); ok {
		return e.Code
	}
	return ""
}

// publish sends all and waits for every confirm.
func (a *author) publish(ctx context.Context, requests []amqp.Publishing) error {
	confirms := make([]*amqp.DeferredConfirmation, len(requests))
	for i, p := range requests {
		a.events.Record(event.Line{Event: event.Publishing, Request: p.MessageId})
		c, err := a.ch.PublishWithDeferredConfirm(contract.RequestExchange, contract.RequestKey, true, false, p)
		if err != nil {
			return err
		}
		confirms[i] = c
	}
	for i, c := range confirms {
		acked, err := c.WaitContext(ctx)
		if err != nil {
			return err
		}
		kind := event.Confirmed
		if !acked {
			kind = event.Unknown
		}
		a.events.Record(event.Line{Event: kind, Request: requests[i].MessageId})
	}
	return nil
}

// close may be called twice.
func (a *author) close() {
	a.closing.Do(func() {
		_ = a.conn.Close()
		a.replies.Wait()
		a.events.Record(event.Line{Event: event.EOF})
	})
}

// request is what a well-behaved stranger publishes. Its correlation-id is its
// message-id, so that a reply tells which request it answers.
func request(op contract.Operation, operands ...string) amqp.Publishing {
	const patience = time.Minute
	id := uuid.Must(uuid.NewV7()).String()
	return amqp.Publishing{
		MessageId: id, CorrelationId: id,
		Type: contract.RequestType, ContentType: contract.ContentType,
		ReplyTo: contract.ReplyKey(contract.UserClient, ledger.Author), UserId: contract.UserClient,
		DeliveryMode: amqp.Persistent, Timestamp: time.Now(),
		Expiration: strconv.FormatInt(patience.Milliseconds(), 10),
		Headers:    amqp.Table{contract.HeaderDeadline: time.Now().Add(patience).UnixMilli()},
		Body:       contract.Encode(contract.Request{Operation: op, Operands: operands}),
	}
}
