package local

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"warren.example/messaging/event"
)

// Event lines are passed on and everything else is kept, however the output
// is cut into writes.
func TestSplitter(t *testing.T) {
	const output = `{"run":"r","instance":"i","seq":1,"event":"publishing","request":"a"}
0.3
{"result":"0.3"}
{"run":"r","instance":"i","seq":2,"event":"answered","request":"a"}
{not json
half a li`
	for size := 1; size <= len(output); size++ {
		var events []string
		s := &splitter{event: func(l event.Line) { events = append(events, fmt.Sprintf("%d %s", l.Seq, l.Event)) }}
		for part := range slices.Chunk([]byte(output), size) {
			if n, err := s.Write(part); n != len(part) || err != nil {
				t.Fatalf("Write: %d, %v", n, err)
			}
		}
		if want := []string{"1 publishing", "2 answered"}; !slices.Equal(events, want) {
			t.Fatalf("writes of %d bytes: events %q, want %q", size, events, want)
		}
		if got, want := string(s.finish()), "0.3\n{\"result\":\"0.3\"}\n{not json\nhalf a li"; got != want {
			t.Fatalf("writes of %d bytes: kept %q, want %q", size, got, want)
		}
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	path := filepath.Join(t.TempDir(), "log")
	l, err := newTail(path)
	if err != nil {
		t.Fatal(err)
	}
	for i := range tailLines + 50 {
		fmt.Fprintf(l, "line %d\n", i)
	}
	fmt.Fprint(l, "unfinished")
	all := l.lines()
	if len(all) != tailLines+1 || all[0] != "line 50" || l.last() != "unfinished" {
		t.Errorf("%d lines from %q to %q, want %d from \"line 50\" to \"unfinished\"", len(all), all[0], l.last(), tailLines+1)
	}
	if info, err := os.Stat(path); err != nil || info.Size() < 2000 {
		t.Errorf("log file: %v, %v; want all lines in it", info, err)
	}
}
