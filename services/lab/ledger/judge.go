package ledger

import (
	"fmt"
	"slices"
	"strings"

	"warren.example/messaging/contract"
	"warren.example/messaging/event"
)

// Invariant is something that is never to happen, whatever breaks.
type Invariant string

// The invariants. What breaks one may rest on a line that is not there, such
// as an intent or an answer: then it is worth nothing if a stream is incomplete.
const (
	NoLoss      Invariant = "no loss"                         // confirmed − accounted = ∅
	Origin      Invariant = "nothing from nowhere"            // whatever is delivered, answered or audited was published
	OneOutcome  Invariant = "one outcome per call"            // result, refusal, deadline, or a publish that failed
	Visible     Invariant = "duplicates visible"              // a second delivery is flagged redelivered, or was published as often
	Agreement   Invariant = "results agree"                   // all results of one request are equal
	SettledOnce Invariant = "settled once, on its own epoch"  // per life, epoch and delivery tag
	ReplyFirst  Invariant = "nothing acked before it is safe" // reply confirmed, or its orphan recorded, or audited
	StaysUp     Invariant = "no process ends by itself"       // and none needs a restart, whatever the broker does
)

// Finding is an invariant that does not hold, the requests that show it, and
// what they show.
type Finding struct {
	Invariant Invariant
	Requests  Set
	What      string
	Absence   bool // rests on lines that are not there
}

// Judge checks all invariants. Findings come in a fixed order, one for each
// invariant at most.
func (l *Ledger) Judge() []Finding {
	l.mu.Lock()
	lives := slices.Clone(l.order)
	streams := make([][]event.Line, len(lives))
	open := make([]bool, len(lives)) // ended by the lab, maybe in the middle of a call
	for i, at := range lives {
		streams[i] = l.lives[at].lines
		open[i] = !l.lives[at].ended
	}
	l.mu.Unlock()

	var all []Finding
	add := func(inv Invariant, bad Set, absence bool, format string, args ...any) {
		if len(bad) > 0 {
			all = append(all, Finding{inv, bad, fmt.Sprintf(format, args...), absence})
		}
	}
	add(NoLoss, l.Lost(), true, "confirmed to the caller, then neither answered nor refused nor audited")
	add(Origin, l.fromNowhere(streams), true, "nobody published it, or nobody computed what was answered")
	add(OneOutcome, manyOutcomes(streams), false, "the caller was told more than one outcome")
	if !slices.ContainsFunc(all, func(f Finding) bool { return f.Invariant == OneOutcome }) {
		add(OneOutcome, noOutcome(streams, open), true, "the caller was never told an outcome")
	}
	add(Visible, hiddenDuplicates(streams), false, "delivered again without being flagged as redelivered")
	add(Agreement, l.disagreements(), false, "two results for one request")
	add(SettledOnce, badSettles(streams), true, "settled twice, or on an epoch that did not deliver it")
	add(StaysUp, restarted(lives, open), false, "it left without being told to, and was started again")
	add(ReplyFirst, earlyAcks(streams), true, "acked though neither its reply nor its record was confirmed")
	return all
}

// restarted is the instances with a life that ended by itself, and another after it.
func restarted(lives []life, open []bool) Set {
	left, bad := Set{}, Set{}
	for i, at := range lives {
		if left.Has(at.instance) {
			bad[at.instance] = struct{}{}
		}
		if !open[i] {
			left[at.instance] = struct{}{}
		}
	}
	return bad
}

// fromNowhere is the requests that turned up though no process announced them,
// and the answers that no server worked out.
func (l *Ledger) fromNowhere(streams [][]event.Line) Set {
	seen := l.With(event.Delivered, event.Computed, event.Deduplicated, event.Answered, event.Refused, event.LateReply,
		event.DuplicateReply, event.Audited, event.Acked)
	bad := seen.Minus(l.With(event.Publishing)).
		Or(l.With(event.Answered).Minus(l.With(event.Computed, event.Deduplicated)))
	for _, lines := range streams { // an answer must reach the one who asked
		asked := Set{}
		for _, line := range lines {
			switch line.Event {
			case event.Publishing:
				asked[line.Request] = struct{}{}
			case event.Answered, event.Refused, event.TimedOut, event.LateReply, event.DuplicateReply:
				if !asked.Has(line.Request) && line.Executed != "no" {
					bad[line.Request] = struct{}{}
				}
			}
		}
	}
	return bad
}

