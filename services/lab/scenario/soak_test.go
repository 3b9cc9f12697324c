package scenario

import (
	"slices"
	"testing"
	"time"
)

// A seed draws the same faults again, each once in a round.
func TestASeedDrawsItsFaults(t *testing.T) {
	faults := slices.Concat(serverDies, otherFaults)
	type drawn struct {
		fault      string
		calm, long time.Duration
		n          int
	}
	take := func(seed uint64) (all []drawn) {
		for d := range draws(seed, faults) {
			if all = append(all, drawn{d.fault.name, d.calm, d.long, d.n}); len(all) == 3*len(faults) {
				break
			}
		}
		return all
	}
	once := take(7)
	if !slices.Equal(once, take(7)) {
		t.Error("seed 7 drew something else the second time")
	}
	if slices.Equal(once, take(8)) {
		t.Error("seeds 7 and 8 draw the same")
	}
	for round := range slices.Chunk(once, len(faults)) {
		names := map[string]bool{}
		for _, d := range round {
			names[d.fault] = true
		}
		if len(names) != len(faults) {
			t.Errorf("a round has %d different faults, want all %d", len(names), len(faults))
		}
	}
}
