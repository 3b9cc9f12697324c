package scenario

import (
	"slices"
	"strings"

	"warren.example/messaging/event"
	"warren.example/messaging/session"
)

// One message of a batch is larger than the broker's max_message_size (16 MiB by
// default, 128 MiB before RabbitMQ 4.0; here it is set low). The broker closes the
// channel for it (406). It does not say for which message: all that is in flight is
// unknown, the one too large among it.
//
// Promise: a session of ours gives the broker's reason, with both sizes, and does
// not repeat a message by itself; whoever then leaves out what is too large gets
// all others through, on one new channel. Control: whoever publishes all again that
// is unknown must lose a channel each time, and never gets past it.
var tooLarge = Scenario{
	Name:    "too-large",
	Topic:   "publishing",
	Broke:   "a channel, by a message that is too large",
	Promise: "the reason is told; all others arrive",
	Alone:   true,
	Run: publishTooLarge(func(s *Sender, batch []session.Message, fates map[string]session.Outcome) {
		s.WriteAgain(slices.DeleteFunc(slices.Clone(batch), isTooLarge), fates)
	}),
	Controls: []Control{{
		Name:   "all unknown ones again",
		Shows:  "a channel is lost each time, without end",
		Breaks: othersArrive,
		Run: publishTooLarge(func(s *Sender, batch []session.Message, _ map[string]session.Outcome) {
			for range 3 {
				s.WriteAtOnce(batch...)
			}
		}),
	}},
}

const (
	othersArrive = "all others arrive"
	sizeLimit    = 64 << 10
)

func isTooLarge(m session.Message) bool { return len(m.Body) > sizeLimit }

func publishTooLarge(again func(*Sender, []session.Message, map[string]session.Outcome)) func(*World) {
	return func(w *World) {
		const sent, bad = 40, 20
		// ARRANGE
		w.Broker.LimitMessages(sizeLimit)
		lab := w.Broker.Connect()
		lab.DeclareFailing()
		sender := w.Broker.Sender(session.PublisherOptions{Exchange: failExchange})
		batch := toWork(sent)
		// BREAK
		batch[bad].Body = make([]byte, sizeLimit+1)
		fates := sender.WriteAtOnce(batch...)
		// OBSERVE
		again(sender, batch, fates)
		lab.Drain(workQueue)
		v := w.Settle()
		// VERDICT
		large := batch[bad].MessageId
		unknown := with(fates, session.Unknown)
		v.Hit("the message too large is in no queue", v.Times(large, event.Delivered) == 0)
		for _, m := range batch[bad:] {
			v.Hit("what came after it is unknown", unknown.Has(m.MessageId))
		}
		v.Same("each that is unknown says why", v.Where(func(l event.Line) bool {
			return l.Event == event.Unknown && strings.Contains(l.Reason, "406") && strings.Contains(l.Reason, "65537")
		}), unknown)
		v.Count("it is published once", v.Times(large, event.Publishing), 1)
		others := v.With(event.Publishing)
		delete(others, large)
		v.Same(othersArrive, v.With(event.Audited), others)
		v.Note("of %d at first %s; it cost %d channels", sent, tally(fates), v.Times(large, event.Unknown))
	}
}
