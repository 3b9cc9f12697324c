package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
	"github.com/prometheus/client_golang/prometheus"

	"warren.example/messaging/contract"
)

// A tally counts the calls of a load while they run.
type tally struct {
	stderr io.Writer

	mu        sync.Mutex
	began     time.Time
	latest    time.Time // end of a call
	counts    summary
	published int                     // calls whose request was published at least once
	latency   *hdrhistogram.Histogram // microseconds, of calls that were answered or refused
	shown     int

	outcomes *prometheus.CounterVec
	seconds  prometheus.Histogram
}

// longest is the highest latency that the histogram tells apart.
const longest = time.Hour

func newTally(stderr io.Writer, registry prometheus.Registerer) *tally {
	t := &tally{
		stderr:  stderr,
		counts:  summary{Refused: map[string]int{}, Failed: map[string]int{}},
		latency: hdrhistogram.New(1, longest.Microseconds(), 3),
		outcomes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "warren_client_calls_total", Help: "Calls that have ended, by how they ended."}, []string{"outcome"}),
		seconds: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "warren_client_call_seconds", Help: "Time from the intended start of a call to its answer or refusal.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16)}),
	}
	for _, e := range []ending{answered, refused, noServer, deadline, overloaded, unknown, unavailable} {
		t.outcomes.WithLabelValues(e.Name) // a counter that is absent until the first failure cannot alarm
	}
	registry.MustRegister(t.outcomes, t.seconds)
	return t
}

// begin starts the clock; connecting before it is not the calls' time.
func (t *tally) begin() time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.began = time.Now()
	return t.began
}

// passed is the time since begin, 0 before it.
func (t *tally) passed() time.Duration {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.began.IsZero() {
		return 0
	}
	return time.Since(t.began)
}

func (t *tally) sent() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.counts.Sent++
}

// ended counts one call that took so long from its intended start. It returns
// whether the server replied.
func (t *tally) ended(id string, q question, reply contract.Reply, err error, took time.Duration) bool {
	f := failure{end: answered}
	if err != nil {
		f = failureOf(err)
	}
	t.outcomes.WithLabelValues(f.end.Name).Inc()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.latest = time.Now()
	c := &t.counts
	switch f.end.Status {
	case answered.Status:
		c.Answered++
		t.published++
		if wrong := q.check(reply.Result); wrong != "" {
			c.Wrong++
			t.show("WRONG", id, q, wrong)
		}
	case refused.Status:
		c.Refused[string(f.cause.Code)]++
		t.published++
		if f.cause.Code != q.refusal {
			c.Unexpected++
			t.show("REFUSED", id, q, f.cause.Error())
		}
	default:
		c.Failed[f.end.Name]++
		if f.published {
			t.published++
		}
		if f.mayHaveExecuted {
			c.MayHaveExecuted++
		}
		t.show("FAILED", id, q, f.cause.Error())
		return false
	}
	_ = t.latency.RecordValue(min(max(took.Microseconds(), 1), longest.Microseconds())) // in range, so no error
	t.seconds.Observe(took.Seconds())
	return true
}

// show prints the first few only: a thousand wrong answers have one cause.
func (t *tally) show(what, id string, q question, why string) {
	const most = 10
	switch t.shown++; {
	case t.shown <= most:
		fmt.Fprintf(t.stderr, "%s: request %s: %s %s: %s\n", what, id, q.request.Operation, strings.Join(q.request.Operands, " "), why)
	case t.shown == most+1:
		fmt.Fprintln(t.stderr, "further ones are counted only")
	}
}

// summary is what a load prints at its end.
type summary struct {
	Sent            int            `json:"sent"`
	Answered        int            `json:"answered"`
	Refused         map[string]int `json:"refused"`         // by the server's code
	Unexpected      int            `json:"unexpected"`      // of the refused: the question deserved an answer
	Failed          map[string]int `json:"failed"`          // by ending
	MayHaveExecuted int            `json:"mayHaveExecuted"` // of the failed
	Retried         int            `json:"retried"`         // requests published again, under the same id
	Wrong           int            `json:"wrong"`
	Seconds         float64        `json:"seconds"`
	PerSecond       float64        `json:"perSecond"` // answered or refused
	Latency         latency        `json:"latencyMilliseconds"`
	Interrupted     bool           `json:"interrupted"` // by a signal, before all was sent
	OK              bool           `json:"ok"`
}

