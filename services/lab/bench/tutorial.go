package main

import (
	"context"
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/messaging/contract"
)

// tutorialServe follows RabbitMQ's Go tutorial six, on a quorum queue:
// prefetch 1, one goroutine, reply and then ack, no confirm of either.
func tutorialServe(ctx context.Context, b broker, queue string, ready func()) error {
	conn, err := amqp.Dial(b.admin)
	if err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("open channel: %w", err)
	}
	if err := declare(ch, queue, true); err != nil {
		return err
	}
	defer ch.QueueDelete(queue, false, false, false)
	if err := ch.Qos(1, 0, false); err != nil {
		return fmt.Errorf("qos: %w", err)
	}
	in, err := ch.Consume(queue, "", false, false, false, false, nil)
	if err != nil {
		return fmt.Errorf("consume %s: %w", queue, err)
	}
	failed := make(chan error, 1)
	go func() {
		for d := range in {
			body, err := handle(d.Body)
			if err == nil {
				err = ch.PublishWithContext(ctx, "", d.ReplyTo, false, false, amqp.Publishing{
					ContentType: contract.ContentType, CorrelationId: d.CorrelationId, Body: body})
			}
			if err == nil {
				err = d.Ack(false)
			}
			if err != nil {
				failed <- err
				return
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

// tutorialClient keeps a channel with a reply queue for each call in flight.
// That is kinder than the tutorial, which dials for every call.
type tutorialClient struct {
	conn  *amqp.Connection
	queue string
	free  chan tutorialLane
}

type tutorialLane struct {
	ch      *amqp.Channel
	replyTo string
	in      <-chan amqp.Delivery
}

func tutorialDial(_ context.Context, b broker, queue string, inFlight int) (Client, error) {
	conn, err := amqp.Dial(b.admin)
	if err != nil {
		return nil, fmt.Errorf("dial: %w", err)
	}
	c := &tutorialClient{conn: conn, queue: queue, free: make(chan tutorialLane, inFlight)}
	for range inFlight {
		ch, err := conn.Channel()
		if err != nil {
			return nil, fmt.Errorf("open channel: %w", err)
		}
		q, err := ch.QueueDeclare("", false, false, true, false, nil)
		if err != nil {
			return nil, fmt.Errorf("declare reply queue: %w", err)
		}
		in, err := ch.Consume(q.Name, "", true, false, false, false, nil)
		if err != nil {
			return nil, fmt.Errorf("consume %s: %w", q.Name, err)
		}
		c.free <- tutorialLane{ch, q.Name, in}
	}
	return c, nil
}

func (c *tutorialClient) Call(ctx context.Context, r contract.Request) (contract.Reply, error) {
	l := <-c.free
	defer func() { c.free <- l }()
	const id = "0123456789abcdef0123456789abcdef" // one call per lane: nothing else can answer
	err := l.ch.PublishWithContext(ctx, "", c.queue, false, false, amqp.Publishing{
		ContentType: contract.ContentType, CorrelationId: id, ReplyTo: l.replyTo, Body: contract.Encode(r)})
	if err != nil {
		return contract.Reply{}, fmt.Errorf("publish: %w", err)
	}
	select {
	case d := <-l.in:
		return decode(d.Body)
	case <-ctx.Done():
		return contract.Reply{}, ctx.Err()
	}
}

func (c *tutorialClient) Close(context.Context) error { return c.conn.Close() }
