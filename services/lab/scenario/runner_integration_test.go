//go:build integration

package scenario

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"warren.example/lab/substrate/local"
	"warren.example/messaging/event"
)

// One scenario for real: as it is, with a control that cannot fail, and with
// its promise broken on purpose. A broker of its own,
// because it is the whole machinery that is tried.
func TestRunner(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	o := local.Options{Broker: os.Getenv("LAB_BROKER"), Nodes: 1, Progress: func(string) {}}
	if err := o.Validate(); err != nil {
		t.Fatal(err)
	}
	sub, err := local.New(ctx, o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := sub.Close(context.WithoutCancel(ctx)); err != nil {
			t.Error(err)
		}
	}()
	recorded := 0
	runner := Runner{Substrate: sub, Record: func(event.Line) { recorded++ }}

	toothless, broken := auditorKilled, auditorKilled
	toothless.Controls = []Control{{Name: "nothing changed", Breaks: oneRow, Run: killAuditor(nil)}}
	broken.Run = killAuditor(Settings{"UNIQUE_KEY": "false"})
	missed := Scenario{Name: "missed", Run: func(w *World) {
		w.Audit(nil)
		v := w.Settle()
		v.None("nothing is lost", v.Lost())
		v.Hit("a request", len(v.With(event.Publishing)) > 0)
	}}

	for _, tc := range []struct {
		name     string
		scenario Scenario
		want     Word
		why      string
	}{
		{"as it is", auditorKilled, Held, ""},
		{"a control that cannot fail", toothless, Inconclusive, `control "nothing changed" did not fail`},
		{"a promise broken on purpose", broken, Broken, oneRow},
		{"a fault that hits nothing", missed, Inconclusive, "not seen: a request"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := runner.Run(ctx, tc.scenario)
			if got.Verdict != tc.want || !strings.Contains(got.Reason, tc.why) {
				t.Errorf("got %s: %s, want %s with %q", got.Verdict, got.Reason, tc.want, tc.why)
			}
			if tc.want == Broken && len(got.Lives) == 0 {
				t.Errorf("no life of an offending request is told")
			}
			if tc.want != Held && len(got.Logs) == 0 {
				t.Errorf("no last log lines")
			}
		})
	}
	if recorded == 0 {
		t.Errorf("nothing was recorded")
	}
}
