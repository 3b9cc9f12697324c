package scenario

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/ledger"
	"warren.example/lab/substrate"
	"warren.example/lab/substrate/vhost"
	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/fault"
)

// Budgets on one machine; elsewhere they are times the substrate's patience. A
// scenario waits for conditions, never for a time to pass; these only bound the
// wait for what does not come.
const (
	readyWithin  = 20 * time.Second
	seenWithin   = 20 * time.Second
	settleWithin = 30 * time.Second
	goneWithin   = 5 * time.Second
)

// look is the pause between two looks at a room that seems quiet. If something
// is unaccounted for the second look comes later, so that a straggler is seen
// rather than called lost, and after the broker's next count of what is in hand
// or being dead-lettered. Both are times the patience too: elsewhere it counts less often.
const (
	look     = 250 * time.Millisecond
	lookLong = 1500 * time.Millisecond
)

// World is what a scenario has to say. Its verbs: Serve, Audit, Deploy, Load,
// Call, Publish, Until, Settle, Workers; and what can be done to the Broker.
//
// A verb that cannot do its part ends the scenario as INCONCLUSIVE, so that
// scenarios read without error handling, as tests do.
type World struct {
	Broker Broker

	ctx    context.Context
	alone  bool // no other room is open
	under  substrate.Substrate
	room   substrate.Room
	broker substrate.Broker
	ledger *ledger.Ledger
	slow   time.Duration // the substrate's patience
	tell   func(string)
	record func(event.Line) // into the ledger and the run's file

	servants  []*Servant // servers and auditors
	workloads []*Workload
	stopped   []*Machine
	clients   []*Client
	author    *Peer
	leave     []func()       // ends what the lab itself has at the broker
	names     map[string]int // how many of each role there were
	queues    []string       // that must be empty in the end
	calm      vhost.Calm     // since the story declared a queue
	verdict   *Verdict
}

// stop ends a scenario from within a verb.
type stop struct{ err error }

func (w *World) must(err error, what string, args ...any) {
	if err != nil {
		panic(stop{fmt.Errorf("%s: %w", fmt.Sprintf(what, args...), err)})
	}
}

// breaks is called before anything is broken that rooms share.
func (w *World) breaks(what string) {
	if !w.alone {
		panic(what + " is everybody's: the scenario must be Alone")
	}
}

// Settings of a service, without their prefix.
type Settings map[string]string

// With is s and more.
func (s Settings) With(more Settings) Settings {
	all := maps.Clone(s)
	if all == nil {
		all = Settings{}
	}
	maps.Copy(all, more)
	return all
}

// Servant is a service that stays: a calculator server or the auditor. When it
// dies it is started again, as a pod would be.
type Servant struct {
	w *World
	substrate.Process
}

// Serve starts one more calculator server and returns when it is ready.
func (w *World) Serve(s Settings) *Servant {
	return w.serve(substrate.CalculatorServer, "server", s, "")
}

// Audit starts the dead-letter auditor and returns when it is ready.
func (w *World) Audit(s Settings) *Servant {
	return w.serve(substrate.DeadLetterAuditor, "auditor", s, "")
}

func (w *World) serve(kind substrate.Kind, role string, s Settings, machine string) *Servant {
	name := w.name(role)
	w.tell("starting " + name)
	p, err := w.room.Start(w.ctx, substrate.Service{Kind: kind, Name: name, Env: s, Restart: true, Machine: machine})
	w.must(err, "start %s", name)
	servant := &Servant{w, p}
	w.servants = append(w.servants, servant)
	servant.Ready()
	return servant
}

// Ready waits until it serves.
func (s *Servant) Ready() {
	ctx, cancel := context.WithTimeout(s.w.ctx, s.w.slow*readyWithin)
	defer cancel()
	s.w.must(s.WaitReady(ctx), "wait for %s", s.Name())
}

// Serves says whether it is ready now.
func (s *Servant) Serves() bool {
	_, err := s.Admin(s.w.ctx, "GET", "/readyz", nil)
	if err != nil && strings.Contains(err.Error(), "503 Service Unavailable") {
		return false
	}
	s.w.must(err, "ask whether %s is ready", s.Name())
	return true
}

// name is one that nobody in the room has had: server-0, server-1, …
func (w *World) name(role string) string {
	n := w.names[role]
	w.names[role]++
	return fmt.Sprintf("%s-%d", role, n)
}

