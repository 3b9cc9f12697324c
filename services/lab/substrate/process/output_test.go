package process

import (
	"bytes"
	"fmt"
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
		s := &Splitter{Event: func(l event.Line) { events = append(events, fmt.Sprintf("%d %s", l.Seq, l.Event)) }}
		for part := range slices.Chunk([]byte(output), size) {
			if n, err := s.Write(part); n != len(part) || err != nil {
				t.Fatalf("Write: %d, %v", n, err)
			}
		}
		if want := []string{"1 publishing", "2 answered"}; !slices.Equal(events, want) {
			t.Fatalf("writes of %d bytes: events %q, want %q", size, events, want)
		}
		if got, want := string(s.Finish()), "0.3\n{\"result\":\"0.3\"}\n{not json\nhalf a li"; got != want {
			t.Fatalf("writes of %d bytes: kept %q, want %q", size, got, want)
		}
	}
}

func TestTailKeepsTheEnd(t *testing.T) {
	var whole bytes.Buffer
	l := &Tail{Copy: &whole}
	for i := range TailLines + 50 {
		fmt.Fprintf(l, "line %d\n", i)
	}
	fmt.Fprint(l, "unfinished")
	all := l.Lines()
	if len(all) != TailLines+1 || all[0] != "line 50" || l.Last() != "unfinished" {
		t.Errorf("%d lines from %q to %q, want %d from \"line 50\" to \"unfinished\"", len(all), all[0], l.Last(), TailLines+1)
	}
	if n := bytes.Count(whole.Bytes(), []byte("\n")); n != TailLines+50 {
		t.Errorf("copied: %d lines, want all %d", n, TailLines+50)
	}
}
