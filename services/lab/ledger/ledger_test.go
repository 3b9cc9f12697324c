package ledger

import (
	"bytes"
	"encoding/json"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"warren.example/messaging/event"
)

// story is three requests that went well, one of them twice over: the server
// died between its reply and its ack.
func story() []event.Line {
	const client, one, two, audit = "client-0", "server-0", "server-0", "auditor-0"
	type step struct {
		who     string
		start   int64
		what    event.Kind
		request string
		line    event.Line
	}
	steps := []step{
		{client, 1, event.Publishing, "a", event.Line{Operation: "add", Attempt: 1}},
		{client, 1, event.Confirmed, "a", event.Line{}},
		{one, 1, event.Delivered, "a", event.Line{Epoch: 1, Tag: 1}},
		{one, 1, event.Computed, "a", event.Line{Result: "3"}},
		{one, 1, event.ReplyConfirmed, "a", event.Line{}},
		{client, 1, event.Answered, "a", event.Line{Result: "3"}},
		// server-0 dies here
		{two, 2, event.Delivered, "a", event.Line{Epoch: 1, Tag: 1, Redelivered: true}},
		{two, 2, event.Deduplicated, "a", event.Line{Result: "3"}},
		{two, 2, event.ReplyConfirmed, "a", event.Line{}},
		{two, 2, event.Acked, "a", event.Line{Epoch: 1, Tag: 1}},
		{client, 1, event.DuplicateReply, "a", event.Line{}},
		{client, 1, event.Publishing, "b", event.Line{Operation: "divide", Attempt: 1}},
		{client, 1, event.Confirmed, "b", event.Line{}},
		{two, 2, event.Delivered, "b", event.Line{Epoch: 1, Tag: 2}},
		{two, 2, event.Computed, "b", event.Line{Code: "DIVIDE_BY_ZERO"}},
		{two, 2, event.ReplyConfirmed, "b", event.Line{}},
		{two, 2, event.Acked, "b", event.Line{Epoch: 1, Tag: 2}},
		{client, 1, event.Refused, "b", event.Line{Code: "DIVIDE_BY_ZERO"}},
		{client, 1, event.Publishing, "c", event.Line{Operation: "add", Attempt: 1}},
		{client, 1, event.Confirmed, "c", event.Line{}},
		{client, 1, event.TimedOut, "c", event.Line{Executed: "maybe"}},
		{audit, 1, event.Audited, "c", event.Line{Reason: "expired"}},
		{client, 1, event.EOF, "", event.Line{}},
		{two, 2, event.EOF, "", event.Line{}},
		{audit, 1, event.EOF, "", event.Line{}},
	}
	seq := map[life]uint64{}
	var lines []event.Line
	for _, s := range steps {
		line := s.line
		line.Instance, line.Start, line.Event, line.Request = s.who, s.start, s.what, s.request
		at := life{s.who, s.start}
		seq[at]++
		line.Seq = seq[at]
		lines = append(lines, line)
	}
	return lines
}

func ledgerOf(lines []event.Line) *Ledger {
	l := New()
	l.Killed("server-0", 1)
	for _, line := range lines {
		l.Add(line)
	}
	return l
}

// find is the index of the n-th line of this kind for a request.
func find(t *testing.T, lines []event.Line, kind event.Kind, request string, n int) int {
	t.Helper()
	for i, line := range lines {
		if line.Event == kind && line.Request == request {
			if n--; n == 0 {
				return i
			}
		}
	}
	t.Fatalf("the story has no such line: %s %s", kind, request)
	return 0
}

// renumber closes the gap that an edit left, as if the process itself had
// never taken the step.
func renumber(lines []event.Line) []event.Line {
	seq := map[life]uint64{}
	for i := range lines {
		at := life{lines[i].Instance, lines[i].Start}
		seq[at]++
		lines[i].Seq = seq[at]
	}
	return lines
}

func TestSetsOfAStoryThatWentWell(t *testing.T) {
	l := ledgerOf(story())
	for name, tc := range map[string]struct{ got, want Set }{
		"confirmed":   {l.With(event.Confirmed), SetOf("a", "b", "c")},
		"answered":    {l.With(event.Answered), SetOf("a")},
		"refused":     {l.With(event.Refused), SetOf("b")},
		"audited":     {l.With(event.Audited), SetOf("c")},
		"redelivered": {l.Redelivered(), SetOf("a")},
		"lost":        {l.Lost(), SetOf()},
		"open":        {l.Open(), SetOf()},
		"twice":       {l.AtLeast(2, event.Delivered), SetOf("a")},
		"executed 2×": {l.AtLeast(2, event.Computed), SetOf()},
	} {
		if !slices.Equal(tc.got.IDs(), tc.want.IDs()) {
			t.Errorf("%s: got %s, want %s", name, tc.got, tc.want)
		}
	}
	if got := l.Judge(); len(got) != 0 {
		t.Errorf("findings: got %+v, want none", got)
	}
	if got := l.Incomplete(); len(got) != 0 {
		t.Errorf("incomplete: got %v, want none", got)
	}
}

