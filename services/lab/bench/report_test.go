package main

import (
	"math"
	"strings"
	"testing"
)

func TestMedian(t *testing.T) {
	for want, in := range map[float64][]float64{0: nil, 3: {9, 1, 3}, 2.5: {4, 1, 2, 3}} {
		if got := median(in); got != want {
			t.Errorf("median(%v): got %v, want %v", in, got, want)
		}
	}
}

// The machine halves its speed in the second round: the ratio of medians would
// be wrong, the median of the rounds' ratios is not.
func TestRatiosAreFormedWithinARound(t *testing.T) {
	o := options{contenders: []string{ours, rawSafe}, inFlight: []int{64}, rounds: 2}
	r := summarise([]sample{
		{Contender: rawSafe, InFlight: 64, Round: 0, Calls: 10000, Seconds: 1, Allocs: 80},
		{Contender: ours, InFlight: 64, Round: 0, Calls: 9600, Seconds: 1, Allocs: 88},
		{Contender: ours, InFlight: 64, Round: 1, Calls: 4800, Seconds: 1, Allocs: 90},
		{Contender: rawSafe, InFlight: 64, Round: 1, Calls: 5000, Seconds: 1, Allocs: 80},
	}, o)
	if got := r.Rows[0].RateRatio; math.Abs(got-0.96) > 1e-9 {
		t.Errorf("ratio of calls/s: got %v, want 0.96", got)
	}
	if got := r.Rows[0].ExtraAllocs; got != 9 {
		t.Errorf("allocations above raw-safe: got %v, want 9", got)
	}
	if !r.held() {
		t.Errorf("targets: got %+v, want all held", r.Targets)
	}
}

func TestAMissedTargetIsSaid(t *testing.T) {
	for name, c := range map[string]struct {
		inFlight      int
		mine          sample
		wantTarget    string
		wantNoTargets bool
	}{
		"too slow under load":        {64, sample{Calls: 940, Seconds: 1, P50: 100}, "calls/s at 64", false},
		"too slow alone":             {1, sample{Calls: 1000, Seconds: 1, P50: 106}, "p50 at 1", false},
		"too many allocations":       {8, sample{Calls: 1000, Seconds: 1, P50: 100, Allocs: 10.5}, "allocations per call at 8", false},
		"slow, but nothing to match": {8, sample{Calls: 1, Seconds: 1, P50: 900}, "", true},
	} {
		t.Run(name, func(t *testing.T) {
			o := options{contenders: []string{ours, rawSafe}, inFlight: []int{c.inFlight}, rounds: 1}
			c.mine.Contender, c.mine.InFlight = ours, c.inFlight
			r := summarise([]sample{c.mine, {Contender: rawSafe, InFlight: c.inFlight, Calls: 1000, Seconds: 1, P50: 100}}, o)
			var missed []string
			for _, x := range r.Targets {
				if !x.Held {
					missed = append(missed, x.What)
				}
			}
			if c.wantNoTargets {
				if len(missed) > 0 {
					t.Errorf("missed: got %q, want none", missed)
				}
				return
			}
			if len(missed) != 1 || !strings.Contains(missed[0], c.wantTarget) || r.held() {
				t.Errorf("missed: got %q, held %v; want one with %q", missed, r.held(), c.wantTarget)
			}
		})
	}
}

func TestNothingHeldWithoutRawSafe(t *testing.T) {
	o := options{contenders: []string{ours}, inFlight: []int{64}, rounds: 1}
	r := summarise([]sample{{Contender: ours, InFlight: 64, Calls: 9600, Seconds: 1}}, o)
	if r.held() {
		t.Errorf("held without anything to compare with: %+v", r.Targets)
	}
}

func TestBadFlagsAreRefused(t *testing.T) {
	for args, want := range map[string]string{
		"--output yaml":              "--output yaml",
		"--contenders rpc,grpc":      `"grpc"`,
		"--in-flight 1,many":         "--in-flight many",
		"--in-flight 2001":           "--in-flight 2001",
		"--rounds 0":                 "--rounds",
		"--window 0s":                "--window",
		"now":                        `"now"`,
		"--output json --rounds 3 x": `"x"`,
	} {
		_, err := parse(strings.Fields(args), &strings.Builder{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: got %v, want an error with %s", args, err, want)
		}
	}
}
