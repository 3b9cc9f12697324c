package report

import (
	"strings"
	"testing"
	"time"

	"warren.example/lab/scenario"
	"warren.example/messaging/event"
)

// An answer counts for the fault before it, and a silence for the one that it
// began with, however many came meanwhile.
func TestSoak(t *testing.T) {
	begin := time.Now()
	at := func(s int) time.Time { return begin.Add(time.Duration(s) * time.Second) }
	s := &scenario.Soak{Met: []scenario.Met{{At: at(1), Fault: "one"}, {At: at(9), Fault: "two"}, {At: at(10), Fault: "three"}}}
	for _, second := range []int{0, 2, 3, 8, 14, 15} {
		s.Lines = append(s.Lines, event.Line{Event: event.Answered, Time: at(second)}, event.Line{Event: event.Acked, Time: at(second)})
	}
	var b strings.Builder
	Soak(&b, s)
	want := []string{"0s one 3 5s", "8s two 0 6s", "9s three 2 1s"}
	for i, line := range strings.Split(strings.TrimSpace(b.String()), "\n")[1:] {
		if got := strings.Join(strings.Fields(line), " "); got != want[i] {
			t.Errorf("got %q, want %q", got, want[i])
		}
	}
}