// Each case changes one thing in the story, as a bug would, and must be found
// under its name with the request that shows it.
func TestPlantedBugsAreFoundAndNamed(t *testing.T) {
	type lines = []event.Line
	insert := func(at int, l lines, line event.Line) lines {
		line.Instance, line.Start = l[at].Instance, l[at].Start
		return renumber(slices.Insert(l, at, line))
	}
	for name, tc := range map[string]struct {
		edit func(t *testing.T, l lines) lines
		want Invariant
		id   string
	}{
		"a dead letter that nobody stored": {func(t *testing.T, l lines) lines {
			at := find(t, l, event.Audited, "c", 1)
			return renumber(slices.Delete(l, at, at+1))
		}, NoLoss, "c"},
		"executed twice with another result": {func(t *testing.T, l lines) lines {
			at := find(t, l, event.Deduplicated, "a", 1)
			l[at].Event, l[at].Result = event.Computed, "6"
			return l
		}, Agreement, "a"},
		"an answer to a question nobody asked": {func(t *testing.T, l lines) lines {
			return insert(find(t, l, event.Answered, "a", 1), l, event.Line{Event: event.Answered, Request: "phantom", Result: "7"})
		}, Origin, "phantom"},
		"an answer that nobody computed": {func(t *testing.T, l lines) lines {
			l[find(t, l, event.Refused, "b", 1)].Event = event.Answered
			at := find(t, l, event.Computed, "b", 1)
			return renumber(slices.Delete(l, at, at+1))
		}, Origin, "b"},
		"two outcomes for one call": {func(t *testing.T, l lines) lines {
			l[find(t, l, event.DuplicateReply, "a", 1)].Event = event.Answered
			return l
		}, OneOutcome, "a"},
		"no outcome for a call": {func(t *testing.T, l lines) lines {
			at := find(t, l, event.TimedOut, "c", 1)
			return renumber(slices.Delete(l, at, at+1))
		}, OneOutcome, "c"},
		"a redelivery without the flag": {func(t *testing.T, l lines) lines {
			l[find(t, l, event.Delivered, "a", 2)].Redelivered = false
			return l
		}, Visible, "a"},
		"acked twice": {func(t *testing.T, l lines) lines {
			at := find(t, l, event.Acked, "b", 1)
			return insert(at, l, l[at])
		}, SettledOnce, "b"},
		"acked on a stale epoch": {func(t *testing.T, l lines) lines {
			l[find(t, l, event.Acked, "b", 1)].Epoch = 2
			return l
		}, SettledOnce, "b"},
		"acked under another's tag": {func(t *testing.T, l lines) lines {
			l[find(t, l, event.Acked, "b", 1)].Tag = 1
			return l
		}, SettledOnce, "b"},
		"ack before reply": {func(t *testing.T, l lines) lines {
			ack, confirm := find(t, l, event.Acked, "b", 1), find(t, l, event.ReplyConfirmed, "b", 1)
			l[ack], l[confirm] = l[confirm], l[ack]
			return renumber(l)
		}, ReplyFirst, "b"},
		"acked although the reply came back, and nothing on record": {func(t *testing.T, l lines) lines {
			l[find(t, l, event.ReplyConfirmed, "b", 1)].Event = event.ReplyReturned
			return l
		}, ReplyFirst, "b"},
		"a server that leaves when the broker does": {func(t *testing.T, l lines) lines {
			end := event.Line{Instance: "server-0", Start: 1, Event: event.EOF}
			return renumber(slices.Insert(l, find(t, l, event.Delivered, "a", 2), end))
		}, StaysUp, "server-0"},
	} {
		t.Run(name, func(t *testing.T) {
			l := ledgerOf(tc.edit(t, story()))
			findings := l.Judge()
			if !slices.ContainsFunc(findings, func(f Finding) bool { return f.Invariant == tc.want && f.Requests.Has(tc.id) }) {
				t.Errorf("got findings %+v, want %q on request %s", findings, tc.want, tc.id)
			}
			if got := l.Incomplete(); len(got) != 0 {
				t.Errorf("incomplete: got %v, want none: the planted bug is no gap", got)
			}
		})
	}
}

