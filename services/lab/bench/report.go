package main

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"slices"
	"text/tabwriter"
)

// report holds medians over the rounds, and the targets judged by them.
type report struct {
	Rounds  int      `json:"rounds"`
	Window  string   `json:"window"`
	CPUs    int      `json:"cpus"`
	Rows    []row    `json:"rows"`
	Targets []target `json:"targets"`
	Samples []sample `json:"samples"`
}

// row is one contender at one number of calls in flight. Every figure is a
// median; a ratio is the median of the ratios to raw-safe within each round.
type row struct {
	InFlight    int     `json:"in_flight"`
	Contender   string  `json:"contender"`
	Rate        float64 `json:"calls_per_s"`
	RateMin     float64 `json:"calls_per_s_min"`
	RateMax     float64 `json:"calls_per_s_max"`
	RateRatio   float64 `json:"calls_per_s_ratio,omitempty"`
	P50         float64 `json:"p50_us"`
	P50Ratio    float64 `json:"p50_ratio,omitempty"`
	P99         float64 `json:"p99_us"`
	ClientCPU   float64 `json:"client_cpu_s_per_10k"`
	ServerCPU   float64 `json:"server_cpu_s_per_10k"`
	BrokerCPU   float64 `json:"broker_cpu_s_per_10k"`
	CPURatio    float64 `json:"cpu_ratio,omitempty"` // of all three processes together: steadier than calls/s on a busy machine
	Allocs      float64 `json:"client_allocs_per_call"`
	ExtraAllocs float64 `json:"client_allocs_above_raw_safe"`
	ClientRSS   float64 `json:"client_rss_mib"`
	ServerRSS   float64 `json:"server_rss_mib"`
	BrokerRSS   float64 `json:"broker_rss_mib"`
}

// target is a promise about our contender, relative to raw-safe.
type target struct {
	What string  `json:"what"`
	Got  float64 `json:"got"`
	Want float64 `json:"want"`
	Held bool    `json:"held"`
}

const (
	minRate   = 0.95 // of raw-safe's calls per second, from busy calls in flight on
	busy      = 64
	maxP50    = 1.05 // of raw-safe's median latency, at 1 in flight
	maxAllocs = 10   // per call above raw-safe, in the client's process
)

func summarise(samples []sample, o options) report {
	r := report{Rounds: o.rounds, Window: o.cell.Window.String(), CPUs: runtime.NumCPU(), Samples: samples}
	for _, n := range o.inFlight {
		base := map[int]sample{} // by round
		for _, s := range samples {
			if s.InFlight == n && s.Contender == rawSafe {
				base[s.Round] = s
			}
		}
		for _, name := range o.contenders {
			var mine []sample
			for _, s := range samples {
				if s.InFlight == n && s.Contender == name {
					mine = append(mine, s)
				}
			}
			r.Rows = append(r.Rows, newRow(n, name, mine, base))
		}
	}
	for _, w := range r.Rows {
		if w.Contender != ours || w.RateRatio == 0 { // raw-safe did not run: nothing to hold ours against
			continue
		}
		if w.InFlight >= busy {
			r.judge(fmt.Sprintf("calls/s at %d in flight, ratio to raw-safe", w.InFlight), w.RateRatio, minRate, w.RateRatio >= minRate)
		}
		if w.InFlight == 1 {
			r.judge("p50 at 1 in flight, ratio to raw-safe", w.P50Ratio, maxP50, w.P50Ratio <= maxP50)
		}
		r.judge(fmt.Sprintf("client allocations per call at %d in flight above raw-safe", w.InFlight), w.ExtraAllocs, maxAllocs, w.ExtraAllocs <= maxAllocs)
	}
	return r
}

func (r *report) judge(what string, got, want float64, held bool) {
	r.Targets = append(r.Targets, target{what, got, want, held})
}

func (r report) held() bool {
	return len(r.Targets) > 0 && !slices.ContainsFunc(r.Targets, func(t target) bool { return !t.Held })
}

