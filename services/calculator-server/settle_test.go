package main

import (
	"fmt"
	"sync"
	"testing"
)

// recorder is a wire that only writes down what it was told.
type recorder struct {
	mu  sync.Mutex
	saw []string
	err error
}

func (r *recorder) say(format string, args ...any) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.saw = append(r.saw, fmt.Sprintf(format, args...))
	return r.err
}

func (r *recorder) Ack() error                { return r.say("ack") }
func (r *recorder) Reject(requeue bool) error { return r.say("reject requeue=%t", requeue) }
func (r *recorder) Nack(requeue bool) error   { return r.say("nack requeue=%t", requeue) }

func TestSettle(t *testing.T) {
	for how, want := range map[Disposition]struct {
		wire  string
		fails bool
	}{
		Ack:        {"[ack]", false},
		Retry:      {"[reject requeue=true]", false},
		Release:    {"[nack requeue=true]", false},
		DeadLetter: {"[reject requeue=false]", false},
		Hold:       {"[]", false},
		0:          {"[]", true}, // the forgotten return: silence on the wire, and an error
		Hold + 1:   {"[]", true},
	} {
		t.Run(how.String(), func(t *testing.T) {
			var wire recorder
			err := settle(&wire, how)
			if got := fmt.Sprint(wire.saw); got != want.wire || (err != nil) != want.fails {
				t.Errorf("settle %d: wire saw %s, error %v; want %s, error %t", how, got, err, want.wire, want.fails)
			}
		})
	}
}
