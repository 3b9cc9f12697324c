package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"warren.example/messaging/event"
)

// reconciliation is how many requests were confirmed, and what became of them.
type reconciliation struct {
	Confirmed  int      `json:"confirmed"`
	Ended      int      `json:"ended"`      // of these
	OnRecord   int      `json:"on_record"`  // of the others: as dead letters, here
	Gaps       []string `json:"gaps"`       // the rest
	Incomplete []string `json:"incomplete"` // files whose last line is torn
}

// fates is what event lines tell of requests.
type fates struct {
	confirmed []string        // each once, in that order
	known     map[string]bool // those that were confirmed
	ended     map[string]bool
	torn      []string // files that end in the middle of a line
}

// readFates reads files of event lines; "-" is standard input.
func readFates(names []string, stdin io.Reader) (*fates, error) {
	f := &fates{known: map[string]bool{}, ended: map[string]bool{}}
	for _, name := range names {
		if name == "-" {
			if err := f.read("standard input", stdin); err != nil {
				return nil, err
			}
			continue
		}
		file, err := os.Open(name)
		if err != nil {
			var cause *os.PathError
			if errors.As(err, &cause) {
				err = cause.Err // the name is there already
			}
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		err = f.read(name, file)
		_ = file.Close() // it was only read
		if err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (f *fates) read(name string, r io.Reader) error {
	lines := bufio.NewReaderSize(r, 2*event.MaxLine) // whoever copies lines may spell them longer
	for n := 1; ; n++ {
		b, err := lines.ReadSlice('\n')
		switch {
		case err == io.EOF && len(b) == 0:
			return nil
		case errors.Is(err, bufio.ErrBufferFull):
			return fmt.Errorf("%s:%d: longer than any event line", name, n)
		case err != nil && err != io.EOF:
			return fmt.Errorf("%s:%d: %w", name, n, err)
		}
		var line event.Line
		bad := json.Unmarshal(b, &line)
		if bad != nil && err == io.EOF && bytes.HasPrefix(b, []byte("{")) { // its writer died, or still writes
			f.torn = append(f.torn, name)
			return nil
		}
		if bad != nil || line.Event == "" || line.Seq == 0 {
			return fmt.Errorf("%s:%d: no event line: %q", name, n, bytes.TrimSpace(b[:min(len(b), 60)]))
		}
		f.take(line)
	}
}

// take notes an end as the lab's ledger does: somebody has the answer, or the
// refusal, or it is on record that it came too late. That a caller gave up, or
// that another attempt was returned, ends nothing: the request that was confirmed
// is still somewhere.
func (f *fates) take(line event.Line) {
	switch line.Event {
	case event.Confirmed:
		if line.Request != "" && !f.known[line.Request] {
			f.known[line.Request] = true
			f.confirmed = append(f.confirmed, line.Request)
		}
	case event.Answered, event.Refused, event.LateReply, event.Orphaned, event.Audited:
		f.ended[line.Request] = true
	}
}

// reconcile asks about every request that has no end.
func (f *fates) reconcile(onRecord func(id string) (bool, error)) (reconciliation, error) {
	r := reconciliation{Confirmed: len(f.confirmed), Gaps: []string{}, Incomplete: append([]string{}, f.torn...)}
	for _, id := range f.confirmed {
		if f.ended[id] {
			r.Ended++
			continue
		}
		yes, err := onRecord(id)
		switch {
		case err != nil:
			return reconciliation{}, err
		case yes:
			r.OnRecord++
		default:
			r.Gaps = append(r.Gaps, id)
		}
	}
	return r, nil
}