// A reply that was confirmed into the queue of a caller that the lab had killed
// died with it. A living caller must have it, and a request without a reply is
// lost whoever asked.
func TestAReplyDiesWithItsCaller(t *testing.T) {
	for name, tc := range map[string]struct {
		killed  bool
		without []event.Kind // of request b
		lost    []string
	}{
		"the caller was killed":          {true, []event.Kind{event.Refused}, nil},
		"the caller lives":               {false, []event.Kind{event.Refused}, []string{"b"}},
		"nobody replied":                 {true, []event.Kind{event.Refused, event.ReplyConfirmed}, []string{"b"}},
		"the caller had it and was told": {true, nil, nil},
	} {
		lines := story()
		for _, kind := range tc.without {
			at := find(t, lines, kind, "b", 1)
			lines = slices.Delete(lines, at, at+1)
		}
		if tc.killed {
			lines = slices.DeleteFunc(lines, func(l event.Line) bool { return l.Instance == "client-0" && l.Event == event.EOF })
		}
		l := ledgerOf(renumber(lines))
		if tc.killed {
			l.Killed("client-0", 1)
		}
		if got := l.Lost().IDs(); !slices.Equal(got, tc.lost) {
			t.Errorf("%s: lost %v, want %v", name, got, tc.lost)
		}
	}
}

// A reply that comes while its caller leaves, having given up, goes with the reply
// queue. Whatever a caller could have read, or still waited for, is lost.
func TestAReplyThatComesAsItsCallerLeaves(t *testing.T) {
	const asked = "client-0 publishing a, client-0 confirmed a, "
	const replied = "server-0 computed a, server-0 reply-confirmed a, "
	const gaveUp, left = "client-0 timed-out a, ", "client-0 eof, "
	for name, tc := range map[string]struct {
		story string // in order of time
		lost  []string
	}{
		"while it leaves":                      {asked + gaveUp + replied + left, nil},
		"when it has left":                     {asked + gaveUp + left + replied, nil},
		"another who asked was killed":         {asked + "client-9 publishing a, " + gaveUp + replied + left, nil},
		"when it asks something else":          {asked + gaveUp + replied + "client-0 publishing b, client-0 confirmed b, client-0 answered b, " + left, []string{"a"}},
		"when it asks something else, in vain": {asked + gaveUp + replied + "client-0 publishing b, client-0 request-returned b, " + left, []string{"a"}},
		"when another of its calls is open":    {asked + "client-0 publishing b, client-0 confirmed b, " + gaveUp + replied + "client-0 refused b, " + left, []string{"a"}},
		"in time":                              {asked + replied + gaveUp + left, []string{"a"}},
		"in time, and again while it leaves":   {asked + replied + gaveUp + replied + left, []string{"a"}},
		"and its call was open":                {asked + replied + left, []string{"a"}},
		"and it had asked again":               {asked + gaveUp + asked + replied + left, []string{"a"}},
		"and another waits for the same":       {asked + gaveUp + "client-1 publishing a, " + replied + left + "client-1 eof", []string{"a"}},
		"and it ended in no peace":             {asked + gaveUp + replied, []string{"a"}},
		"never: executed, and not replied to":  {asked + gaveUp + "server-0 computed a, " + left, []string{"a"}},
		"never: taken, and not executed":       {asked + gaveUp + "server-0 delivered a, " + left, []string{"a"}},
		"never: nobody has had it since":       {asked + gaveUp + left, []string{"a"}},
		"never: another's call was replied to": {asked + gaveUp + "client-1 publishing b, server-0 reply-confirmed b, " + left, []string{"a"}},
	} {
		l, seq := New(), map[string]uint64{}
		l.Killed("client-9", 1)
		for i, step := range strings.Split(strings.TrimSuffix(tc.story, ", "), ", ") {
			who, what, _ := strings.Cut(step, " ")
			kind, request, _ := strings.Cut(what, " ")
			seq[who]++
			l.Add(event.Line{Instance: who, Seq: seq[who], Time: time.Unix(int64(i), 0), Event: event.Kind(kind), Request: request})
		}
		if got := l.Lost().IDs(); !slices.Equal(got, tc.lost) {
			t.Errorf("%s: lost %v, want %v", name, got, tc.lost)
		}
	}
}

