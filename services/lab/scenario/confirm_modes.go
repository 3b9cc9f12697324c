package scenario

import (
	"context"
	"slices"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/ledger"
	"warren.example/messaging/event"
	"warren.example/messaging/session"
)

// The broker dies by SIGKILL while messages are published in each of the ways to
// read confirms: one by one, in batches, and as they come. When it is back, each
// publisher publishes again what it does not know to be safe. The messages are
// persistent and their queue is a quorum queue, which is always durable: a confirm
// says that most nodes have the message on disk, so it outlives the death of all.
//
// Promise: in each way what was believed to be safe is still there, and nothing is
// lost. What may come twice is what was in flight: one message, a batch, or a
// window and the two messages at its ends: the price of speed.
// Control: without confirms messages must be lost, and nobody knows which.
var confirmModes = Scenario{
	Name:    "confirm-modes",
	Topic:   "publishing",
	Broke:   "broker: SIGKILL, in each way to read confirms",
	Promise: "nothing unconfirmed is believed to be safe",
	Alone:   true,
	Run: publishInModes(
		mode{"one by one", 1, func(b Broker) *Sender {
			return b.Sender(session.PublisherOptions{Exchange: failExchange, ConfirmEvery: 1})
		}},
		mode{"batches of 20", 20, func(b Broker) *Sender {
			return b.Sender(session.PublisherOptions{Exchange: failExchange, ConfirmEvery: 20})
		}},
		mode{"as they come", 100 + 2, func(b Broker) *Sender {
			return b.Sender(session.PublisherOptions{Exchange: failExchange, Window: 100})
		}},
	),
	Controls: []Control{{
		Name:   "no confirms",
		Shows:  "messages are lost, and nobody knows",
		Breaks: string(ledger.NoLoss),
		Run: publishInModes(mode{"no confirms", 0, func(b Broker) *Sender {
			return b.BelievingSender(false, trustCalls)
		}}),
	}},
}

// mode is a way to read confirms.
type mode struct {
	what     string
	inFlight int // messages without a confirm, at most
	begin    func(Broker) *Sender
}

// publisher publishes in one of them.
type publisher struct {
	mode
	*Sender
	rate  float64
	bulk  []session.Message
	fates map[string]session.Outcome // as far as it had come when the broker died
}

func publishInModes(modes ...mode) func(*World) {
	return func(w *World) {
		const timed, some, most = 200, 50, 50_000
		const way = time.Millisecond // so that something is on it whenever the broker dies
		// ARRANGE  each alone, for its pace; then all at the same time, and from farther away
		w.Broker.Connect().DeclareFailing()
		var publishers []*publisher
		for _, m := range modes {
			p := &publisher{mode: m, Sender: m.begin(w.Broker), bulk: toWork(most)}
			p.Write(toWork(1)...)() // so that its connection does not count
			began := time.Now()
			p.Write(toWork(timed)...)()
			p.rate = timed / time.Since(began).Seconds()
			publishers = append(publishers, p)
		}
		var publishing sync.WaitGroup
		for _, p := range publishers {
			p.Slow(way)
			publishing.Go(func() { p.fates = p.WriteOn(p.bulk) })
		}
		w.Until("each has had some confirmed", func(l seen) bool {
			return !slices.ContainsFunc(publishers, func(p *publisher) bool {
				return l.Times(p.bulk[some].MessageId, event.Confirmed) == 0
			})
		})
		// BREAK
		w.Broker.Kill()
		publishing.Wait()
		w.Broker.Start()
		// OBSERVE
		for _, p := range publishers {
			p.WriteAgain(p.bulk, p.fates)
		}
		w.Broker.Connect().Drain(workQueue)
		v := w.Settle()
		// VERDICT
		twice := v.AtLeast(2, event.Delivered)
		for _, p := range publishers {
			safe, unknown := with(p.fates, session.Confirmed), with(p.fates, session.Unknown)
			again := twice.And(unknown)
			twice = twice.Minus(again)
			v.Hit(p.what+": in the middle of publishing", len(p.fates) > len(safe))
			v.That(p.what+": what was in flight comes twice, no more", len(again) <= p.inFlight, "%d did, of at most %d", len(again), p.inFlight)
			v.Note("%s: %.0f/s, %d believed safe, %d unknown, %d came twice", p.what, p.rate, len(safe), len(unknown), len(again))
		}
		v.None("only unknown ones come twice", twice)
		v.Same("every message arrives", v.With(event.Audited), v.With(event.Publishing))
	}
}

// trustCalls takes a call without an error for a success.
func trustCalls(_ context.Context, written []*amqp.DeferredConfirmation) int { return len(written) }