// CrashAt kills the process, as hard as SIGKILL, when the n-th next delivery
// reaches the point. A busy server may be dead before it has answered the order.
func (s *Servant) CrashAt(p fault.Point, n int) {
	s.w.ledger.Killed(s.Name(), 1)
	before := s.Crashes()
	err := s.arm(p, fault.Crash, n)
	if unanswered := new(url.Error); errors.As(err, &unanswered) {
		s.w.Until(s.Name()+" has died of an order that it did not answer: "+err.Error(), func(seen) bool { return s.Crashes() > before })
		err = nil
	}
	s.w.must(err, "have %s crash", s.Name())
}

// HoldAt stops the n-th next delivery at the point until Release.
func (s *Servant) HoldAt(p fault.Point, n int) {
	s.w.must(s.arm(p, fault.Hold, n), "have %s hold a delivery", s.Name())
}

func (s *Servant) arm(p fault.Point, a fault.Action, n int) error {
	s.w.tell(fmt.Sprintf("%s will %s at delivery %d, %s", s.Name(), a, n, p))
	_, err := s.Admin(s.w.ctx, "POST", "/faults", fault.Order{Point: p, Action: a, N: n})
	return err
}

// Release lets every held delivery go on.
func (s *Servant) Release() {
	_, err := s.Admin(s.w.ctx, "POST", "/faults/release", nil)
	s.w.must(err, "release %s", s.Name())
}

// Freeze stops the process by SIGSTOP: its sockets stay open and silent.
func (s *Servant) Freeze() {
	s.w.tell("freezing " + s.Name())
	s.w.must(s.Pause(s.w.ctx), "freeze %s", s.Name())
}

// Thaw lets it go on.
func (s *Servant) Thaw() { s.w.must(s.Resume(s.w.ctx), "thaw %s", s.Name()) }

// Doomed says that up to n deaths of this servant are the scenario's doing.
func (s *Servant) Doomed(n int) { s.w.ledger.Killed(s.Name(), n) }

// Leave ends it by SIGTERM, for good, and returns when it is gone.
func (s *Servant) Leave() {
	ctx, cancel := context.WithTimeout(s.w.ctx, s.w.slow*goneWithin)
	defer cancel()
	s.w.must(s.Terminate(ctx), "end %s", s.Name())
	_, err := s.Wait(ctx)
	s.w.must(err, "wait for the end of %s", s.Name())
	s.w.servants = slices.DeleteFunc(s.w.servants, func(o *Servant) bool { return o == s })
}

// DeadLetter is what the auditor says about one death.
type DeadLetter struct {
	ID      int64  `json:"id"`
	Request string `json:"message_id"`
	Replay  int    `json:"replay"` // that died so; 0: the first
	Reason  string `json:"reason"`
	Seen    int    `json:"seen"`
	Status  string `json:"status"` // open, replaying, answered …
}

// DeadLetters asks the auditor for what it has stored.
func (s *Servant) DeadLetters() []DeadLetter {
	b, err := s.HTTP(s.w.ctx, "GET", "/api/dead-letters?limit=500", nil)
	s.w.must(err, "ask %s for the dead letters", s.Name())
	var page struct {
		DeadLetters []DeadLetter `json:"dead_letters"`
	}
	s.w.must(json.Unmarshal(b, &page), "read the dead letters of %s", s.Name())
	return page.DeadLetters
}

// Replay has the auditor publish a dead letter again; false: it had been asked
// before.
func (s *Servant) Replay(row DeadLetter) bool {
	_, err := s.HTTP(s.w.ctx, "POST", fmt.Sprintf("/api/dead-letters/%d/replay", row.ID), nil)
	if err != nil && strings.Contains(err.Error(), "409 Conflict") {
		return false
	}
	s.w.must(err, "replay dead letter %d", row.ID)
	return true
}

// Reconcile waits until the room is quiet, as Settle does, and has the auditor
// compare what everybody else has written with what it has on record. It returns
// the gaps.
func (s *Servant) Reconcile() ledger.Set {
	s.w.tell("reconciling")
	ctx, cancel := context.WithTimeout(s.w.ctx, s.w.slow*settleWithin)
	defer cancel()
	_, err := s.w.rest(ctx, 2) // what is left in a queue is a gap, and Settle tells of it
	s.w.must(err, "wait until all is quiet")
	var lines bytes.Buffer
	for _, line := range s.w.ledger.Lines() {
		if line.Instance != s.Name() {
			s.w.must(json.NewEncoder(&lines).Encode(line), "write a line")
		}
	}
	ctx, cancel = context.WithTimeout(s.w.ctx, s.w.slow*seenWithin)
	defer cancel()
	exit, err := s.Command(ctx, &lines, "reconcile", "-", "--output", "json")
	s.w.must(err, "reconcile")
	var answer struct {
		Gaps []string `json:"gaps"`
	}
	err = json.Unmarshal(exit.Stdout, &answer)
	if err == nil && exit.Code != min(len(answer.Gaps), 1) {
		err = fmt.Errorf("%d gaps", len(answer.Gaps))
	}
	s.w.must(err, "reconcile: exit status %d", exit.Code)
	return ledger.SetOf(answer.Gaps...)
}

