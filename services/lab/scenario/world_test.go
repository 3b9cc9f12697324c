package scenario

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strings"
	"testing"
	"time"

	"warren.example/lab/ledger"
	"warren.example/lab/substrate"
	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/fault"
)

// someRoom has one queue, and may have lost lines.
type someRoom struct {
	substrate.Room
	queue  func(context.Context) (substrate.QueueState, error)
	missed []string
}

func (r someRoom) Queue(ctx context.Context, _ string) (substrate.QueueState, error) {
	return r.queue(ctx)
}
func (r someRoom) Missed() []string { return r.missed }

// deaf is a client whose end nobody hears of.
type deaf struct{ substrate.Process }

func (deaf) Name() string { return "client-0" }
func (deaf) Wait(ctx context.Context) (substrate.Exit, error) {
	<-ctx.Done()
	return substrate.Exit{}, ctx.Err()
}

// ends is what ended a part of a story, nil if it came to its end.
func ends(story func()) (err error) {
	defer func() {
		switch why := recover().(type) {
		case nil:
		case stop:
			err = why.err
		default:
			panic(why)
		}
	}()
	story()
	return nil
}

// Only what was seen in a queue is a breach: a look that fails, or lines that
// are lost, make the run worth nothing, whatever else was shown.
func TestSettle(t *testing.T) {
	empty := func(context.Context) (substrate.QueueState, error) { return substrate.QueueState{}, nil }
	full := func(context.Context) (substrate.QueueState, error) { return substrate.QueueState{Ready: 1}, nil }
	var looks, late int
	var left bool
	for name, tc := range map[string]struct {
		room    someRoom
		clients []substrate.Process
		want    Word
		why     string
	}{
		"all is quiet":           {someRoom{queue: empty}, nil, Held, ""},
		"a queue is never empty": {someRoom{queue: full}, nil, Broken, ComesToRest},
		"somebody kept one in hand, and has left": {someRoom{queue: func(context.Context) (substrate.QueueState, error) {
			if left {
				return substrate.QueueState{Ready: 1}, nil
			}
			return substrate.QueueState{}, nil
		}}, nil, Broken, ComesToRest},
		"a count from before somebody left comes late": {someRoom{queue: func(context.Context) (substrate.QueueState, error) {
			if left && late > 0 {
				late--
				return substrate.QueueState{Ready: 1}, nil
			}
			return substrate.QueueState{}, nil
		}}, nil, Held, ""},
		"a client that hangs":     {someRoom{queue: empty}, []substrate.Process{deaf{}}, Inconclusive, "client-0 has not ended"},
		"a look that is refused":  {someRoom{queue: func(context.Context) (substrate.QueueState, error) { return substrate.QueueState{}, errors.New("401") }}, nil, Inconclusive, "401"},
		"a log that was not read": {someRoom{queue: empty, missed: []string{"the log of life 1"}}, nil, Inconclusive, "the log of life 1"},
		"the last look is cut short, and the one before saw what is left": {someRoom{queue: func(ctx context.Context) (substrate.QueueState, error) {
			if looks++; looks == 1 {
				return substrate.QueueState{Unacked: 1}, nil
			}
			<-ctx.Done()
			return substrate.QueueState{}, ctx.Err()
		}}, nil, Broken, "1 unacked"},
	} {
		t.Run(name, func(t *testing.T) {
			looks, late, left = 0, 1, false
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
			defer cancel()
			w := &World{ctx: ctx, room: tc.room, ledger: lines(event.Publishing, event.Confirmed, event.Refused, event.EOF), slow: 1,
				tell: func(string) {}, queues: []string{contract.RequestQueue}, leave: []func(){func() { left = true }}}
			for _, p := range tc.clients {
				w.clients = append(w.clients, &Client{w, p})
			}
			p := played{}
			p.err = ends(func() {
				p.verdict = w.Settle()
				p.verdict.None("ok", ledger.Set{})
			})
			if got, why := p.word(); got != tc.want || !strings.Contains(why, tc.why) {
				t.Errorf("got %s: %s, want %s with %q", got, why, tc.want, tc.why)
			}
		})
	}
}

// mayfly dies of an order, and its answer to it is lost or is a refusal.
type mayfly struct {
	named
	answer error
	dies   bool
	deaths *int
}

func (m mayfly) Crashes() int { return *m.deaths }
func (m mayfly) Admin(context.Context, string, string, any) ([]byte, error) {
	if m.dies {
		*m.deaths++
	}
	return nil, m.answer
}

// A crash that comes before the answer to its order is what was ordered; an answer
// that is lost while the process lives, or a refusal, is not.
func TestCrashAt(t *testing.T) {
	lost := fmt.Errorf("POST /faults of server-0: %w", &url.Error{Op: "Post", URL: "http://server-0/faults", Err: io.EOF})
	for name, tc := range map[string]struct {
		dies   bool
		answer error
		want   string
	}{
		"it lives on, and has answered":    {false, nil, ""},
		"it dies, and has answered":        {true, nil, ""},
		"it dies before it has answered":   {true, lost, ""},
		"it lives, and its answer is lost": {false, lost, "EOF"},
		"it refuses":                       {false, errors.New("400 Bad Request"), "400 Bad Request"},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		w := &World{ctx: ctx, ledger: ledger.New(), slow: 1, tell: func(string) {}}
		server := &Servant{w, mayfly{named{name: "server-0"}, tc.answer, tc.dies, new(int)}}
		why := ends(func() { server.CrashAt(fault.AfterWork, 1) })
		if got := fmt.Sprint(why); (why == nil) != (tc.want == "") || !strings.Contains(got, tc.want) {
			t.Errorf("%s: got %v, want %q", name, why, tc.want)
		}
	}
}

// A scenario that breaks what others use at the same time is a bug, found before
// anything is broken.
func TestWhatIsSharedIsBrokenAlone(t *testing.T) {
	w := &World{}
	for name, fault := range map[string]func(){
		"Kill":     Broker{w}.Kill,
		"KillNode": func() { Broker{w}.KillNode(0) },
		"Roll":     Broker{w}.Roll,
		"Alarm":    func() { Broker{w}.Alarm() },
		"Limit":    func() { Broker{w}.LimitMessages(1) },
		"Stop":     (&Machine{w: w}).Stop,
	} {
		func() {
			defer func() {
				if why, _ := recover().(string); !strings.Contains(why, "must be Alone") {
					t.Errorf("%s: got %q, want a refusal", name, why)
				}
			}()
			fault()
		}()
	}
}
