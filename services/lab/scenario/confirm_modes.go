package scenario

import (
	"context"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/ledger"
	"warren.example/lab/link"
	"warren.example/messaging/event"
	"warren.example/messaging/session"
)

// The same number of messages is published in each of the ways to read confirms:
// one by one, in batches, and as they come. Then it is done again, and the
// connection is cut in the middle.
//
// Promise: in each way the publisher knows what may be in no queue, publishes it
// again and loses none. What may come twice is what was in flight: one message, a
// batch, or a window and the two messages at its ends: the price of speed.
// Control: without confirms messages must be lost, and nobody knows which.
var confirmModes = Scenario{
	Name:    "confirm-modes",
	Topic:   "publishing",
	Broke:   "a connection, in each way to read confirms",
	Promise: "nothing unconfirmed is believed to be safe",
	Run: publishInModes(
		mode{"one by one", func(b Broker) *Sender {
			return b.Sender(session.PublisherOptions{Exchange: failExchange, ConfirmEvery: 1})
		}},
		mode{"batches of 20", func(b Broker) *Sender {
			return b.Sender(session.PublisherOptions{Exchange: failExchange, ConfirmEvery: 20})
		}},
		mode{"as they come", func(b Broker) *Sender {
			return b.Sender(session.PublisherOptions{Exchange: failExchange, Window: 100})
		}},
	),
	Controls: []Control{{
		Name:   "no confirms",
		Shows:  "messages are lost, and nobody knows",
		Breaks: string(ledger.NoLoss),
		Run: publishInModes(mode{"no confirms", func(b Broker) *Sender {
			return b.BelievingSender(false, trustCalls)
		}}),
	}},
}

// mode is a way to read confirms.
type mode struct {
	what  string
	begin func(Broker) *Sender
}

func publishInModes(modes ...mode) func(*World) {
	return func(w *World) {
		const sent = 200
		// ARRANGE
		lab := w.Broker.Connect()
		lab.DeclareFailing()
		unknown := map[string]ledger.Set{}
		rate := map[string]float64{}
		for _, m := range modes {
			sender := m.begin(w.Broker)
			sender.Write(toWork(1)...)() // so that its connection does not count
			began := time.Now()
			sender.Write(toWork(sent)...)()
			rate[m.what] = sent / time.Since(began).Seconds()
			// BREAK  at a message, which is in no queue then
			bulk := toWork(sent)
			sender.BreakAt(link.Service, "basic.publish", sent/2, link.Reset)
			fates := sender.Write(bulk...)()
			sender.Broken(1)
			unknown[m.what] = with(fates, session.Unknown)
			sender.WriteAgain(bulk, fates)
		}
		// OBSERVE
		lab.Drain(workQueue)
		v := w.Settle()
		// VERDICT
		twice := v.AtLeast(2, event.Delivered)
		for _, m := range modes {
			again := twice.And(unknown[m.what])
			twice = twice.Minus(again)
			v.Hit(m.what+": a message that was in no queue", len(unknown[m.what]) > len(again))
			v.Note("%s: %.0f/s, %d unknown, %d came twice", m.what, rate[m.what], len(unknown[m.what]), len(again))
		}
		v.None("only unknown ones come twice", twice)
		v.Same("every message arrives", v.With(event.Audited), v.With(event.Publishing))
	}
}

// trustCalls takes a call without an error for a success.
func trustCalls(_ context.Context, written []*amqp.DeferredConfirmation) int { return len(written) }
