package main

import (
	"context"
	"errors"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// valve records Pause and Resume.
type valve struct{ saw []string }

func (v *valve) Pause(context.Context) error { v.saw = append(v.saw, "pause"); return nil }
func (v *valve) Resume()                     { v.saw = append(v.saw, "resume") }

// failing is a database that is away for the first n audits.
type failing struct {
	Store
	n        int
	whenAway func()
}

func (f *failing) Audit(ctx context.Context, l DeadLetter) (DeadLetter, error) {
	if f.n--; f.n >= 0 {
		f.whenAway()
		return DeadLetter{}, errors.New("disk full")
	}
	return f.Store.Audit(ctx, l)
}

func TestHoldPausesUntilTheDatabaseIsBack(t *testing.T) {
	s := newStore(t)
	flow := &valve{}
	store := &failing{Store: s, n: 2}
	a := newAuditor(store, nil, nil, newMetrics(prometheus.NewRegistry(), s), zap.NewNop(), 1)
	a.flow = flow
	store.whenAway = func() {
		if a.Ready() == nil {
			t.Error("ready while the database is away")
		}
	}
	var row DeadLetter
	again := func() (err error) { row, err = a.put(t.Context(), newLetter("m")); return err }
	if err := a.hold(t.Context(), "m", errors.New("disk full"), again); err != nil || row.Seen != 1 {
		t.Errorf("got seen %d, %v; want 1", row.Seen, err)
	}
	if len(flow.saw) != 2 || flow.saw[0] != "pause" || flow.saw[1] != "resume" {
		t.Errorf("got %v, want pause, resume", flow.saw)
	}
	if err := a.Ready(); err != nil {
		t.Errorf("not ready after it: %v", err)
	}
}

func TestHoldEndsWithTheService(t *testing.T) {
	s := newStore(t)
	a := newAuditor(&failing{Store: s, n: 1 << 30, whenAway: func() {}}, nil, nil, newMetrics(prometheus.NewRegistry(), s), zap.NewNop(), 1)
	a.flow = &valve{}
	ctx, stop := context.WithCancel(t.Context())
	stop()
	if err := a.hold(ctx, "m", errors.New("disk full"), func() error { return errors.New("disk full") }); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want context canceled", err)
	}
}
