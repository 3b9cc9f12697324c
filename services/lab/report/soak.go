package report

import (
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"warren.example/lab/scenario"
	"warren.example/messaging/event"
)

// Soak writes one row for each fault that a soak has met: when, and how calls
// went on until the next.
func Soak(w io.Writer, s *scenario.Soak) {
	if len(s.Met) == 0 {
		return
	}
	answered, silence := make([]int, len(s.Met)), make([]time.Duration, len(s.Met))
	i, last := -1, s.Met[0].At
	for _, line := range s.Lines {
		if line.Event != event.Answered {
			continue
		}
		begun := func() bool { return i+1 < len(s.Met) && !line.Time.Before(s.Met[i+1].At) }
		from := i // whose silence this answer ends: that of the first fault since the last
		if begun() {
			from++
		}
		for begun() {
			i++
		}
		if from >= 0 {
			silence[from] = max(silence[from], line.Time.Sub(last))
			answered[i]++
		}
		last = line.Time
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "at\twhat broke\tanswered until the next\tlongest without an answer")
	for i, m := range s.Met {
		at := m.At.Sub(s.Met[0].At).Round(100 * time.Millisecond)
		fmt.Fprintf(t, "%s\t%s\t%d\t%s\n", at, m.Fault, answered[i], silence[i].Round(10*time.Millisecond))
	}
	_ = t.Flush()
	fmt.Fprintln(w)
}
