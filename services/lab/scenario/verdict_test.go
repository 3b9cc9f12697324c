package scenario

import (
	"cmp"
	"testing"

	"warren.example/lab/ledger"
	"warren.example/lab/substrate"
	"warren.example/messaging/event"
)

// lines makes a ledger of one client from kinds of one request; eof ends it.
func lines(kinds ...event.Kind) *ledger.Ledger {
	l := ledger.New()
	for i, k := range kinds {
		line := event.Line{Instance: "client-0", Start: 1, Seq: uint64(i + 1), Event: k, Request: "a"}
		if k == event.EOF {
			line.Request = ""
		}
		l.Add(line)
	}
	return l
}

func TestVerdict(t *testing.T) {
	refused := []event.Kind{event.Publishing, event.Confirmed, event.Refused, event.EOF}
	for name, tc := range map[string]struct {
		kinds []event.Kind
		check func(v *Verdict)
		want  Word
	}{
		"all shown":          {refused, func(v *Verdict) { v.None("no answer", v.With(event.Answered)); v.Hit("a refusal", true) }, Held},
		"nothing promised":   {refused, func(*Verdict) {}, Broken},
		"a promise broken":   {refused, func(v *Verdict) { v.None("no refusal", v.With(event.Refused)) }, Broken},
		"a member missing":   {refused, func(v *Verdict) { v.Same("answered", v.With(event.Answered), ledger.SetOf("a")) }, Broken},
		"a fact denied":      {refused, func(v *Verdict) { v.That("two of them", false, "got %d", 1) }, Broken},
		"more than promised": {refused, func(v *Verdict) { v.Count("none", len(v.With(event.Refused)), 0) }, Broken},
		"less than promised": {refused, func(v *Verdict) { v.Count("two", len(v.With(event.Refused)), 2) }, Broken},
		"less, says a ledger without its end": {refused[:3],
			func(v *Verdict) { v.Count("two", len(v.With(event.Refused)), 2) }, Inconclusive},
		"more, whatever is missing": {refused[:3],
			func(v *Verdict) { v.Count("none", len(v.With(event.Refused)), 0) }, Broken},
		"the fault missed":                {refused, func(v *Verdict) { v.None("ok", nil); v.Hit("a redelivery", false) }, Inconclusive},
		"missed, and broken all the same": {refused, func(v *Verdict) { v.That("fact", false, "no"); v.Hit("a redelivery", false) }, Broken},
		"an invariant broken": {[]event.Kind{event.Publishing, event.Confirmed, event.TimedOut, event.EOF},
			func(v *Verdict) { v.None("ok", nil) }, Broken},
		"lost, says a ledger without its end": {[]event.Kind{event.Publishing, event.Confirmed},
			func(v *Verdict) { v.None("ok", nil) }, Inconclusive},
		"a witness counts without the end too": {[]event.Kind{event.Publishing, event.Confirmed, event.Refused, event.Refused},
			func(v *Verdict) { v.None("ok", nil) }, Broken},
	} {
		t.Run(name, func(t *testing.T) {
			v := judge(lines(tc.kinds...))
			tc.check(v)
			if got, why := v.Word(); got != tc.want {
				t.Errorf("got %s (%s), want %s", got, why, tc.want)
			}
		})
	}
}

func TestInHandIsWhatADrainingServerHadNotAcked(t *testing.T) {
	took, acked := event.Delivered, event.Acked
	l := ledger.New()
	for _, line := range []event.Line{
		{Event: took, Request: "done"}, {Event: took, Request: "held"}, {Event: acked, Request: "done"},
		{Event: took, Request: "another's", Instance: "server-1"},
		{Event: event.Draining}, {Event: took, Request: "late"}, {Event: acked, Request: "held"},
	} {
		line.Instance = cmp.Or(line.Instance, "server-0")
		l.Add(line)
	}
	for name, want := range map[string]string{"server-0": "1: held", "server-1": "none"} {
		server := &Servant{Process: named{name: name}}
		if got := judge(l).inHand(server).String(); got != want {
			t.Errorf("%s: got %s, want %s", name, got, want)
		}
	}
}

type named struct {
	substrate.Process
	name string
}

func (n named) Name() string { return n.name }