func TestConfidenceIsTheRuleOfThree(t *testing.T) {
	l := New()
	for i := range uint64(20_000) {
		l.Add(event.Line{Instance: "client-0", Seq: 2*i + 1, Event: event.Confirmed, Request: strconv.FormatUint(i, 10)})
		l.Add(event.Line{Instance: "client-0", Seq: 2*i + 2, Event: event.Answered, Request: strconv.FormatUint(i, 10)})
	}
	if got, want := l.Confidence(), "0 lost of 20000 confirmed: the true loss rate is below 0.015 % at 95 %"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	l.Add(event.Line{Instance: "client-0", Seq: 40_001, Event: event.Confirmed, Request: "x"})
	if got, want := l.Confidence(), "1 lost of 20001 confirmed"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// A reply that nobody can receive is safe once it is on record.
func TestAnOrphanMayBeAcked(t *testing.T) {
	lines := story()
	lines[find(t, lines, event.ReplyConfirmed, "b", 1)].Event = event.Orphaned
	for _, f := range ledgerOf(lines).Judge() {
		if f.Invariant == ReplyFirst {
			t.Errorf("got %q on %s, want no such finding", f.Invariant, f.Requests)
		}
	}
}

// Whoever asks again under the id of a dead process has published it, too.
func TestARetryByAnotherProcessIsNoHiddenDuplicate(t *testing.T) {
	lines := story()
	lines[find(t, lines, event.Delivered, "a", 2)].Redelivered = false
	again := lines[find(t, lines, event.Publishing, "a", 1)]
	again.Instance, again.Seq = "client-1", 1
	for _, f := range ledgerOf(append(lines, again)).Judge() {
		if f.Invariant == Visible {
			t.Errorf("got %q on %s, want no such finding", f.Invariant, f.Requests)
		}
	}
}

func TestAStreamWithAHoleIsNamed(t *testing.T) {
	for name, tc := range map[string]struct {
		edit func(l []event.Line) []event.Line
		want string
	}{
		"a line is missing": {func(l []event.Line) []event.Line { return slices.Delete(l, 1, 2) }, "client-0: line 2 is missing"},
		"two lines swapped": {func(l []event.Line) []event.Line { l[0], l[1] = l[1], l[0]; return l }, "client-0: line 1 comes after line 2"},
		"a line repeated":   {func(l []event.Line) []event.Line { return slices.Insert(l, 1, l[0]) }, "client-0: line 1 comes twice"},
		"no eof": {func(l []event.Line) []event.Line {
			return slices.DeleteFunc(l, func(x event.Line) bool { return x.Instance == "auditor-0" && x.Event == event.EOF })
		}, "auditor-0: line 1 is the last and is no eof"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := ledgerOf(tc.edit(story())).Incomplete(); !slices.Equal(got, []string{tc.want}) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
		})
	}
	t.Run("a death that nobody arranged", func(t *testing.T) {
		l := New() // knows of no kill
		for _, line := range story() {
			l.Add(line)
		}
		want := "server-0: line 3 is the last and is no eof"
		if got := l.Incomplete(); !slices.Equal(got, []string{want}) {
			t.Errorf("got %q, want %q", got, want)
		}
	})
}

func TestExplainTellsALife(t *testing.T) {
	l := ledgerOf(story())
	got := l.Explain("a")
	for _, want := range []string{
		"Request a (add).",
		"client-0 published it and had it confirmed by the broker.",
		"server-0 received it, executed it (result 3) and had the reply confirmed. There server-0 died.",
		"server-0 received it again (redelivered), knew its key and executed nothing (result 3), had the reply confirmed and acked it.",
		"client-0 got the same reply again and dropped it.",
		"In the end: answered, executed once.",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("got\n%s\nwant in it\n%s", got, want)
		}
	}
	if got := l.Explain("nobody"); got != "" {
		t.Errorf("an unknown request: got %q, want nothing", got)
	}
}

func TestReadTakesWhatARunWrote(t *testing.T) {
	var file bytes.Buffer
	for _, line := range story() {
		b, err := json.Marshal(line)
		if err != nil {
			t.Fatal(err)
		}
		file.Write(append(b, '\n'))
	}
	l, err := Read(&file)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(l.Lines()), len(story()); got != want {
		t.Errorf("lines: got %d, want %d", got, want)
	}
	if _, err := Read(strings.NewReader("{}\nnot an event\n")); err == nil || !strings.Contains(err.Error(), "line 2") {
		t.Errorf("a line that is no event: got %v, want an error that names line 2", err)
	}
}
