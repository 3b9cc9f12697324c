package scenario

import (
	"slices"
	"time"

	"warren.example/lab/ledger"
	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/fault"
)

// The clock of one client is ten minutes fast, that of another ten minutes slow,
// and both write a deadline by it into their requests.
//
// Promise: nothing begins after its caller has given up. The expiration is a span
// that the broker counts by its own clock, so what waits in the queue dies in time
// whatever the client's clock says; the deadline in the header is an instant, and
// catches what has waited in a server's hands, where nothing expires. A client
// whose clock is slow is refused at once, and told by how much it was late.
// Controls: by the header alone the request of the fast clock must be run when
// nobody waits for it; by the expiration alone, what was in a server's hands.
//
// What both together do not catch is a request of a fast clock that waits in a
// server's hands: only a small prefetch helps.
var clockSkew = Scenario{
	Name:    "clock-skew",
	Topic:   "request and reply",
	Broke:   "one client's clock is fast, another's slow",
	Promise: "nothing begins when its caller has given up",
	Run:     skew("1500", nil),
	Controls: []Control{{
		Name:   "the header alone",
		Shows:  "a fast clock's request is run for nobody",
		Breaks: notTooLate,
		Run:    skew("", nil, "--no-expiration"),
	}, {
		Name:   "the expiration alone",
		Shows:  "so is what waited in a server's hands",
		Breaks: notTooLate,
		Run:    skew("1500", Settings{"DEADLINE_CHECK": "false"}),
	}},
}

const notTooLate = "nothing begins too late"

func skew(expiration string, settings Settings, flags ...string) func(*World) {
	return func(w *World) {
		const wrong = 10 * time.Minute
		impatient := slices.Concat(flags, []string{"--timeout", "1500ms"})
		// ARRANGE  an auditor; a server with two requests in its hands, of which the first is held and the other waits for it
		w.Audit(nil)
		server := w.Serve(settings.With(Settings{"PREFETCH": "2", "CONCURRENCY": "1"}))
		server.HoldAt(fault.AfterWork, 1)
		asker := w.Load(append(impatient, "--endless", "--in-flight", "2")...) // it stays, so that late replies are seen
		w.Until("both are in hand", func(l seen) bool { return len(l.With(event.Delivered)) == 2 && len(l.With(event.Held)) == 1 })
		inHand := w.ledger.With(event.Delivered)
		// BREAK  the fast clock asks, then a right one that is as patient: when that has given up, so has the other
		fast, slow := request(contract.Add, "1", "2"), request(contract.Add, "3", "4")
		fast.Expiration = expiration
		fast.Headers[contract.HeaderDeadline] = time.Now().Add(wrong).UnixMilli()
		slow.Headers[contract.HeaderDeadline] = time.Now().Add(-wrong).UnixMilli()
		w.Publish(fast)
		right := w.Load(append(impatient, "--count", "1")...)
		late := func(l seen) ledger.Set {
			gaveUp := l.Where(func(line event.Line) bool {
				return line.Event == event.TimedOut && (line.Instance == right.Name() || inHand.Has(line.Request))
			})
			return gaveUp.Minus(l.With(event.Held))
		}
		w.Until("those in hand and the right one gave up", func(l seen) bool { return len(late(l)) == 2 && len(inHand.Minus(l.With(event.TimedOut))) == 0 })
		server.Release()
		w.Publish(slow) // and is in no hurry
		// OBSERVE  until callers are answered again
		w.Until("a caller is answered", func(l seen) bool {
			return len(l.Where(func(line event.Line) bool { return line.Event == event.Answered && line.Instance == asker.Name() })) > 0
		})
		asker.Enough()
		v := w.Settle()
		// VERDICT
		tooLate := late(v.Ledger).Or(ledger.SetOf(fast.MessageId))
		v.Hit("a request in a server's hands past its deadline", len(tooLate.And(inHand)) == 1)
		v.None(notTooLate, tooLate.And(v.With(event.Computed)))
		v.Same("the slow clock is refused, by its deadline",
			v.Where(func(l event.Line) bool {
				return l.Event == event.Refused && l.Code == string(contract.DeadlineExceeded)
			}), ledger.SetOf(slow.MessageId))
		unserved := tooLate.Or(ledger.SetOf(slow.MessageId))
		v.Same("all of that is audited", v.With(event.Audited).And(unserved), unserved)
	}
}
