package scenario

import (
	"warren.example/lab/substrate"
	"warren.example/messaging/event"
	"warren.example/messaging/fault"
)

// The auditor's pod is moved to another machine while dead letters arrive. The
// old one hangs between the commit of a dead letter and its ack, and is deleted
// by force once its successor works: the broker delivers that letter again, to
// the successor.
//
// Promise: every death is one row, whichever of the two pods wrote it; the second
// sighting is counted in it. Control: without the unique key the same move must
// make two rows of one death.
var auditorMoved = Scenario{
	Name:    "auditor-moved",
	Topic:   "Kubernetes",
	Broke:   "the auditor's pod is moved, and hangs",
	Promise: "one row per death, by either pod",
	Needs:   Needs{Kubernetes: true, Own: true},
	Run:     moveAuditor(nil),
	Controls: []Control{{
		Name:   "no unique key",
		Shows:  "two rows for one death",
		Breaks: oneRow,
		Run:    moveAuditor(Settings{"UNIQUE_KEY": "false"}),
	}},
}

func moveAuditor(settings Settings) func(*World) {
	return func(w *World) {
		const before, after = 5, 5
		// ARRANGE  an auditor; nobody serves, so every request expires
		auditor := w.Deploy(substrate.DeadLetterAuditor, 1, settings)
		old := auditor.Pods()[0]
		// BREAK  it hangs when the third dead letter is committed and not yet acked
		old.HoldAt(fault.AfterCommit, 3)
		w.Publish(brief(before)...)
		w.Until("it hangs", passed(event.Held, 1))
		auditor.Move(old)
		w.Publish(brief(after)...)
		auditor.DeleteByForce(old)
		w.Until("all are on record, one of them again", func(l seen) bool {
			return len(l.With(event.Audited)) == before+after && len(l.AtLeast(2, event.Audited)) > 0
		})
		rows := auditor.Pods()[0].DeadLetters()
		// OBSERVE
		v := w.Settle()
		// VERDICT
		v.Hit("a dead letter seen by both", len(v.AtLeast(2, event.Audited)) > 0)
		v.oneRowEach(rows)
	}
}
