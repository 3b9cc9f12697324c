package scenario

import (
	"strings"

	"warren.example/lab/ledger"
	"warren.example/lab/link"
	"warren.example/messaging/event"
	"warren.example/messaging/session"
)

// Publishing fails in six ways, one after the other, and goes well in between.
//
// Promise: a session of ours tells which: returned, nacked, or unknown, and why;
// what is unknown may be in its queue all the same, so it must be published
// again, under its id. Control: whoever reads only what the client library's Wait
// says must take a return for success, and a lost connection for a refusal.
var publishFailures = Scenario{
	Name:    "publish-failures",
	Topic:   "publishing",
	Broke:   "publishing, in six ways",
	Promise: "each is told apart, and why",
	Run:     failToPublish(func(b Broker) *Sender { return b.Sender(session.PublisherOptions{Exchange: failExchange}) }),
	Controls: []Control{{
		Name:   "true or false",
		Shows:  "a return is a success, a cut is a refusal",
		Breaks: toldApart,
		Run:    failToPublish(Broker.NaiveSender),
	}},
}

const (
	toldApart    = "each is told apart"
	failExchange = "lesson.fail"
	fullQueue    = "lesson.full"
)

// failure is a way to fail, and what a publisher may conclude.
type failure struct {
	what  string
	want  session.Outcome
	why   string // part of the reason that is given
	spoil func(s *Sender, m *session.Message)
}

var failures = []failure{
	{"a key without a queue, mandatory", session.Returned, "312", func(_ *Sender, m *session.Message) {
		m.Key = "nobody"
	}},
	{"a full queue that rejects publishes", session.Nacked, "refused", func(_ *Sender, m *session.Message) {
		m.Key = fullQueue
	}},
	{"an exchange that is not there", session.Unknown, "404", func(_ *Sender, m *session.Message) {
		m.Exchange = "lesson.nowhere"
	}},
	{"an expiration of \"5s\"", session.Unknown, "406", func(_ *Sender, m *session.Message) {
		m.Expiration = "5s" // it is milliseconds, and no unit
	}},
	{"another's user-id", session.Unknown, "406", func(_ *Sender, m *session.Message) {
		m.UserId = "somebody-else"
	}},
	{"a connection that is cut before the confirm", session.Unknown, "", func(s *Sender, _ *session.Message) {
		s.BreakAt(link.Broker, "basic.ack", 1, link.Reset)
	}},
}

func failToPublish(begin func(Broker) *Sender) func(*World) {
	return func(w *World) {
		// ARRANGE  an exchange with a queue that takes messages, and one that is full from the start
		lab := w.Broker.Connect()
		lab.DeclareFailing()
		sender := begin(w.Broker)
		// BREAK  one way after the other, and a good message after each
		var mistaken []string
		cut := ""
		for _, f := range failures {
			m := toWork(1)[0]
			f.spoil(sender, &m)
			got, err := sender.Send(m)
			if got != f.want || err == nil || !strings.Contains(err.Error(), f.why) {
				mistaken = append(mistaken, f.what+": "+got.String())
			}
			cut = m.MessageId
			_, err = sender.Send(toWork(1)[0])
			w.must(err, "publish after %s", f.what)
		}
		// OBSERVE
		lab.Drain(workQueue)
		v := w.Settle()
		// VERDICT
		v.Hit("the message of the cut connection is in its queue", v.With(event.Audited).Has(cut))
		v.That(toldApart, len(mistaken) == 0, "%s", strings.Join(mistaken, "; "))
		v.None("what is returned or nacked is in no queue",
			v.With(event.RequestReturned, event.PublishNacked).And(v.With(event.Audited).Minus(ledger.SetOf(cut))))
		v.Same("the good ones arrive, and the one that was cut", v.With(event.Audited), v.With(event.Confirmed).Or(ledger.SetOf(cut)))
	}
}
