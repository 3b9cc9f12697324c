package scenario

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"warren.example/lab/ledger"
	"warren.example/lab/substrate"
	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/topology"
)

// These bound one promise or control, whatever happens in it, and the clearing
// up after it; times the substrate's patience.
const (
	playWithin  = 2 * time.Minute
	closeWithin = 30 * time.Second
)

// Runner runs scenarios on a substrate; those that are not Alone also at once.
type Runner struct {
	Substrate substrate.Substrate
	Record    func(event.Line)                  // gets every line of every room; may be nil
	Tell      func(scenario, part, step string) // progress; may be nil
	Failed    func(context.Context)             // is called while what did not go as it must is still there; may be nil
}

// Result is what a scenario came to.
type Result struct {
	Scenario Scenario
	Verdict  Word
	Reason   string
	Took     time.Duration
	Controls []ControlResult
	Broker   string
	Evidence string   // the sizes of the ledger's sets
	Notes    []string // figures of which nothing is promised

	Lives map[string]string   // of requests that broke a promise: their stories
	Logs  map[string][]string // the last lines of each process
}

// ControlResult is what a control came to.
type ControlResult struct {
	Name     string
	Verdict  Word // FailedAsItMust or DidNotFail
	Reason   string
	Evidence string
}

// Run plays the promise, then each control, every one in a room of its own.
// Without a control that failed as it must a promise cannot be HELD.
func (r Runner) Run(ctx context.Context, s Scenario) (result Result) {
	began := time.Now()
	result = Result{Scenario: s, Verdict: Broken, Broker: "RabbitMQ " + r.Substrate.Broker().Version().String()}
	defer func() { result.Took = time.Since(began) }()
	if lacks := s.Needs.unmet(r.Substrate); lacks != "" {
		result.Verdict, result.Reason = Skipped, lacks
		return result
	}
	p := r.play(ctx, s, "promise", nil, s.Run, func(p played) bool {
		word, _ := p.word()
		return word == Held || word == Skipped
	})
	result.Verdict, result.Reason = p.word()
	result.Evidence = p.evidence
	if p.verdict != nil {
		result.Notes = p.verdict.notes
	}
	if result.Verdict == Skipped {
		return result
	}
	if result.Verdict != Held {
		result.Lives, result.Logs = p.lives(), p.logs
	}
	for _, c := range s.Controls {
		p := r.play(ctx, s, "control: "+c.Name, c.Change, c.Run, func(p played) bool {
			word, _ := p.failedAsItMust(c.Breaks)
			return word == FailedAsItMust
		})
		failed, why := p.failedAsItMust(c.Breaks)
		result.Controls = append(result.Controls, ControlResult{c.Name, failed, why, p.evidence})
		if failed == DidNotFail && result.Verdict == Held {
			result.Verdict = Inconclusive
			result.Reason = fmt.Sprintf("control %q did not fail, so the promise that held proves nothing: %s", c.Name, why)
			result.Logs = p.logs
		}
	}
	return result
}

// played is one promise or control, and what it left behind.
type played struct {
	verdict   *Verdict // nil if it never came to one
	err       error    // why not
	disturbed []string // what happened besides, see substrate.Room
	evidence  string
	logs      map[string][]string
}

func (r Runner) play(ctx context.Context, s Scenario, part string, change Change, run func(*World), asItMust func(played) bool) (p played) {
	slow := time.Duration(r.Substrate.Patience())
	whole := ctx
	ctx, cancel := context.WithTimeout(whole, s.Within+slow*playWithin)
	defer cancel()
	tell := func(step string) {
		if r.Tell != nil {
			r.Tell(s.Name, part, step)
		}
	}
	l := ledger.New()
	var one sync.Mutex // services and the lab's own publisher speak at once
	record := func(line event.Line) {
		one.Lock()
		defer one.Unlock()
		l.Add(line)
		if r.Record != nil {
			r.Record(line)
		}
	}
	var altered func(*topology.Topology)
	if change != nil {
		altered = func(t *topology.Topology) { change(r.Substrate.Broker().Version(), t) }
	}
	tell("making room")
	room, err := r.Substrate.Open(ctx, s.Name, altered, record)
	if err != nil {
		return played{err: fmt.Errorf("open a room: %w", err)}
	}
	w := &World{
		ctx: ctx, alone: s.Alone, under: r.Substrate, room: room, broker: r.Substrate.Broker(), ledger: l, slow: slow, record: record, tell: tell, names: map[string]int{},
		queues: []string{contract.RequestQueue, contract.DeadLetterQueue},
	}
	w.Broker = Broker{w}
	defer func() { // also after a verb has stopped the scenario, and after Ctrl-C
		w.disconnect()
		if p.logs = w.tails(); len(l.Lines()) > 0 {
			p.evidence = l.Summary()
		}
		if p.verdict != nil && len(p.verdict.notes) > 0 {
			p.evidence += "  " + strings.Join(p.verdict.notes, "  ")
		}
		p.disturbed = room.Disturbances()
		if r.Failed != nil && !asItMust(p) {
			r.Failed(whole)
		}
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), slow*closeWithin)
		defer cancel()
		p.err = errors.Join(p.err, w.startMachines(closing)) // first: pods on one that is off cannot be ended
		if err := room.Close(closing); err != nil && p.err == nil {
			p.err = fmt.Errorf("close the room: %w", err)
		}
	}()
	defer func() {
		switch why := recover().(type) {
		case nil:
		case stop:
			p.err = why.err
		default:
			panic(why) // a bug of the scenario's own
		}
	}()
	// Whatever the scenario does, it ends with this question.
	if _, p.err = room.Queue(ctx, contract.RequestQueue); p.err != nil {
		return p
	}
	run(w)
	if p.verdict = w.verdict; p.verdict == nil {
		p.err = errors.New("the scenario never settled")
	}
	return p
}

// word is the verdict of a promise. What somebody else broke meanwhile cannot
// make it BROKEN; that it held in spite of that is no less true.
func (p played) word() (word Word, reason string) {
	switch {
	case errors.Is(p.err, substrate.ErrUnsupported):
		return Skipped, p.err.Error()
	case p.err != nil:
		word, reason = Inconclusive, p.err.Error()
	default:
		word, reason = p.verdict.Word()
	}
	if word != Held && len(p.disturbed) > 0 {
		return Inconclusive, fmt.Sprintf("disturbed: %s; then: %s", strings.Join(p.disturbed, "; "), reason)
	}
	return word, reason
}

// failedAsItMust is the verdict of a control: it must break the one promise
// that it is there to break.
func (p played) failedAsItMust(promise string) (Word, string) {
	word, reason := p.word()
	switch {
	case p.err != nil, len(p.disturbed) > 0 && word != Held:
		return DidNotFail, reason
	case slices.ContainsFunc(p.verdict.always, p.verdict.broke):
		return DidNotFail, "it broke more than it must: " + reason
	case p.verdict.broke(promise):
		return FailedAsItMust, ""
	}
	return DidNotFail, fmt.Sprintf("%q was to break; the verdict is %s %s", promise, word, reason)
}

// lives tells the stories of the first few requests that broke a promise.
func (p played) lives() map[string]string {
	const most = 3
	if p.verdict == nil {
		return nil
	}
	lives := map[string]string{}
	for _, b := range p.verdict.broken {
		for _, id := range b.Requests.IDs() {
			if len(lives) < most {
				if story := p.verdict.Explain(id); story != "" {
					lives[id] = story
				}
			}
		}
	}
	return lives
}
