package scenario

import (
	"fmt"
	"strings"
	"time"

	"warren.example/lab/ledger"
	"warren.example/messaging/event"
)

// Word is a verdict in one word.
type Word string

// The verdicts.
const (
	Held         Word = "HELD"
	Broken       Word = "BROKEN"
	Inconclusive Word = "INCONCLUSIVE"
	Skipped      Word = "SKIPPED"
)

// What a control can come to. Nothing but the first lets its scenario be HELD.
const (
	FailedAsItMust Word = "FAILED as it must"
	DidNotFail     Word = "did not fail"
)

// ComesToRest is the name of the check that Settle itself makes: everything in
// flight ends somewhere, and the queues are empty.
const ComesToRest = "comes to rest"

// Verdict is the evidence after a run came to rest, and what was concluded
// from it. It begins as BROKEN: only Word, after at least one promise was
// checked, can say HELD.
type Verdict struct {
	*ledger.Ledger
	checked  int
	broken   []Breach
	always   []string // promises that a control must not break
	missed   []string // why the fault proved nothing
	evidence []string // streams that are incomplete
	notes    []string // figures to report, of which nothing is promised
}

// Breach is a promise that did not hold.
type Breach struct {
	Promise  string
	What     string
	Requests ledger.Set
	Absence  bool // rests on lines that are not there
}

func (b Breach) String() string {
	s := b.Promise + ": " + b.What
	if len(b.Requests) > 0 {
		s += " (" + b.Requests.String() + ")"
	}
	return s
}

// judge begins a verdict with the invariants that hold whatever breaks.
func judge(l *ledger.Ledger) *Verdict {
	v := &Verdict{Ledger: l, evidence: l.Incomplete()}
	for _, f := range l.Judge() {
		v.broken = append(v.broken, Breach{string(f.Invariant), f.What, f.Requests, f.Absence})
	}
	return v
}

// None promises that no request is in the set.
func (v *Verdict) None(promise string, offenders ledger.Set) {
	v.checked++
	if len(offenders) > 0 {
		v.broken = append(v.broken, Breach{Promise: promise, What: "broken by", Requests: offenders})
	}
}

// Same promises that two sets are equal; missing members rest on absence.
func (v *Verdict) Same(promise string, got, want ledger.Set) {
	v.checked++
	if missing := want.Minus(got); len(missing) > 0 {
		v.broken = append(v.broken, Breach{promise, "missing", missing, true})
	}
	if extra := got.Minus(want); len(extra) > 0 {
		v.broken = append(v.broken, Breach{promise, "unexpected", extra, false})
	}
}

// Always is Same for what holds whatever was taken away: a control that breaks it
// has not failed as it must.
func (v *Verdict) Always(promise string, got, want ledger.Set) {
	v.always = append(v.always, promise)
	v.Same(promise, got, want)
}

// That promises a single fact.
func (v *Verdict) That(promise string, holds bool, format string, args ...any) {
	v.checked++
	if !holds {
		v.broken = append(v.broken, Breach{Promise: promise, What: fmt.Sprintf(format, args...)})
	}
}

// Count promises a number of what lines tell of; too few rest on absence.
func (v *Verdict) Count(promise string, got, want int) {
	v.checked++
	if got != want {
		v.broken = append(v.broken, Breach{Promise: promise, What: fmt.Sprintf("%d, want %d", got, want), Absence: got < want})
	}
}

// Hit requires that the fault met work in flight. If it did not, the run
// proves nothing, however well everything went.
func (v *Verdict) Hit(what string, happened bool) {
	if !happened {
		v.missed = append(v.missed, what)
	}
}

// Note reports a figure beside the verdict. How long things take differs from
// one machine to another, so nothing is promised of it.
func (v *Verdict) Note(format string, args ...any) {
	v.notes = append(v.notes, fmt.Sprintf(format, args...))
}

// Silence is the longest time between two answers, to whomever they were.
func (v *Verdict) Silence() time.Duration {
	var last time.Time
	var longest time.Duration
	for _, line := range v.Lines() {
		if line.Event != event.Answered {
			continue
		}
		if !last.IsZero() {
			longest = max(longest, line.Time.Sub(last))
		}
		last = line.Time
	}
	return longest
}

// Took is the time between a request's first step of one kind and its last of
// another; an hour if either is missing.
func (v *Verdict) Took(id string, from, to event.Kind) time.Duration {
	var began, ended time.Time
	for _, line := range v.Lines() {
		switch {
		case line.Request != id:
		case line.Event == from && began.IsZero():
			began = line.Time
		case line.Event == to:
			ended = line.Time
		}
	}
	if began.IsZero() || ended.IsZero() {
		return time.Hour
	}
	return ended.Sub(began)
}

// Late is the messages that arrived only when they were published again.
func (v *Verdict) Late() ledger.Set {
	again := v.Where(func(l event.Line) bool { return l.Event == event.Delivered && l.Attempt > 1 })
	return again.Minus(v.AtLeast(2, event.Delivered))
}

// broke says whether the named promise is broken, by evidence that counts.
func (v *Verdict) broke(promise string) bool {
	for _, b := range v.broken {
		if b.Promise == promise && (!b.Absence || len(v.evidence) == 0) {
			return true
		}
	}
	return false
}

// Word is the verdict and the reason for it. Breaches that rest on absence
// need complete evidence; the others always count.
func (v *Verdict) Word() (Word, string) {
	var breaches []string
	doubtful := false
	for _, b := range v.broken {
		if b.Absence && len(v.evidence) > 0 {
			doubtful = true
			continue
		}
		breaches = append(breaches, b.String())
	}
	switch {
	case len(breaches) > 0:
		return Broken, strings.Join(breaches, "; ")
	case len(v.missed) > 0:
		return Inconclusive, "the fault missed: not seen: " + strings.Join(v.missed, ", ")
	case len(v.evidence) > 0 || doubtful:
		return Inconclusive, "the ledger is incomplete: " + strings.Join(v.evidence, "; ")
	case v.checked == 0:
		return Broken, "the scenario promised nothing"
	}
	return Held, ""
}

// asked is the calls that were made, those that never reached the broker
// included.
func (v *Verdict) asked() ledger.Set { return v.With(event.Publishing, event.NotWritten) }
