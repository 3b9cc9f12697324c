package scenario

import (
	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/ledger"
	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/fault"
)

// The auditor dies between the commit of a dead letter and its ack, so the
// broker delivers the same dead letter again.
//
// Promise: one row for each death, with the second sighting counted in it.
// Control: without the unique key the same kill must make two rows.
var auditorKilled = Scenario{
	Name:    "auditor-killed",
	Topic:   "dead letters",
	Broke:   "auditor: SIGKILL after the commit, before the ack",
	Promise: "one row per death, seen twice",
	Run:     killAuditor(nil),
	Controls: []Control{{
		Name:   "no unique key",
		Shows:  "two rows for one death",
		Breaks: oneRow,
		Run:    killAuditor(Settings{"UNIQUE_KEY": "false"}),
	}},
}

const oneRow = "one row per death"

func killAuditor(settings Settings) func(*World) {
	return func(w *World) {
		const sent = 5
		// ARRANGE  an auditor; nobody serves, so every request expires
		auditor := w.Audit(settings)
		// BREAK  it dies when the third dead letter is committed and not yet acked
		auditor.CrashAt(fault.AfterCommit, 3)
		w.Publish(brief(sent)...)
		w.Until("all are on record, one of them again", func(l seen) bool {
			return len(l.With(event.Audited)) == sent && len(l.AtLeast(2, event.Audited)) > 0
		})
		rows := auditor.DeadLetters()
		// OBSERVE
		v := w.Settle()
		// VERDICT
		v.Hit("a dead letter delivered again", len(v.AtLeast(2, event.Audited)) > 0)
		v.oneRowEach(rows)
	}
}

// brief is n requests that expire after a tenth of a second.
func brief(n int) []amqp.Publishing {
	var all []amqp.Publishing
	for range n {
		r := request(contract.Add, "1", "2")
		r.Expiration = "100" // milliseconds
		all = append(all, r)
	}
	return all
}

// oneRowEach promises of what an auditor has stored: one row for each request
// that was made, and the second sighting of its death counted in it.
func (v *Verdict) oneRowEach(rows []DeadLetter) {
	stored, doubled, again := ledger.Set{}, ledger.Set{}, ledger.Set{}
	for _, row := range rows {
		if stored.Has(row.Request) {
			doubled[row.Request] = struct{}{}
		}
		stored[row.Request] = struct{}{}
		if row.Seen > 1 {
			again[row.Request] = struct{}{}
		}
	}
	v.None(oneRow, doubled)
	v.Same("every death is on record", stored, v.With(event.Publishing))
	v.Same("the second sighting is counted", again, v.AtLeast(2, event.Audited))
}
