package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"warren.example/lab/ledger"
	"warren.example/lab/scenario"
	"warren.example/messaging/event"
)

// soaked is a short soak: one call was delivered twice, since the first server died.
func soaked() bundle {
	begin := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var lines []event.Line
	seq := map[string]uint64{}
	add := func(instance string, start int64, line event.Line) {
		line.Instance, line.Start, line.Time = instance, start, begin.Add(time.Duration(len(lines))*time.Second)
		seq[instance+string(rune(start))]++
		line.Seq = seq[instance+string(rune(start))]
		lines = append(lines, line)
	}
	add("client-0", 1, event.Line{Event: event.Publishing, Request: "a", Attempt: 1})
	add("client-0", 1, event.Line{Event: event.Confirmed, Request: "a"})
	add("server-0", 1, event.Line{Event: event.Delivered, Request: "a", Epoch: 1, Tag: 1})
	add("server-0", 2, event.Line{Event: event.Delivered, Request: "a", Epoch: 1, Tag: 1, Redelivered: true})
	add("server-0", 2, event.Line{Event: event.Computed, Request: "a", Result: "3"})
	add("server-0", 2, event.Line{Event: event.ReplyConfirmed, Request: "a"})
	add("server-0", 2, event.Line{Event: event.Acked, Request: "a", Epoch: 1, Tag: 1})
	add("server-0", 2, event.Line{Event: event.EOF})
	add("client-0", 1, event.Line{Event: event.Answered, Request: "a", Result: "3"})
	add("client-0", 1, event.Line{Event: event.EOF})
	return bundle{Began: begin, Warren: "v1", On: "local", Broker: "RabbitMQ 4.3.6", Verdict: scenario.Held, Soak: &scenario.Soak{
		Seed: 7, For: time.Minute, Lines: lines,
		Met:      []scenario.Met{{At: begin.Add(3 * time.Second), Fault: "a server dies"}},
		Arranged: ledger.Arranged{Killed: map[string]int{"server-0": 1}},
	}}
}

func TestReplay(t *testing.T) {
	write := func(t *testing.T, b bundle) string {
		folder, err := makeBundle(filepath.Join(t.TempDir(), "soak"), b.Seed)
		if err != nil {
			t.Fatal(err)
		}
		if err := b.write(folder); err != nil {
			t.Fatal(err)
		}
		return folder
	}
	for name, tc := range map[string]struct {
		change func(b *bundle)
		status int
		shows  string
	}{
		"as it was":           {func(*bundle) {}, exitHeld, "0s  a server dies  1                        5s"},
		"what it was run on":  {func(*bundle) {}, exitHeld, "2026-01-02 03:04:05  seed 7 for 1m0s on local, RabbitMQ 4.3.6, warren v1"},
		"another result":      {func(b *bundle) { b.Lines[8].Result = "4" }, exitBroken, "results agree"},
		"it was HELD then":    {func(b *bundle) { b.Lines[8].Result = "4" }, exitBroken, "It was HELD when it was run"},
		"a call without end":  {func(b *bundle) { b.Lines[8].Event = event.TimedOut }, exitBroken, "every call is answered: missing (1: a)"},
		"a death by itself":   {func(b *bundle) { b.Arranged.Killed = nil }, exitInconclusive, "line 1 is the last and is no eof"},
		"no fault was met":    {func(b *bundle) { b.Met = nil }, exitInconclusive, "the fault missed: not seen: a fault"},
		"nothing redelivered": {func(b *bundle) { b.Lines = append(b.Lines[:2:2], b.Lines[8:]...) }, exitBroken, "nothing from nowhere"},
	} {
		b := soaked()
		tc.change(&b)
		status, stdout, said := execute(t, "replay", write(t, b))
		if status != tc.status || !strings.Contains(stdout, tc.shows) {
			t.Errorf("%s: status %d, want %d; %q, want in it %q; %s", name, status, tc.status, stdout, tc.shows, said)
		}
	}

	folder := write(t, soaked())
	if status, _, said := execute(t, "soak", "--bundle", folder); status != exitUsage || !strings.Contains(said, "--bundle") {
		t.Errorf("soak into an old folder: status %d, %q", status, said)
	}
	if err := os.WriteFile(filepath.Join(folder, soakFile), []byte(`{"sead": 7}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if status, _, said := execute(t, "replay", folder); status != exitUsage || !strings.Contains(said, `"sead"`) {
		t.Errorf("an unknown field: status %d, %q", status, said)
	}
}