func newRow(n int, name string, mine []sample, base map[int]sample) row {
	each := func(f func(sample) float64) []float64 {
		var v []float64
		for _, s := range mine {
			v = append(v, f(s))
		}
		return v
	}
	against := func(f func(mine, base sample) float64) float64 {
		var v []float64
		for _, s := range mine {
			if b, ok := base[s.Round]; ok {
				v = append(v, f(s, b))
			}
		}
		return median(v)
	}
	of := func(f func(sample) float64) float64 { return median(each(f)) }
	rates := each(sample.rate)
	return row{
		InFlight: n, Contender: name,
		Rate: median(rates), RateMin: slices.Min(rates), RateMax: slices.Max(rates),
		RateRatio:   against(func(s, b sample) float64 { return s.rate() / b.rate() }),
		P50:         of(func(s sample) float64 { return s.P50 }),
		P50Ratio:    against(func(s, b sample) float64 { return s.P50 / b.P50 }),
		P99:         of(func(s sample) float64 { return s.P99 }),
		ClientCPU:   of(func(s sample) float64 { return s.ClientCPU / float64(s.Calls) * 1e4 }),
		ServerCPU:   of(func(s sample) float64 { return s.ServerCPU / float64(s.Calls) * 1e4 }),
		BrokerCPU:   of(func(s sample) float64 { return s.BrokerCPU / float64(s.Calls) * 1e4 }),
		CPURatio:    against(func(s, b sample) float64 { return s.cpu() / b.cpu() }),
		Allocs:      of(func(s sample) float64 { return s.Allocs }),
		ExtraAllocs: against(func(s, b sample) float64 { return s.Allocs - b.Allocs }),
		ClientRSS:   of(func(s sample) float64 { return s.ClientRSS }),
		ServerRSS:   of(func(s sample) float64 { return s.ServerRSS }),
		BrokerRSS:   of(func(s sample) float64 { return s.BrokerRSS }),
	}
}

// median of no values is 0.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	m := len(v) / 2
	if len(v)%2 == 0 {
		return (v[m-1] + v[m]) / 2
	}
	return v[m]
}

func (r report) write(w io.Writer, format string) error {
	if format == "json" {
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	fmt.Fprintf(w, "Medians of %d rounds of %s on %d CPUs that client, server and broker share; prefetch %d, events off.\n", r.Rounds, r.Window, r.CPUs, prefetch)
	fmt.Fprint(w, "A ratio is the median of the ratios to raw-safe within each round. CPU: seconds per 10 000 calls. RSS in MiB.\n\n")
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(t, "in flight\tcontender\tcalls/s\t(min–max)\tratio\tp50 µs\tratio\tp99 µs\tCPU client\tserver\tbroker\tratio\tallocs/call\tRSS client\tserver\tbroker\t")
	for _, x := range r.Rows {
		fmt.Fprintf(t, "%d\t%s\t%.0f\t(%.0f–%.0f)\t%s\t%.0f\t%s\t%.0f\t%.2f\t%.2f\t%s\t%s\t%.1f\t%.0f\t%.0f\t%s\t\n", x.InFlight, x.Contender,
			x.Rate, x.RateMin, x.RateMax, known("%.2f", x.RateRatio), x.P50, known("%.2f", x.P50Ratio), x.P99,
			x.ClientCPU, x.ServerCPU, known("%.2f", x.BrokerCPU), known("%.2f", x.CPURatio), x.Allocs, x.ClientRSS, x.ServerRSS, known("%.0f", x.BrokerRSS))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, x := range r.Targets {
		verdict := "held  "
		if !x.Held {
			verdict = "MISSED"
		}
		fmt.Fprintf(w, "%s  %s: %.2f (target %g)\n", verdict, x.What, x.Got, x.Want)
	}
	return nil
}

func known(format string, v float64) string {
	if v == 0 {
		return "–"
	}
	return fmt.Sprintf(format, v)
}
