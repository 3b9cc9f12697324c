// Package ledger collects the event lines of every process of a run and says
// what became of each request: answered, refused, given up on, dead-lettered,
// or lost.
//
// A stream is the lines of one life of one process. It is complete if it is
// numbered 1, 2, 3 … without a gap and ends with eof, or with a death that the
// lab arranged. What rests on the absence of a line counts only if every
// stream is complete; what rests on a line that is there counts always.
package ledger

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"warren.example/messaging/event"
)

// Author is the instance name of the lab's own publisher of requests, and Peer
// begins the names of its others, as in peer-0. What they publish is known to the
// ledger but is no call: nobody waits for an outcome.
const (
	Author = "lab"
	Peer   = "peer"
)

// Ledger is safe for concurrent use.
type Ledger struct {
	mu      sync.Mutex
	lines   []event.Line
	ids     map[event.Kind]map[string]int // how often each request passed each step
	lives   map[life]*stream
	order   []life         // in which the lives were first seen
	killed  map[string]int // instance: how many of its lives the lab ended
	missed  []string       // lines that were written and never came
	changed chan struct{}  // closed and replaced by Add
}

type life struct {
	instance string
	start    int64
}

type stream struct {
	lines  []event.Line
	last   uint64   // the highest number seen
	flaws  []string // what is wrong with the numbering
	ended  bool     // eof was seen
	absent map[uint64]struct{}
}

// New is an empty ledger.
func New() *Ledger {
	return &Ledger{
		ids:     map[event.Kind]map[string]int{},
		lives:   map[life]*stream{},
		killed:  map[string]int{},
		changed: make(chan struct{}),
	}
}

// Read fills a ledger from JSON lines. Lines that are no events are an error.
func Read(r io.Reader) (*Ledger, error) {
	l := New()
	lines := bufio.NewScanner(r)
	for n := 1; lines.Scan(); n++ {
		var line event.Line
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		l.Add(line)
	}
	return l, lines.Err()
}

// Add takes one line. Lines of one life must come in the order in which they
// were written.
func (l *Ledger) Add(line event.Line) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lines = append(l.lines, line)
	at := life{line.Instance, line.Start}
	s := l.lives[at]
	if s == nil {
		s = &stream{absent: map[uint64]struct{}{}}
		l.lives[at] = s
		l.order = append(l.order, at)
	}
	s.add(line)
	if line.Request != "" {
		if l.ids[line.Event] == nil {
			l.ids[line.Event] = map[string]int{}
		}
		l.ids[line.Event][line.Request]++
	}
	close(l.changed)
	l.changed = make(chan struct{})
}

func (s *stream) add(line event.Line) {
	if s.ended {
		s.flaws = append(s.flaws, fmt.Sprintf("line %d comes after eof", line.Seq))
	}
	switch n := line.Seq; {
	case n > s.last:
		for gap := s.last + 1; gap < n; gap++ {
			s.absent[gap] = struct{}{}
		}
		s.last = n
	default:
		if _, missed := s.absent[n]; missed {
			delete(s.absent, n)
			s.flaws = append(s.flaws, fmt.Sprintf("line %d comes after line %d", n, s.last))
		} else {
			s.flaws = append(s.flaws, fmt.Sprintf("line %d comes twice", n))
		}
	}
	s.ended = s.ended || line.Event == event.EOF
	s.lines = append(s.lines, line)
}

// Killed tells the ledger that the lab ends n lives of an instance: their
// streams are complete without eof.
func (l *Ledger) Killed(instance string, n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.killed[instance] += n
}

// Missed tells the ledger of lines that were lost on the way: of a life that was
// killed their absence does not show.
func (l *Ledger) Missed(what ...string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.missed = append(l.missed, what...)
}

// Arranged is what the lab did and saw besides the lines: without it a ledger
// that is read from a file cannot be judged.
type Arranged struct {
	Killed map[string]int `json:"killed"` // instance: how many of its lives the lab ended
	Missed []string       `json:"missed,omitempty"`
}

// Arranged is what Killed and Missed were told.
func (l *Ledger) Arranged() Arranged {
	l.mu.Lock()
	defer l.mu.Unlock()
	return Arranged{maps.Clone(l.killed), slices.Clone(l.missed)}
}

// Arrange tells it to another ledger.
func (l *Ledger) Arrange(a Arranged) {
	for instance, n := range a.Killed {
		l.Killed(instance, n)
	}
	l.Missed(a.Missed...)
}

// Changed is closed when the next line comes.
func (l *Ledger) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// Lines returns all lines in order of arrival.
func (l *Ledger) Lines() []event.Line {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.lines)
}

// Incomplete names each stream that has a flaw, or that ended without eof
// though nobody killed the process, and what was lost on the way.
func (l *Ledger) Incomplete() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	all := slices.Clone(l.missed)
	deaths := map[string]int{}
	for _, at := range l.order {
		s := l.lives[at]
		flaws := slices.Clone(s.flaws)
		for n := uint64(1); n <= s.last; n++ {
			if _, missing := s.absent[n]; missing {
				flaws = append(flaws, fmt.Sprintf("line %d is missing", n))
			}
		}
		if !s.ended {
			deaths[at.instance]++
			if deaths[at.instance] > l.killed[at.instance] {
				flaws = append(flaws, fmt.Sprintf("line %d is the last and is no eof", s.last))
			}
		}
		if len(flaws) > 0 {
			all = append(all, at.instance+": "+strings.Join(flaws, ", "))
		}
	}
	return all
}