// call is one question of one caller: a replay of a dead letter is a question
// of its own.
type call struct {
	id     string
	replay int
}

func outcomes(lines []event.Line) (asked, told map[call]int, failed map[call]bool) {
	asked, told, failed = map[call]int{}, map[call]int{}, map[call]bool{}
	for _, line := range lines {
		c := call{line.Request, line.Replay}
		switch line.Event {
		case event.Publishing:
			asked[c]++
		case event.Answered, event.Refused, event.TimedOut:
			told[c]++
		case event.RequestReturned, event.PublishNacked, event.NotWritten, event.Unknown:
			failed[c] = true // this attempt; of the last one it is the outcome
		}
	}
	return asked, told, failed
}

func manyOutcomes(streams [][]event.Line) Set {
	bad := Set{}
	for _, lines := range streams {
		_, told, _ := outcomes(lines)
		for c, n := range told {
			if n > 1 {
				bad[c.id] = struct{}{}
			}
		}
	}
	return bad
}

func noOutcome(streams [][]event.Line, open []bool) Set {
	bad := Set{}
	for i, lines := range streams {
		if open[i] || len(lines) > 0 && (lines[0].Instance == Author || strings.HasPrefix(lines[0].Instance, Peer+"-")) {
			continue // a dead caller was told nothing; the lab asks nothing
		}
		asked, told, failed := outcomes(lines)
		for c := range asked {
			if told[c] == 0 && !failed[c] {
				bad[c.id] = struct{}{}
			}
		}
	}
	return bad
}

// hiddenDuplicates is the requests that arrived as if for the first time more
// often than they were published: another process may ask again under the id of
// one that has died.
func hiddenDuplicates(streams [][]event.Line) Set {
	type arrival struct {
		id              string
		attempt, replay int
	}
	published, fresh, bad := map[arrival]int{}, map[arrival]int{}, Set{}
	for _, lines := range streams {
		for _, line := range lines {
			a := arrival{line.Request, max(line.Attempt, 1), line.Replay}
			switch {
			case line.Request == "":
			case line.Event == event.Publishing:
				published[a]++
			case line.Event == event.Delivered && !line.Redelivered:
				fresh[a]++
			}
		}
	}
	for a, times := range fresh {
		if times > max(1, published[a]) { // what nobody published is no duplicate
			bad[a.id] = struct{}{}
		}
	}
	return bad
}

// disagreements is the requests with two different results. What the memory
// holds may differ from one look to the next.
func (l *Ledger) disagreements() Set {
	result, bad := map[string]string{}, Set{}
	for _, line := range l.Lines() {
		known := line.Event == event.Computed || line.Event == event.Deduplicated || line.Event == event.Answered
		if !known || line.Result == "" || line.Operation == string(contract.MemoryRecall) {
			continue
		}
		if first, ok := result[line.Request]; ok && first != line.Result {
			bad[line.Request] = struct{}{}
		}
		result[line.Request] = line.Result
	}
	return bad
}

// badSettles is the requests whose delivery was settled twice, or on an epoch
// on which it was never delivered: there the tag is another message's.
func badSettles(streams [][]event.Line) Set {
	type delivery struct{ epoch, tag uint64 }
	bad := Set{}
	for _, lines := range streams {
		open, settled := map[delivery]string{}, map[delivery]bool{}
		for _, line := range lines {
			d := delivery{line.Epoch, line.Tag}
			switch line.Event {
			case event.Delivered:
				open[d] = line.Request
			case event.Acked, event.Retried, event.Released, event.DeadLettered:
				if id, ok := open[d]; !ok || id != line.Request || settled[d] {
					bad[line.Request] = struct{}{}
				}
				settled[d] = true
			}
		}
	}
	return bad
}

// earlyAcks is the requests that were acked more often than anything made it
// safe to forget them, within the life of the process that acked.
func earlyAcks(streams [][]event.Line) Set {
	bad := Set{}
	for _, lines := range streams {
		safe := map[string]int{}
		for _, line := range lines {
			switch line.Event {
			case event.ReplyConfirmed, event.Orphaned, event.Audited:
				safe[line.Request]++
			case event.Acked:
				if safe[line.Request]--; safe[line.Request] < 0 {
					bad[line.Request] = struct{}{}
				}
			}
		}
	}
	return bad
}
