package event

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
)

func TestLinesAreNumberedBoundedAndWrittenAtOnce(t *testing.T) {
	var w writes
	r := NewRecorder(&w, "r1", "server-0")
	for range 3 {
		r.Record(Line{Event: Delivered, Request: "a", Reason: strings.Repeat("é", 5000)})
	}
	if len(w) != 3 {
		t.Fatalf("got %d writes, want 3", len(w))
	}
	for i, b := range w {
		var l Line
		if err := json.Unmarshal(b, &l); err != nil {
			t.Fatalf("line %d: %v", i, err)
		}
		if l.Seq != uint64(i+1) || l.Run != "r1" || l.Instance != "server-0" || l.Start == 0 || len(b) > MaxLine || b[len(b)-1] != '\n' {
			t.Errorf("line %d of %d bytes: got %+v", i, len(b), l)
		}
	}
}

func TestALedgerWithAHoleEnds(t *testing.T) {
	full := errors.New("full")
	w := &failing{err: full}
	r := NewRecorder(w, "r1", "c")
	r.Record(Line{Event: Publishing})
	w.err = nil
	r.Record(Line{Event: Published})
	if !errors.Is(r.Err(), full) || w.Len() != 0 {
		t.Fatalf("got error %v and %q, want %v and nothing", r.Err(), w.String(), full)
	}
	var none *Recorder
	none.Record(Line{}) // records nothing, and says so by not crashing
}

type writes [][]byte

func (w *writes) Write(b []byte) (int, error) { *w = append(*w, bytes.Clone(b)); return len(b), nil }

type failing struct {
	bytes.Buffer
	err error
}

func (f *failing) Write(b []byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return f.Buffer.Write(b)
}
