package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"warren.example/messaging/contract"
	"warren.example/messaging/rpc"
)

var (
	oneAndOne  = newQuestion(contract.Add, 0) // 0.01 + 0.01
	right      = contract.Reply{Result: "0.02"}
	divideZero = newQuestion(contract.Divide, 9)
	byZero     = &contract.Error{Code: contract.DivideByZero, Message: "division by zero"}
	late       = &rpc.CallError{Attempts: 1, MayHaveExecuted: true, Err: rpc.ErrDeadline}
)

func TestOnlyAFaultlessLoadIsOK(t *testing.T) {
	for name, tc := range map[string]struct {
		calls func(*tally)
		ok    bool
		said  string
	}{
		"every call answered":     {func(t *tally) { end(t, oneAndOne, right, nil) }, true, "every call ended as it should"},
		"refused as expected":     {func(t *tally) { end(t, divideZero, contract.Reply{}, byZero) }, true, "every call ended as it should"},
		"nothing sent":            {func(*tally) {}, false, "nothing was sent"},
		"one never ended":         {func(t *tally) { t.sent(); end(t, oneAndOne, right, nil) }, false, "not as it should be"},
		"one failed":              {func(t *tally) { end(t, oneAndOne, right, nil); end(t, oneAndOne, contract.Reply{}, late) }, false, "1 failed, 0 refused unexpectedly, 0 wrong"},
		"one wrong":               {func(t *tally) { end(t, oneAndOne, contract.Reply{Result: "3"}, nil) }, false, "0 failed, 0 refused unexpectedly, 1 wrong"},
		"answered, not refused":   {func(t *tally) { end(t, divideZero, right, nil) }, false, "1 wrong"},
		"refused without a cause": {func(t *tally) { end(t, oneAndOne, contract.Reply{}, byZero) }, false, "1 refused unexpectedly"},
	} {
		t.Run(name, func(t *testing.T) {
			var stderr, out bytes.Buffer
			tally := newTally(&stderr, prometheus.NewRegistry())
			tally.begin()
			tc.calls(tally)
			s := tally.summary(0)
			if err := s.print(&out, "text"); err != nil {
				t.Fatal(err)
			}
			if s.OK != tc.ok || !strings.Contains(out.String(), tc.said) {
				t.Errorf("got ok=%v and\n%s\nwant ok=%v and %q", s.OK, &out, tc.ok, tc.said)
			}
			if told := stderr.Len() > 0; told == tc.ok && name != "nothing sent" && name != "one never ended" {
				t.Errorf("got %q on standard error for ok=%v", &stderr, tc.ok)
			}
		})
	}
}

// end is one call from beginning to end.
func end(t *tally, q question, reply contract.Reply, err error) {
	t.sent()
	t.ended("R", q, reply, err, time.Millisecond)
}

func TestSummaryText(t *testing.T) {
	s := summary{
		Sent: 1010, Answered: 990, Refused: map[string]int{"DIVIDE_BY_ZERO": 10}, Unexpected: 0,
		Failed: map[string]int{"deadline": 9, "no-server": 1}, MayHaveExecuted: 9, Retried: 3, Wrong: 1,
		Seconds: 1.234, PerSecond: 810, Latency: latency{0.9, 1.2, 14.26, 120, 1234.5}, Interrupted: true,
	}
	const want = `sent      1010
answered  990
refused   10 (DIVIDE_BY_ZERO 10)
failed    10 (deadline 9, no-server 1), 9 may have been executed
retried   3
wrong     1
rate      810.0/s for 1.234s
latency   p50 0.90 ms  p90 1.20 ms  p99 14.3 ms  p99.9 120 ms  max 1234 ms
not as it should be: 10 failed, 0 refused unexpectedly, 1 wrong (interrupted)
`
	var got bytes.Buffer
	if err := s.print(&got, "text"); err != nil || got.String() != want {
		t.Errorf("got\n%s\n%v\nwant\n%s", &got, err, want)
	}
}

func TestSummaryJSON(t *testing.T) {
	s := summary{Sent: 1, Answered: 1, Refused: map[string]int{}, Failed: map[string]int{}, Seconds: 0.5, PerSecond: 2, Latency: latency{1, 1, 1, 1, 1}, OK: true}
	const want = `{"sent":1,"answered":1,"refused":{},"unexpected":0,"failed":{},"mayHaveExecuted":0,"retried":0,"wrong":0,"seconds":0.5,"perSecond":2,` +
		`"latencyMilliseconds":{"p50":1,"p90":1,"p99":1,"p99.9":1,"max":1},"interrupted":false,"ok":true}` + "\n"
	var got bytes.Buffer
	if err := s.print(&got, "json"); err != nil || got.String() != want {
		t.Errorf("got\n%s\n%v\nwant\n%s", &got, err, want)
	}
}

// A latency beyond the histogram's range is kept at its edge: dropping it
// would make the worst call the one that nobody sees.
func TestLatencyKeepsTheWorst(t *testing.T) {
	tally := newTally(&bytes.Buffer{}, prometheus.NewRegistry())
	tally.begin()
	for _, took := range []time.Duration{0, time.Millisecond, 3 * time.Hour} {
		tally.sent()
		tally.ended("R", oneAndOne, right, nil, took)
	}
	s := tally.summary(5)
	hour := float64(time.Hour.Milliseconds())
	if s.Latency.Max < hour || s.Latency.Max > hour*1.01 || s.Latency.P50 < 0.999 || s.Latency.P50 > 1.001 {
		t.Errorf("got %+v, want a median of 1 ms and a maximum of an hour", s.Latency)
	}
	if s.Retried != 2 {
		t.Errorf("got %d retried, want 2: five publishes for three calls", s.Retried)
	}
}

func TestOnlyTheFirstTroublesAreShown(t *testing.T) {
	var stderr bytes.Buffer
	tally := newTally(&stderr, prometheus.NewRegistry())
	tally.begin()
	for range 100 {
		end(tally, oneAndOne, contract.Reply{Result: "3"}, nil)
	}
	first := fmt.Sprintf("WRONG: request R: add 0.01 0.01: got %q, want 0.02\n", "3")
	want := strings.Repeat(first, 10) + "further ones are counted only\n"
	if stderr.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &stderr, want)
	}
}