// With is the requests that passed at least one of the steps.
func (l *Ledger) With(steps ...event.Kind) Set {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Set{}
	for _, k := range steps {
		for id := range l.ids[k] {
			s[id] = struct{}{}
		}
	}
	return s
}

// AtLeast is the requests that passed a step n times or more.
func (l *Ledger) AtLeast(n int, step event.Kind) Set {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := Set{}
	for id, seen := range l.ids[step] {
		if seen >= n {
			s[id] = struct{}{}
		}
	}
	return s
}

// Times is how often one request passed a step.
func (l *Ledger) Times(id string, step event.Kind) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ids[step][id]
}

// Where is the requests with a line that matches.
func (l *Ledger) Where(match func(event.Line) bool) Set {
	s := Set{}
	for _, line := range l.Lines() {
		if line.Request != "" && match(line) {
			s[line.Request] = struct{}{}
		}
	}
	return s
}

// Redelivered is the requests that the broker delivered again and said so.
func (l *Ledger) Redelivered() Set {
	return l.Where(func(line event.Line) bool { return line.Event == event.Delivered && line.Redelivered })
}

// Accounted is the requests whose fate somebody has on record: the caller has
// a result or a typed error, the auditor has the dead letter, or the reply
// came when nobody waited any more and that was recorded. That the caller gave
// up is not enough, since it would excuse every loss.
func (l *Ledger) Accounted() Set {
	return l.With(event.Answered, event.Refused, event.Audited, event.LateReply, event.Orphaned)
}

// Lost is the requests that the broker took responsibility for and of whose
// fate nobody has a record. A reply that the broker has confirmed is one if
// nobody was left to read it.
func (l *Ledger) Lost() Set {
	missing := l.With(event.Confirmed).Minus(l.Accounted())
	return missing.Minus(l.bereaved(missing.And(l.With(event.ReplyConfirmed))))
}

// bereaved is those of the requests whose replies went unread with the reply queues
// of all who had asked. Either the lab had killed the caller, and its queue went
// when the broker noticed; or it had given the call up at its deadline and left in
// peace, which deletes its queue with whatever has been confirmed into it and not
// read. Nobody waited for such a reply.
//
// It must have been confirmed after the last call of that caller had ended: until
// then the caller reads its queue, and a reply that it has on record neither as
// an answer nor as late is lost. The two times are of two clocks, which are one on
// one machine.
func (l *Ledger) bereaved(of Set) Set {
	if len(of) == 0 {
		return of
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	replied := map[string]time.Time{} // to the first delivery
	for _, line := range l.lines {
		if line.Event != event.ReplyConfirmed {
			continue
		}
		if first, ok := replied[line.Request]; !ok || line.Time.Before(first) {
			replied[line.Request] = line.Time
		}
	}
	waited := Set{}
	for at, s := range l.lives {
		if l.killed[at.instance] > 0 && !s.ended {
			continue
		}
		left, inVain := s.left()
		for _, line := range s.lines {
			if line.Event == event.Publishing && !(inVain.Has(line.Request) && replied[line.Request].After(left)) {
				waited[line.Request] = struct{}{}
			}
		}
	}
	return of.Minus(waited)
}

// left is when the last call of a life that ended in peace was over, and the
// requests that it had given up by then.
func (s *stream) left() (at time.Time, inVain Set) {
	inVain = Set{}
	if !s.ended {
		return at, inVain
	}
	for _, line := range s.lines {
		switch line.Event {
		case event.Publishing:
			delete(inVain, line.Request)
		case event.TimedOut:
			inVain[line.Request] = struct{}{}
		case event.Answered, event.Refused:
		default:
			continue
		}
		at = line.Time
	}
	return at, inVain
}

// Confidence says what the number of losses means: if none of n was lost, the
// true rate lies below 1 − 0.05^(1/n) in 95 of 100 such runs, about 3/n (the rule
// of three).
func (l *Ledger) Confidence() string {
	n, lost := len(l.With(event.Confirmed)), len(l.Lost())
	if n == 0 || lost > 0 {
		return fmt.Sprintf("%d lost of %d confirmed", lost, n)
	}
	return fmt.Sprintf("0 lost of %d confirmed: the true loss rate is below %.2g %% at 95 %%", n, 100*(1-math.Pow(0.05, 1/float64(n))))
}

// Open is the requests that are still on their way somewhere: announced, and
// neither accounted for nor given up on.
func (l *Ledger) Open() Set {
	ended := l.With(event.TimedOut, event.RequestReturned, event.PublishNacked, event.NotWritten, event.Unknown)
	return l.With(event.Publishing).Minus(l.Accounted(), ended)
}

// Summary is the sizes of the sets in a line. What is empty is left out, but
// for what was sent and what was lost.
func (l *Ledger) Summary() string {
	sets := []struct {
		what   string
		ids    Set
		always bool
	}{
		{"sent", l.With(event.Publishing), true},
		{"confirmed", l.With(event.Confirmed), false},
		{"answered", l.With(event.Answered), false},
		{"refused", l.With(event.Refused), false},
		{"timed out", l.With(event.TimedOut), false},
		{"dead-lettered", l.With(event.Audited), false},
		{"redelivered", l.Redelivered(), false},
		{"executed twice", l.AtLeast(2, event.Computed), false},
		{"late", l.With(event.LateReply), false},
		{"duplicate", l.With(event.DuplicateReply), false},
		{"orphaned", l.With(event.Orphaned), false},
		{"lost", l.Lost(), true},
	}
	var words []string
	for _, s := range sets {
		if s.always || len(s.ids) > 0 {
			words = append(words, fmt.Sprintf("%s %d", s.what, len(s.ids)))
		}
	}
	return strings.Join(words, "  ")
}
