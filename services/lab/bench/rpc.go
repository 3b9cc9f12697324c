package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"warren.example/messaging/contract"
	"warren.example/messaging/rpc"
	"warren.example/messaging/service"
	"warren.example/messaging/session"
)

// rpcSession has the defaults that a service starts with.
func rpcSession(url, name string) (session.Options, error) {
	if err := os.Setenv(service.Prefix+"_AMQP_URL", url); err != nil {
		return session.Options{}, err
	}
	var s rpcSettings
	err := service.Load(&s)
	return session.Options{Config: s.AMQP, Name: name}, err
}

type rpcSettings struct{ AMQP session.Config }

func (s *rpcSettings) Validate() error { return s.AMQP.Validate() }

// rpcServe answers as a calculator does: validate, compute, reply, wait for the
// reply's confirm, ack. It stands on the suite's topology, so queue is unused.
func rpcServe(ctx context.Context, b broker, _ string, ready func()) error {
	o, err := rpcSession(b.server, "bench-server")
	if err != nil {
		return err
	}
	pub := session.NewPublisher(o, session.PublisherOptions{Exchange: contract.ReplyExchange})
	responder := rpc.NewResponder(pub, nil)
	failed := make(chan error, 1)
	in := session.NewConsumer(o, session.ConsumerOptions{
		Queue:    contract.RequestQueue,
		Prefetch: prefetch,
		AckDelay: time.Millisecond, // as the calculator-server
		Handle: func(d *session.Delivery) {
			go func() {
				if err := rpcAnswer(ctx, responder, d); err != nil && ctx.Err() == nil {
					select {
					case failed <- err:
					default:
					}
				}
			}()
		},
	})
	err = errors.Join(pub.WaitReady(ctx), in.WaitReady(ctx))
	if err == nil {
		ready()
		select {
		case <-ctx.Done():
		case err = <-failed:
		}
	}
	end, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	return errors.Join(err, in.Close(end), pub.Close(end))
}

func rpcAnswer(ctx context.Context, responder *rpc.Responder, d *session.Delivery) error {
	r, _, err := contract.Validate(&d.Delivery)
	if err != nil {
		return fmt.Errorf("validate: %w", err)
	}
	reply, err := add(r)
	if err != nil {
		return err
	}
	outcome, err := responder.Reply(ctx, d, reply)
	if outcome != session.Confirmed {
		return fmt.Errorf("reply: %s: %w", outcome, err)
	}
	return d.Ack()
}

type rpcClient struct{ *rpc.Caller }

func rpcDial(ctx context.Context, b broker, _ string, _ int) (Client, error) {
	o, err := rpcSession(b.client, "bench-client")
	if err != nil {
		return nil, err
	}
	c, err := rpc.NewCaller(rpc.CallerOptions{
		Session:    o,
		Instance:   fmt.Sprintf("bench-%d", os.Getpid()),
		ReplyQueue: contract.ClientReplyQueue,
	})
	if err != nil {
		return nil, err
	}
	return rpcClient{c}, c.WaitReady(ctx)
}

func (c rpcClient) Call(ctx context.Context, r contract.Request) (contract.Reply, error) {
	return c.Caller.Call(ctx, rpc.Call{Request: r})
}
