package ledger

import (
	"os"
	"slices"
	"testing"

	"warren.example/messaging/event"
	"warren.example/messaging/topology"
)

// recordings are ledgers of real runs on RabbitMQ 4.3.6, and how many lives of
// which instance the lab ended in them.
var recordings = map[string]map[string]int{
	"poison":   {"server-0": topology.DeliveryLimit + 1},
	"deadline": {},
}

func recorded(t *testing.T, name string) []event.Line {
	t.Helper()
	f, err := os.Open("testdata/" + name + ".jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	l, err := Read(f)
	if err != nil {
		t.Fatal(err)
	}
	return l.Lines()
}

func replay(name string, lines []event.Line) *Ledger {
	l := New()
	for instance, lives := range recordings[name] {
		l.Killed(instance, lives)
	}
	for _, line := range lines {
		l.Add(line)
	}
	return l
}

func TestRecordedRunsAreClean(t *testing.T) {
	for name := range recordings {
		l := replay(name, recorded(t, name))
		if got := l.Judge(); len(got) != 0 {
			t.Errorf("%s: got findings %+v, want none", name, got)
		}
		if got := l.Incomplete(); len(got) != 0 {
			t.Errorf("%s: got incomplete %v, want none", name, got)
		}
	}
}

// Whatever line is lost on the way is missed, but for the last one of a victim,
// on which no promise rests.
func TestEveryLineThatIsLostIsMissed(t *testing.T) {
	for name, killed := range recordings {
		lines := recorded(t, name)
		for i, gone := range lines {
			later := func(l event.Line) bool {
				return l.Instance == gone.Instance && l.Start == gone.Start && l.Seq > gone.Seq
			}
			if killed[gone.Instance] > 0 && !slices.ContainsFunc(lines, later) {
				continue
			}
			l := replay(name, slices.Delete(slices.Clone(lines), i, i+1))
			if len(l.Incomplete()) == 0 {
				t.Errorf("%s: line %d of %s (%s %s) is gone, and nobody misses it", name, gone.Seq, gone.Instance, gone.Event, gone.Request)
			}
		}
	}
}

// Whichever line of a kind a bug had spoilt, it would have been found.
func TestEveryPlantedBugIsFound(t *testing.T) {
	for name, tc := range map[string]struct {
		kind  event.Kind
		plant func(lines []event.Line, i int) []event.Line
		want  Invariant
	}{
		"an audit that was never made": {event.Audited, drop, NoLoss},
		"an answer told twice":         {event.Answered, double, OneOutcome},
		"another result":               {event.Answered, func(l []event.Line, i int) []event.Line { l[i].Result = "-1"; return l }, Agreement},
		"an answer nobody worked out":  {event.Computed, drop, Origin},
		"acked twice":                  {event.Acked, double, SettledOnce},
		"acked on another epoch":       {event.Acked, func(l []event.Line, i int) []event.Line { l[i].Epoch++; return l }, SettledOnce},
		"acked under another tag":      {event.Acked, func(l []event.Line, i int) []event.Line { l[i].Tag++; return l }, SettledOnce},
		"acked without a reply":        {event.ReplyConfirmed, drop, ReplyFirst},
	} {
		t.Run(name, func(t *testing.T) {
			planted := 0
			for recording := range recordings {
				original := recorded(t, recording)
				for i, line := range original {
					if line.Event != tc.kind {
						continue
					}
					answered := func(l event.Line) bool { return l.Event == event.Answered && l.Request == line.Request }
					if tc.want == Origin && !slices.ContainsFunc(original, answered) {
						continue // nobody was told what was worked out here
					}
					planted++
					l := replay(recording, renumber(tc.plant(slices.Clone(original), i)))
					found := func(f Finding) bool { return f.Invariant == tc.want && f.Requests.Has(line.Request) }
					if got := l.Judge(); !slices.ContainsFunc(got, found) {
						t.Errorf("%s, line %d of %s: got %+v, want %q on %s", recording, line.Seq, line.Instance, got, tc.want, line.Request)
					}
				}
			}
			if planted == 0 {
				t.Errorf("the recordings have no line of kind %s", tc.kind)
			}
		})
	}
}

func drop(lines []event.Line, i int) []event.Line   { return slices.Delete(lines, i, i+1) }
func double(lines []event.Line, i int) []event.Line { return slices.Insert(lines, i, lines[i]) }
