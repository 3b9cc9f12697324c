package report

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"warren.example/lab/scenario"
)

func results(words ...scenario.Word) []scenario.Result {
	var all []scenario.Result
	for i, s := range scenario.All() {
		r := scenario.Result{Scenario: s, Verdict: words[i%len(words)], Took: 12345 * time.Millisecond, Broker: "RabbitMQ 4.3.6"}
		if r.Verdict != scenario.Held {
			r.Reason = "needs 3 broker nodes, there are 1"
		}
		for _, c := range s.Controls {
			r.Controls = append(r.Controls, scenario.ControlResult{Name: c.Name, Verdict: scenario.FailedAsItMust})
		}
		all = append(all, r)
	}
	return all
}

func TestTableFitsAndNamesEverything(t *testing.T) {
	var out bytes.Buffer
	all := results(scenario.Held, scenario.Broken, scenario.Inconclusive, scenario.Skipped)
	all[0].Notes = []string{"silent for 1.2 s"}
	Table(&out, all)
	if !strings.Contains(out.String(), all[0].Notes[0]) {
		t.Errorf("the table lacks the note:\n%s", out.String())
	}
	for line := range strings.Lines(out.String()) {
		if n := utf8.RuneCountInString(strings.TrimSuffix(line, "\n")); n > Columns {
			t.Errorf("a line of %d columns, want at most %d: %s", n, Columns, line)
		}
	}
	for _, r := range all {
		if !strings.Contains(out.String(), r.Scenario.Name) {
			t.Errorf("the table lacks %s:\n%s", r.Scenario.Name, out.String())
		}
	}
}

func TestJSONHasExactlyTheseFields(t *testing.T) {
	var out bytes.Buffer
	all := results(scenario.Held)[:1]
	if err := JSON(&out, all); err != nil {
		t.Fatal(err)
	}
	got := strings.Join(strings.Fields(out.String()), "")
	want := `[{"name":"killed-before-ack","verdict":"HELD","reason":"","seconds":12.3,"controls":[{"name":"auto-ack","verdict":"FAILEDasitmust"}],"broker":"RabbitMQ4.3.6"}]`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	out.Reset()
	if err := JSON(&out, nil); err != nil || strings.TrimSpace(out.String()) != "[]" {
		t.Errorf("no results: got %q, %v, want []", out.String(), err)
	}
	if !json.Valid(out.Bytes()) {
		t.Error("not JSON")
	}
}

func TestJUnitCounts(t *testing.T) {
	var out bytes.Buffer
	all := results(scenario.Held, scenario.Broken, scenario.Inconclusive, scenario.Skipped)[:4]
	all[0].Evidence = "sent 5"
	all[1].Lives = map[string]string{"a": "Request a <add> & more"}
	if err := JUnit(&out, all); err != nil {
		t.Fatal(err)
	}
	var got struct {
		Tests    int `xml:"tests,attr"`
		Failures int `xml:"failures,attr"`
		Errors   int `xml:"errors,attr"`
		Skipped  int `xml:"skipped,attr"`
		Cases    []struct {
			Failure string `xml:"failure"`
			Output  string `xml:"system-out"`
		} `xml:"testcase"`
	}
	if err := xml.Unmarshal(out.Bytes(), &got); err != nil {
		t.Fatalf("%v in\n%s", err, out.String())
	}
	if got.Tests != 4 || got.Failures != 1 || got.Errors != 1 || got.Skipped != 1 {
		t.Errorf("got %+v, want 4 tests, 1 failure, 1 error, 1 skipped", got)
	}
	if !strings.Contains(got.Cases[1].Failure, "Request a <add> & more") {
		t.Errorf("failure: got %q, want the life of the request", got.Cases[1].Failure)
	}
	if want := "promise: sent 5\ncontrol auto-ack: FAILED as it must\n"; got.Cases[0].Output != want {
		t.Errorf("output: got %q, want %q", got.Cases[0].Output, want)
	}
}

func TestStatusIsTheWorst(t *testing.T) {
	const h, b, i, s = scenario.Held, scenario.Broken, scenario.Inconclusive, scenario.Skipped
	for _, tc := range []struct {
		words []scenario.Word
		ci    bool
		want  int
	}{
		{[]scenario.Word{h, h}, true, 0},
		{[]scenario.Word{h, b}, false, 1},
		{[]scenario.Word{i, b, h}, false, 1},
		{[]scenario.Word{b, i}, false, 1},
		{[]scenario.Word{h, i}, false, 2},
		{[]scenario.Word{h, s}, true, 0},
		{[]scenario.Word{s, s}, false, 0},
		{[]scenario.Word{s, s}, true, 3},
		{[]scenario.Word{""}, false, 1}, // a result that nobody filled in
	} {
		if got := Status(results(tc.words...)[:len(tc.words)], tc.ci); got != tc.want {
			t.Errorf("%v, CI=%t: got %d, want %d", tc.words, tc.ci, got, tc.want)
		}
	}
}

func TestDetailsOfAFailure(t *testing.T) {
	all := results(scenario.Broken)[:1]
	all[0].Reason = "no loss: broken"
	all[0].Lives = map[string]string{"a": "Request a. In the end: LOST."}
	all[0].Logs = map[string][]string{"server-0": {"first", "last"}}
	var out bytes.Buffer
	Details(&out, all, func(name string) string { return "lab run " + name + " --keep" })
	for _, want := range []string{"killed-before-ack is BROKEN: no loss: broken", "Request a. In the end: LOST.", "server-0", "last", "lab run killed-before-ack --keep"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("got\n%s\nwant in it %q", out.String(), want)
		}
	}
}

func TestLiveWithoutATerminalIsALineForEachPart(t *testing.T) {
	var out bytes.Buffer
	l := NewLive(&out)
	l.Step("poison", "promise", "starting server-0")
	l.Step("poison", "promise", "until all is quiet")
	l.Step("poison", "control: prefetch 50", "starting server-0")
	l.Say("done")
	want := "poison  promise\npoison  control: prefetch 50\ndone\n"
	if out.String() != want {
		t.Errorf("got %q, want %q", out.String(), want)
	}
}