type latency struct {
	P50  float64 `json:"p50"`
	P90  float64 `json:"p90"`
	P99  float64 `json:"p99"`
	P999 float64 `json:"p99.9"`
	Max  float64 `json:"max"`
}

// summary counts what has ended so far. Published is how many publishes there
// were in all; a call that needs more than one was retried.
func (t *tally) summary(published int) summary {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.counts
	s.Refused, s.Failed = maps.Clone(s.Refused), maps.Clone(s.Failed)
	if !t.latest.IsZero() {
		s.Seconds = t.latest.Sub(t.began).Seconds()
		s.PerSecond = math.Round(float64(s.Answered+sum(s.Refused))/s.Seconds*10) / 10
	}
	s.Retried = max(0, published-t.published)
	at := func(q float64) float64 { return float64(t.latency.ValueAtQuantile(q)) / 1000 }
	s.Latency = latency{at(50), at(90), at(99), at(99.9), float64(t.latency.Max()) / 1000}
	s.OK = s.Sent > 0 && s.Answered+sum(s.Refused) == s.Sent && s.Unexpected == 0 && s.Wrong == 0
	return s
}

func (s summary) print(w io.Writer, output string) error {
	if output == "json" {
		return json.NewEncoder(w).Encode(s)
	}
	verdict := "every call ended as it should"
	switch {
	case s.Sent == 0:
		verdict = "nothing was sent"
	case !s.OK:
		verdict = fmt.Sprintf("not as it should be: %d failed, %d refused unexpectedly, %d wrong", sum(s.Failed), s.Unexpected, s.Wrong)
	}
	if s.Interrupted {
		verdict += " (interrupted)"
	}
	maybe := ""
	if len(s.Failed) > 0 {
		maybe = fmt.Sprintf(", %d may have been executed", s.MayHaveExecuted)
	}
	_, err := fmt.Fprintf(w, `sent      %d
answered  %d
refused   %s
failed    %s%s
retried   %d
wrong     %d
rate      %.1f/s for %s
latency   p50 %s  p90 %s  p99 %s  p99.9 %s  max %s
%s
`, s.Sent, s.Answered, spread(s.Refused), spread(s.Failed), maybe, s.Retried, s.Wrong, s.PerSecond,
		time.Duration(s.Seconds*float64(time.Second)).Round(time.Millisecond),
		ms(s.Latency.P50), ms(s.Latency.P90), ms(s.Latency.P99), ms(s.Latency.P999), ms(s.Latency.Max), verdict)
	return err
}

// spread is a total and what it consists of, the most frequent first.
func spread(counts map[string]int) string {
	names := slices.SortedFunc(maps.Keys(counts), func(a, b string) int {
		return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b))
	})
	for i, n := range names {
		names[i] = fmt.Sprintf("%s %d", n, counts[n])
	}
	total := fmt.Sprint(sum(counts))
	if len(names) == 0 {
		return total
	}
	return total + " (" + strings.Join(names, ", ") + ")"
}

// publishes is how often this process has published, by the session's count of
// outcomes. Right once the caller is closed, when every publish has its outcome.
func publishes(g prometheus.Gatherer) (n int) {
	families, _ := g.Gather()
	for _, f := range families {
		if f.GetName() == "warren_publish_outcomes_total" {
			for _, m := range f.GetMetric() {
				n += int(m.GetCounter().GetValue())
			}
		}
	}
	return n
}

// ms shows three digits, or more of a large number.
func ms(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f ms", v)
	case v >= 10:
		return fmt.Sprintf("%.1f ms", v)
	}
	return fmt.Sprintf("%.2f ms", v)
}

func sum(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}
