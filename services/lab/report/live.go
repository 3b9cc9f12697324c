package report

import (
	"fmt"
	"io"
	"maps"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"

	"warren.example/lab/scenario"
)

// Live shows what a run is doing: on a terminal one line that changes,
// elsewhere one line for each part of a scenario.
type Live struct {
	w     io.Writer
	width int // of the terminal; 0: none

	mu     sync.Mutex
	part   string // that was heard of last
	step   string
	began  map[string]time.Time // of each part that goes on
	onLine bool                 // the cursor stands behind a line that may change
	turn   int                  // counts such lines: each has a goroutine that rewrites it
}

// NewLive shows on w.
func NewLive(w io.Writer) *Live {
	l := &Live{w: w, began: map[string]time.Time{}}
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		if width, _, err := term.GetSize(int(f.Fd())); err == nil {
			l.width = max(width, 20)
		}
	}
	return l
}

// Step says what is going on. Part is the promise, or a control.
func (l *Live) Step(name, part, step string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.part, l.step = name+"  "+part, step
	if l.began[l.part].IsZero() {
		l.began[l.part] = time.Now()
		if l.width == 0 {
			fmt.Fprintln(l.w, l.part)
		}
	}
	if l.width > 0 && !l.onLine {
		l.onLine = true
		l.turn++
		go l.tick(l.turn)
	}
}

// tick rewrites the line that may change until Say or Clear ends it.
func (l *Live) tick(turn int) {
	for {
		l.mu.Lock()
		if !l.onLine || l.turn != turn {
			l.mu.Unlock()
			return
		}
		line := []rune(fmt.Sprintf("%s  %4.1f s  %s", l.part, time.Since(l.began[l.part]).Seconds(), l.step))
		fmt.Fprint(l.w, "\r\x1b[K"+string(line[:min(len(line), l.width-1)])) // a wrapped line could not be taken back
		l.mu.Unlock()
		time.Sleep(100 * time.Millisecond)
	}
}

// Done shows a result for good.
func (l *Live) Done(r scenario.Result) {
	l.mu.Lock()
	maps.DeleteFunc(l.began, func(part string, _ time.Time) bool { return strings.HasPrefix(part, r.Scenario.Name+"  ") })
	l.mu.Unlock()
	l.Say(Line(r))
}

// Say writes a line that stays.
func (l *Live) Say(line string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clear()
	fmt.Fprintln(l.w, line)
}

// Clear takes the line that may change away.
func (l *Live) Clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.clear()
}

func (l *Live) clear() {
	if l.onLine {
		fmt.Fprint(l.w, "\r\x1b[K")
		l.onLine = false
	}
}

// Line is a result and, below it, what it rests on.
func Line(r scenario.Result) string {
	s := fmt.Sprintf("%s  %s  %.1f s", r.Scenario.Name, r.Verdict, r.Took.Seconds())
	if r.Verdict != scenario.Held {
		s += "  " + r.Reason
	}
	if r.Evidence != "" {
		s += fmt.Sprintf("\n    %-24s  %s", "promise", r.Evidence)
	}
	for _, c := range r.Controls {
		s += fmt.Sprintf("\n    %-24s  %s: %s", c.Name, c.Evidence, c.Verdict)
	}
	return s
}
