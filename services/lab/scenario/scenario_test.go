package scenario

import (
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"warren.example/lab/ledger"
	"warren.example/lab/substrate"
	"warren.example/messaging/event"
	"warren.example/messaging/topology"
)

// A scenario is one file of its name, with a header that can be argued with and
// four blocks in one order.
func TestEveryScenarioReadsAlike(t *testing.T) {
	seen := map[string]bool{}
	for _, s := range All() {
		t.Run(s.Name, func(t *testing.T) {
			if seen[s.Name] {
				t.Errorf("two scenarios of this name")
			}
			seen[s.Name] = true
			b, err := os.ReadFile(strings.ReplaceAll(s.Name, "-", "_") + ".go")
			if err != nil {
				t.Fatal(err)
			}
			order := regexp.MustCompile(`(?s)// Promise: .*Controls?: .*Scenario\{.*// ARRANGE.*// BREAK.*// OBSERVE.*// VERDICT`)
			if !order.Match(b) {
				t.Errorf("want a header with Promise and Control, then ARRANGE, BREAK, OBSERVE, VERDICT, in that order")
			}
			if s.Topic == "" || s.Broke == "" || s.Promise == "" || s.Run == nil || len(s.Controls) == 0 {
				t.Errorf("something is missing: %+v", s)
			}
			for _, c := range s.Controls {
				if c.Name == "" || c.Shows == "" || c.Breaks == "" || c.Run == nil {
					t.Errorf("control: something is missing: %+v", c)
				}
			}
		})
	}
}

func TestWorldHasAtMostTenVerbs(t *testing.T) {
	if n := reflect.TypeFor[*World]().NumMethod(); n > 10 {
		t.Errorf("got %d, want at most 10: a story needs few words", n)
	}
}

func TestFindNamesTheUnknownAndListsTheKnown(t *testing.T) {
	found, err := Find("poison", "deadline")
	if err != nil || len(found) != 2 || found[0].Name != "poison" || found[1].Name != "deadline" {
		t.Errorf("got %v, %v, want poison and deadline in that order", found, err)
	}
	_, err = Find("poison", "poisson")
	if err == nil || !strings.Contains(err.Error(), `"poisson"`) || !strings.Contains(err.Error(), "killed-before-ack") {
		t.Errorf("got %v, want an error that names poisson and lists the others", err)
	}
}

type someBroker struct {
	substrate.Broker
	nodes   int
	version topology.Version
}

func (b someBroker) Nodes() int                { return b.nodes }
func (b someBroker) Version() topology.Version { return b.version }

type somewhere struct {
	substrate.Substrate
	name   string
	ours   bool
	broker someBroker
}

func (s somewhere) Name() string             { return s.name }
func (s somewhere) Ours() bool               { return s.ours }
func (s somewhere) Broker() substrate.Broker { return s.broker }

func TestNeeds(t *testing.T) {
	local := somewhere{name: "local", broker: someBroker{nodes: 1, version: topology.Version{Major: 3, Minor: 10, Patch: 8}}}
	for want, needs := range map[string]Needs{
		"":                                    {},
		"needs 3 broker nodes, there are 1":   {Nodes: 3},
		"needs RabbitMQ 4.3, this is 3.10.8":  {MinVersion: topology.Version{Major: 4, Minor: 3}},
		"needs Kubernetes: lab run --on kind": {Kubernetes: true},
	} {
		if got := needs.unmet(local); got != want {
			t.Errorf("%+v: got %q, want %q", needs, got, want)
		}
	}
	theirs := somewhere{name: "kubernetes", broker: local.broker}
	if got, want := (Needs{Own: true}).unmet(theirs), "needs machines of the lab's own: lab run --on kind"; got != want {
		t.Errorf("somebody's cluster: got %q, want %q", got, want)
	}
	theirs.ours = true
	if got := (Needs{Own: true}).unmet(theirs); got != "" {
		t.Errorf("a cluster of ours: got %q", got)
	}
	for want, needs := range map[string]Needs{
		"local kind cluster": {},
		"kind cluster":       {Kubernetes: true},
		"local kind":         {Own: true},
		"kind":               {Kubernetes: true, Own: true},
	} {
		if got := strings.Join(needs.Substrates(), " "); got != want {
			t.Errorf("%+v: got %q, want %q", needs, got, want)
		}
	}
}

// A control proves the fault only if it breaks the very promise that it is
// there to break, by evidence that counts.
func TestAControlMustBreakItsPromise(t *testing.T) {
	lost := []event.Kind{event.Publishing, event.Confirmed, event.TimedOut}
	always := func(got, want ledger.Set) *Verdict {
		v := judge(lines(append(lost, event.EOF)...))
		v.Always("it is named", got, want)
		return v
	}
	for name, tc := range map[string]struct {
		p    played
		want Word
	}{
		"it lost a request":            {played{verdict: judge(lines(append(lost, event.EOF)...))}, FailedAsItMust},
		"it lost one, and it is named": {played{verdict: always(ledger.SetOf("r"), ledger.SetOf("r"))}, FailedAsItMust},
		"it lost one that is not":      {played{verdict: always(nil, ledger.SetOf("r"))}, DidNotFail},
		"it lost none":                 {played{verdict: judge(lines(event.Publishing, event.Confirmed, event.Refused, event.EOF))}, DidNotFail},
		"a ledger without its end":     {played{verdict: judge(lines(lost...))}, DidNotFail},
		"it could not be played":       {played{err: os.ErrNotExist}, DidNotFail},
		"something else broke it":      {played{verdict: judge(lines(append(lost, event.EOF)...)), disturbed: []string{"a pod was deleted"}}, DidNotFail},
		"it broke another promise":     {played{verdict: judge(lines(event.Publishing, event.Confirmed, event.Refused, event.Refused, event.EOF))}, DidNotFail},
	} {
		t.Run(name, func(t *testing.T) {
			if got, why := tc.p.failedAsItMust(string(ledger.NoLoss)); got != tc.want {
				t.Errorf("got %s (%s), want %s", got, why, tc.want)
			}
		})
	}
}

// Somebody else's fault is nobody's broken promise.
func TestADisturbanceIsNoBreach(t *testing.T) {
	lost := judge(lines(event.Publishing, event.Confirmed, event.TimedOut, event.EOF))
	if got, _ := (played{verdict: lost}).word(); got != Broken {
		t.Errorf("a lost request: got %s, want %s", got, Broken)
	}
	got, why := played{verdict: lost, disturbed: []string{"pod x was deleted"}}.word()
	if got != Inconclusive || !strings.Contains(why, "pod x was deleted") || !strings.Contains(why, string(ledger.NoLoss)) {
		t.Errorf("and a disturbance: got %s: %s, want %s that names both", got, why, Inconclusive)
	}
}

func TestAPromiseThatCouldNotBePlayed(t *testing.T) {
	for want, p := range map[Word]played{
		Inconclusive: {err: os.ErrNotExist},
		Skipped:      {err: substrate.ErrUnsupported},
	} {
		if got, _ := p.word(); got != want {
			t.Errorf("%v: got %s, want %s", p.err, got, want)
		}
	}
}
