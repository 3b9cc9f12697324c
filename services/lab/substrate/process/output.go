package process

import (
	"bytes"
	"encoding/json"
	"io"
	"slices"
	"strconv"
	"sync"

	"warren.example/messaging/event"
)

// Event reads an event line; ok is false for anything else.
func Event(line []byte) (l event.Line, ok bool) {
	if !bytes.HasPrefix(line, []byte("{")) || json.Unmarshal(line, &l) != nil {
		return event.Line{}, false
	}
	return l, l.Event != "" && l.Seq > 0
}

// Splitter takes the standard output of one life: event lines are passed on as
// they come, the rest is kept.
type Splitter struct {
	Event func(event.Line)
	part  []byte // of a line that has not ended
	rest  bytes.Buffer
}

func (s *Splitter) Write(b []byte) (int, error) {
	s.part = append(s.part, b...)
	for {
		i := bytes.IndexByte(s.part, '\n')
		if i < 0 {
			return len(b), nil
		}
		s.line(s.part[:i+1])
		s.part = s.part[i+1:]
	}
}

func (s *Splitter) line(line []byte) {
	if l, ok := Event(line); ok {
		s.Event(l)
		return
	}
	s.rest.Write(line)
}

// Finish is called after the last Write; it returns what was kept.
func (s *Splitter) Finish() []byte {
	s.rest.Write(s.part)
	s.part = nil
	return s.rest.Bytes()
}

// Tail keeps the last lines of a log, and writes all of them to Copy.
type Tail struct {
	Copy io.Writer // may be nil

	mu   sync.Mutex
	ring []string
	part []byte
}

// TailLines is how many are kept.
const TailLines = 200

func (t *Tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.part = append(t.part, b...)
	for {
		i := bytes.IndexByte(t.part, '\n')
		if i < 0 {
			break
		}
		t.ring = append(t.ring, string(t.part[:i]))
		t.part = t.part[i+1:]
	}
	if extra := len(t.ring) - TailLines; extra > 0 {
		t.ring = slices.Delete(t.ring, 0, extra)
	}
	if t.Copy == nil {
		return len(b), nil
	}
	return t.Copy.Write(b)
}

// Lines are the last ones, one that has not ended included.
func (t *Tail) Lines() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := slices.Clone(t.ring)
	if len(t.part) > 0 {
		all = append(all, string(t.part))
	}
	return all
}

// Last is the last line, for an error.
func (t *Tail) Last() string {
	all := t.Lines()
	if len(all) == 0 {
		return strconv.Quote("")
	}
	return all[len(all)-1]
}