// Client is a running `client load`.
type Client struct {
	w *World
	substrate.Process
}

// Kill ends it by SIGKILL, for good, and returns when the broker has noticed and
// its reply queue is gone.
func (c *Client) Kill() {
	c.w.ledger.Killed(c.Name(), 1)
	c.w.must(c.Crash(c.w.ctx), "kill %s", c.Name())
	c.HangsUp(func(seen) bool { return false })
}

// HangsUp returns when the broker knows that its first connection is gone, and the
// reply queue with it, or when something else has been seen.
func (c *Client) HangsUp(or func(seen) bool) {
	ctx, cancel := context.WithTimeout(c.w.ctx, c.w.slow*seenWithin)
	defer cancel()
	for !or(c.w.ledger) {
		_, err := c.w.room.Queue(ctx, contract.ClientReplyQueue+"."+c.Name()+".1")
		if vhost.Status(err) == http.StatusNotFound {
			return
		}
		c.w.must(ctx.Err(), "wait for the end of the reply queue of %s (%v)", c.Name(), err)
		time.Sleep(look / 10)
	}
}

// Enough ends an endless load: it asks no more, and waits for the answers.
func (c *Client) Enough() { c.w.must(c.Terminate(c.w.ctx), "end %s", c.Name()) }

// Ended returns when every call has ended, well or not.
func (c *Client) Ended() {
	c.w.tell("until " + c.Name() + " has ended")
	ctx, cancel := context.WithTimeout(c.w.ctx, c.w.slow*seenWithin)
	defer cancel()
	_, err := c.Wait(ctx)
	c.w.must(err, "wait for the end of %s", c.Name())
}

// Load starts a client that sends a load, and does not wait for its end.
func (w *World) Load(args ...string) *Client {
	return w.client(append([]string{"load"}, args...), nil, "")
}

func (w *World) client(args []string, s Settings, machine string) *Client {
	name := w.name("client")
	w.tell(fmt.Sprintf("%s: %v", name, args))
	p, err := w.room.Start(w.ctx, substrate.Service{Kind: substrate.Client, Name: name, Args: args, Env: s, Machine: machine})
	w.must(err, "start %s %v", name, args)
	c := &Client{w, p}
	w.clients = append(w.clients, c)
	return c
}

// Outcome is how one call ended.
type Outcome struct {
	Request         string          `json:"request"`
	Result          string          `json:"result"`
	Error           *contract.Error `json:"error"`
	Outcome         string          `json:"outcome"` // answered, refused, no-server, deadline, unavailable …
	MayHaveExecuted bool            `json:"mayHaveExecuted"`
	Milliseconds    float64         `json:"milliseconds"`
}

// Code is the error's, or "".
func (o Outcome) Code() contract.Code {
	if o.Error == nil {
		return ""
	}
	return o.Error.Code
}

func (o Outcome) String() string {
	switch {
	case o.Outcome == "answered":
		return fmt.Sprintf("%s after %.0f ms", o.Result, o.Milliseconds)
	case o.Error != nil:
		return fmt.Sprintf("%s after %.0f ms: %v", o.Outcome, o.Milliseconds, o.Error)
	}
	return fmt.Sprintf("%s after %.0f ms", o.Outcome, o.Milliseconds)
}

// Call makes one call and returns how it ended.
func (w *World) Call(args ...string) Outcome {
	c := w.client(append([]string{"call", "--output", "json"}, args...), nil, "")
	ctx, cancel := context.WithTimeout(w.ctx, w.slow*settleWithin)
	defer cancel()
	exit, err := c.Wait(ctx)
	w.must(err, "wait for %s", c.Name())
	var o Outcome
	w.must(json.Unmarshal(bytes.TrimSpace(exit.Stdout), &o), "read what %s %v printed (exit status %d)", c.Name(), args, exit.Code)
	return o
}

// Publish sends requests as a stranger would, without our client: as the user
// calc-client, raw, persistent unless they say otherwise. It returns when the
// broker has confirmed them all.
func (w *World) Publish(requests ...amqp.Publishing) {
	if w.author == nil {
		w.author = w.stranger()
	}
	w.author.Publish(contract.RequestExchange, contract.RequestKey, requests...)
}

