package scenario

import (
	"slices"
	"strings"

	"warren.example/lab/ledger"
	"warren.example/messaging/event"
	"warren.example/messaging/session"
)

// One message of a batch is for an exchange that is not there. The broker closes
// the channel for it (404), says nothing more of what came before, and throws away
// what comes after.
//
// Promise: a session of ours tells what became of each message, and why; all but
// the one are published again, on a new channel, and arrive. Control: whoever takes
// a call without an error for a success must lose what was written after it.
var missingExchange = Scenario{
	Name:    "missing-exchange",
	Topic:   "publishing",
	Broke:   "a channel, by one message of a batch",
	Promise: "the others are known, sent again and arrive",
	Run: publishPastMissing(func(b Broker) *Sender {
		return b.Sender(session.PublisherOptions{Exchange: failExchange})
	}),
	Controls: []Control{{
		Name:   "believing in the call",
		Shows:  "written, so sent: the rest is gone",
		Breaks: string(ledger.NoLoss),
		Run:    publishPastMissing(func(b Broker) *Sender { return b.BelievingSender(true, trustCalls) }),
	}},
}

func publishPastMissing(begin func(Broker) *Sender) func(*World) {
	return func(w *World) {
		const sent, bad = 40, 20
		// ARRANGE
		lab := w.Broker.Connect()
		lab.DeclareFailing()
		sender := begin(w.Broker)
		batch := toWork(sent)
		// BREAK
		batch[bad].Exchange = "lesson.nowhere"
		fates := sender.WriteAtOnce(batch...)
		// OBSERVE
		good := slices.Delete(slices.Clone(batch), bad, bad+1)
		sender.WriteAgain(good, fates)
		lab.Drain(workQueue)
		v := w.Settle()
		// VERDICT
		one := ledger.SetOf(batch[bad].MessageId)
		unknown := with(fates, session.Unknown)
		twice := v.AtLeast(2, event.Delivered)
		for _, m := range batch[bad+1:] {
			v.Hit("what came after it was thrown away", v.Late().Has(m.MessageId))
		}
		v.Same("each that is unknown says why", v.Where(func(l event.Line) bool {
			return l.Event == event.Unknown && strings.Contains(l.Reason, "404")
		}), unknown)
		v.None("only unknown ones come twice", twice.Minus(unknown))
		v.Same("all others arrive", v.With(event.Audited), v.With(event.Publishing).Minus(one))
		v.Note("of %d at first %s; %d came twice", sent, tally(fates), len(twice))
	}
}
