package scenario

import (
	"context"
	"time"

	"warren.example/lab/ledger"
	"warren.example/messaging/event"
)

// A bug in the server made dead letters of requests: their callers were told
// INTERNAL, and nothing was executed. A server without the bug takes its place, and
// the auditor publishes them again: the same bodies under the same message-ids.
//
// Promise: each is executed once, whoever asks for its replay twice, and its row is
// closed with the result. Control: replayed while the bug is still there, none is
// executed, and each is on record as having failed again.
var replayAfterFix = Scenario{
	Name:    "replay-after-fix",
	Topic:   "dead letters",
	Broke:   "server: a bug kills requests; a fix; a replay",
	Promise: "replayed, each is executed once",
	Run:     replay(func(w *World, buggy *Servant) { buggy.Leave(); w.Serve(nil) }),
	Controls: []Control{{
		Name:   "no fix",
		Shows:  "they fail again, and that is on record",
		Breaks: replayedOnce,
		Run:    replay(func(*World, *Servant) {}),
	}},
}

const replayedOnce = "each is executed, once"

func replay(fix func(w *World, buggy *Servant)) func(*World) {
	return func(w *World) {
		const sent = 5
		// ARRANGE  an auditor, and a server that panics on every memory-add
		auditor := w.Audit(nil)
		buggy := w.Serve(Settings{"PANIC_ON": "memory-add"})
		w.Load("--count", "5", "--operations", "memory-add", "--timeout", "1m")
		w.Until("all are dead letters", passed(event.Audited, sent))
		dead := w.ledger.With(event.Audited)
		// BREAK  every row is replayed, and asked for once more
		fix(w, buggy)
		rows := auditor.DeadLetters()
		replays := 0
		for _, row := range append(rows, rows...) {
			if auditor.Replay(row) {
				replays++
			}
		}
		w.Until("every replay has ended", func(l seen) bool {
			return len(l.Where(func(line event.Line) bool {
				return line.Replay > 0 && (line.Event == event.Answered || line.Event == event.Refused)
			})) == sent
		})
		memory := w.Call("memory-recall")
		// OBSERVE
		ctx, cancel := context.WithTimeout(w.ctx, w.slow*seenWithin)
		defer cancel()
		for rows = auditor.DeadLetters(); len(statusOf(rows, "replaying")) > 0; rows = auditor.DeadLetters() {
			w.must(ctx.Err(), "wait until every replay is closed")
			time.Sleep(look / 10)
		}
		v := w.Settle()
		// VERDICT
		v.Hit("calls refused, and dead letters", len(v.With(event.Refused).And(dead)) == sent)
		v.That(replayedOnce, memory.Result == "5", "the memory holds %q after %d replays of an addition of 1, of %d requests", memory.Result, replays, sent)
		v.Same("under its own message-id", v.Where(func(l event.Line) bool { return l.Event == event.Computed && l.Replay > 0 }), dead)
		v.None("and not twice", v.AtLeast(2, event.Computed))
		v.Same("each row is closed with a result", statusOf(rows, "answered"), dead)
		v.Note("%d replays of %d asked for", replays, 2*sent)
	}
}

// statusOf is the requests whose first death has this status.
func statusOf(rows []DeadLetter, status string) ledger.Set {
	ids := ledger.Set{}
	for _, row := range rows {
		if row.Replay == 0 && row.Status == status {
			ids[row.Request] = struct{}{}
		}
	}
	return ids
}