// Until waits for something to be seen in the ledger.
func (w *World) Until(what string, happened func(seen) bool) {
	w.tell("until " + what)
	ctx, cancel := context.WithTimeout(w.ctx, w.slow*seenWithin)
	defer cancel()
	for changed := w.ledger.Changed(); !happened(w.ledger); changed = w.ledger.Changed() {
		select {
		case <-changed:
		case <-ctx.Done():
			w.must(ctx.Err(), "wait until %s", what)
		}
	}
}

// Settle waits until every client has ended and the room is quiet twice, ends
// everybody in peace, and returns the evidence.
func (w *World) Settle() *Verdict {
	w.tell("until all is quiet")
	ctx, cancel := context.WithTimeout(w.ctx, w.slow*settleWithin)
	defer cancel()
	left, err := w.rest(ctx, 2)
	w.must(err, "wait until all is quiet")
	if left != "" {
		left = fmt.Sprintf("after %s: %s", w.slow*settleWithin, left)
	}
	w.tell("the verdict")
	w.end()
	if left == "" { // the broker's count of what is in hand is up to seconds old; but what was is back now, and stays
		left, err = w.rest(ctx, 1)
		w.must(err, "look at what has come back")
	}
	w.ledger.Missed(w.room.Missed()...)
	v := judge(w.ledger)
	w.verdict = v
	if left != "" {
		v.broken = append(v.broken, Breach{Promise: ComesToRest, What: fmt.Sprintf("%s; still open: %s", left, w.ledger.Open())})
	}
	return v
}

// rest returns when the clients have ended and so many looks in a row, apart,
// found the queues empty and nothing new in the ledger. What is left in them when
// patience ends was seen there; that it could not be seen is an error.
func (w *World) rest(ctx context.Context, looks int) (left string, err error) {
	for _, c := range w.clients {
		if _, err := c.Wait(ctx); err != nil {
			return "", fmt.Errorf("%s has not ended: %w", c.Name(), err)
		}
	}
	for before, quiet := 0, 0; ; {
		now := len(w.ledger.Lines())
		queued, err := w.queued(ctx)
		switch {
		case err != nil && ctx.Err() != nil && left != "":
			return left, nil
		case err != nil:
			return "", err
		case queued != "":
			quiet = 0
		case now != before:
			quiet = 1
		default:
			quiet++
		}
		if quiet >= looks {
			return "", nil
		}
		before, left = now, queued
		pause := look
		if len(w.ledger.Lost()) > 0 {
			pause = lookLong
		}
		select {
		case <-time.After(w.slow * pause):
		case <-ctx.Done():
			if left == "" {
				return "", fmt.Errorf("lines still come: %w", ctx.Err())
			}
			return left, nil
		}
	}
}

// queued says what is still in the queues, or "".
func (w *World) queued(ctx context.Context) (string, error) {
	var left []string
	for _, name := range w.queues {
		q, err := w.room.Queue(ctx, name)
		if err != nil {
			return "", fmt.Errorf("look at %s: %w", name, err)
		}
		if q.Ready+q.Unacked+q.DeadLettering > 0 {
			left = append(left, fmt.Sprintf("%s: %d ready, %d unacked, %d being dead-lettered", name, q.Ready, q.Unacked, q.DeadLettering))
		}
	}
	return strings.Join(left, "; "), nil
}

// end lets everybody finish by SIGTERM, so that their ledgers end with eof.
// Whoever does not end has an incomplete ledger, and the verdict says so.
func (w *World) end() {
	w.disconnect()
	ctx, cancel := context.WithTimeout(w.ctx, w.slow*goneWithin)
	defer cancel()
	for _, s := range w.servants {
		_ = s.Terminate(ctx)
	}
	for _, s := range w.servants {
		_, _ = s.Wait(ctx)
	}
	for _, d := range w.workloads {
		d.end()
	}
}

// disconnect may be called twice.
func (w *World) disconnect() {
	for _, leave := range w.leave {
		leave()
	}
}

// tails is the last log lines of every process, for the report of a failure.
func (w *World) tails() map[string][]string {
	tails := map[string][]string{}
	for _, s := range w.servants {
		tails[s.Name()] = s.Tail()
	}
	for _, c := range w.clients {
		tails[c.Name()] = c.Tail()
	}
	for _, d := range w.workloads {
		for name, pod := range d.met {
			tails[name] = pod.Tail()
		}
	}
	return tails
}

// seen is the evidence so far, for conditions of Until.
type seen = *ledger.Ledger

// passed is a condition for Until: at least n requests passed the step.
func passed(step event.Kind, n int) func(seen) bool {
	return func(l seen) bool { return len(l.With(step)) >= n }
}
