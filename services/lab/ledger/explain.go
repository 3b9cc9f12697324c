package ledger

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"warren.example/messaging/event"
)

// Explain tells the life of one request in a paragraph. It returns "" for a
// request that the ledger does not know.
func (l *Ledger) Explain(id string) string {
	lines := slices.DeleteFunc(l.Lines(), func(line event.Line) bool { return line.Request != id })
	if len(lines) == 0 {
		return ""
	}
	// Clocks of two machines differ, but within one life the order is that of
	// the numbers.
	slices.SortStableFunc(lines, func(a, b event.Line) int {
		if a.Instance == b.Instance && a.Start == b.Start {
			return cmp.Compare(a.Seq, b.Seq)
		}
		return a.Time.Compare(b.Time)
	})

	var story strings.Builder
	fmt.Fprintf(&story, "Request %s", id)
	if op := operation(lines); op != "" {
		fmt.Fprintf(&story, " (%s)", op)
	}
	story.WriteString(".")
	for start := 0; start < len(lines); {
		end := start + 1
		for end < len(lines) && inOneGo(lines[end-1], lines[end]) {
			end++
		}
		fmt.Fprintf(&story, " %s: %s %s.", after(lines[start].Time.Sub(lines[0].Time)), lines[start].Instance, steps(lines[start:end]))
		if last := lines[end-1]; l.diedWith(last) {
			fmt.Fprintf(&story, " There %s died.", last.Instance)
		}
		start = end
	}
	story.WriteString(" " + l.fate(id))
	return story.String()
}

// inOneGo says whether two steps belong in one sentence: of one life, without
// a wait in between that is worth telling.
func inOneGo(a, b event.Line) bool {
	const wait = 200 * time.Millisecond
	return a.Instance == b.Instance && a.Start == b.Start && b.Time.Sub(a.Time) < wait
}

func operation(lines []event.Line) string {
	for _, line := range lines {
		if line.Operation != "" {
			return line.Operation
		}
	}
	return ""
}

func after(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("+%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("+%.2f s", d.Seconds())
}

// diedWith says whether a process ended with this step of the request open: a
// life without eof in which the request took no further step after one that
// needed another.
func (l *Ledger) diedWith(last event.Line) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.lives[life{last.Instance, last.Start}]
	if s.ended {
		return false
	}
	for _, line := range s.lines[slices.IndexFunc(s.lines, func(x event.Line) bool { return x.Seq == last.Seq })+1:] {
		if line.Request == last.Request {
			return false
		}
	}
	switch last.Event {
	case event.Publishing, event.Published, event.Confirmed, event.Delivered, event.Deduplicated, event.Computed,
		event.Replying, event.ReplyConfirmed, event.ReplyReturned, event.Orphaned, event.Held, event.Audited:
		return true
	}
	return false
}

var told = map[event.Kind]string{
	event.Publishing:      "published it",
	event.Confirmed:       "had it confirmed by the broker",
	event.PublishNacked:   "was refused by the broker (nack)",
	event.RequestReturned: "had it returned: no queue takes it",
	event.Unknown:         "lost the connection before the confirm: unknown whether it arrived",
	event.NotWritten:      "could not write it",
	event.Deduplicated:    "knew its key and executed nothing",
	event.Computed:        "executed it",
	event.ReplyConfirmed:  "had the reply confirmed",
	event.ReplyReturned:   "had the reply returned",
	event.Orphaned:        "recorded the reply as orphaned",
	event.Acked:           "acked it",
	event.Retried:         "rejected it for another try",
	event.Released:        "gave it back",
	event.DeadLettered:    "dead-lettered it",
	event.Answered:        "got the answer",
	event.Refused:         "got a refusal",
	event.TimedOut:        "gave up at its deadline",
	event.LateReply:       "got a reply after its deadline",
	event.DuplicateReply:  "got the same reply again and dropped it",
	event.Audited:         "stored the dead letter",
	event.Replayed:        "replayed it",
	event.Discarded:       "discarded it",
	event.Held:            "was held",
}

// steps puts what one process did in a row into words.
func steps(lines []event.Line) string {
	var words []string
	for _, line := range lines {
		var s string
		switch line.Event {
		case event.Published, event.Replying: // told by the confirm that follows, or by its absence
			continue
		case event.Delivered:
			s = "received it"
			if line.Redelivered {
				s = "received it again (redelivered)"
			}
		default:
			var ok bool
			if s, ok = told[line.Event]; !ok {
				s = string(line.Event)
			}
		}
		var notes []string
		if line.Event == event.Publishing && line.Attempt > 1 {
			notes = append(notes, fmt.Sprintf("attempt %d", line.Attempt))
		}
		if line.Replay > 0 {
			notes = append(notes, fmt.Sprintf("replay %d", line.Replay))
		}
		if said := line.Event; line.Result != "" && (said == event.Computed || said == event.Deduplicated || said == event.Answered) {
			notes = append(notes, "result "+line.Result)
		}
		if line.Code != "" {
			notes = append(notes, line.Code)
		}
		if line.Point != "" {
			notes = append(notes, line.Point)
		}
		if line.Reason != "" && line.Event != event.LateReply && line.Event != event.DuplicateReply {
			notes = append(notes, line.Reason)
		}
		if len(notes) > 0 {
			s += " (" + strings.Join(notes, ", ") + ")"
		}
		if len(words) == 0 || words[len(words)-1] != s { // a failed attempt that was the last is told by both
			words = append(words, s)
		}
	}
	switch len(words) {
	case 0:
		return "sent something on its behalf"
	case 1:
		return words[0]
	}
	return strings.Join(words[:len(words)-1], ", ") + " and " + words[len(words)-1]
}

// fate is the verdict on one request.
func (l *Ledger) fate(id string) string {
	var all []string
	for _, f := range []struct {
		in   Set
		what string
	}{
		{l.With(event.Answered), "answered"},
		{l.With(event.Refused), "refused with a typed error"},
		{l.With(event.TimedOut), "given up on at the deadline"},
		{l.With(event.Audited), "on record as a dead letter"},
		{l.With(event.LateReply), "answered too late"},
		{l.With(event.Orphaned), "its reply on record as an orphan"},
		{l.Lost(), "LOST"},
	} {
		if f.in.Has(id) {
			all = append(all, f.what)
		}
	}
	executed := l.Times(id, event.Computed)
	all = append(all, fmt.Sprintf("executed %s", map[int]string{0: "never", 1: "once", 2: "twice"}[min(executed, 2)]))
	if executed > 2 {
		all[len(all)-1] = fmt.Sprintf("executed %d times", executed)
	}
	return "In the end: " + strings.Join(all, ", ") + "."
}
