package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	amqp "github.com/rabbitmq/amqp091-go"
	"github.com/spf13/cobra"

	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/fault"
	"warren.example/messaging/rpc"
	"warren.example/messaging/service"
)

// loadFlags say how many calls to make, and how.
type loadFlags struct {
	callFlags
	rate       float64
	inFlight   int
	count      uint64
	duration   time.Duration
	endless    bool
	confirm    string
	batchSize  int
	operations []string
}

func (c *client) loadCommand() *cobra.Command {
	var flags loadFlags
	cmd := &cobra.Command{
		Use:   "load [flags]",
		Short: "Ask many questions, check every answer, print a summary",
		Long: `Ask many questions, check every answer, print a summary.

With --in-flight N callers ask one question after the other (a closed loop):
when the server is slow, fewer questions are asked. With --rate questions are
asked at fixed instants whatever becomes of the earlier ones (an open loop),
and latency counts from the instant at which a question should have been
asked: a stall is seen by everybody who would have come during it.

Questions follow from their number, and so do the right answers. One division
in ten is by zero and must be refused. While the broker is away, calls wait for
it until their deadline. A broker that refuses the login, the virtual host or
the certificate ends the load before its first call, unless it is --endless.

A first SIGINT or SIGTERM stops asking and waits for the calls in flight until
their deadlines; a second one ends the process at once. Progress and the
first wrong answers go to standard error, the summary to standard output, or to
standard error when WARREN_EVENTS=stdout gives standard output to the events.
Latency is of the calls that were answered or refused.

` + lessonsHelp() + "\n" + statusHelp(),
		Example: `  client load --count 1000
  client load --rate 200 --duration 30s --operations add,divide --confirm one`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// 1. Refuse what cannot work before touching the network.
			if err := errors.Join(flags.problems(cmd.Flags().Changed)...); err != nil {
				return err
			}
			cfg, err := loadConfig()
			if err != nil {
				return err
			}
			return c.load(cmd.Context(), cfg, flags)
		},
	}
	f := cmd.Flags()
	f.Float64Var(&flags.rate, "rate", 0, "questions per second, whatever the answers do (open loop)")
	f.IntVar(&flags.inFlight, "in-flight", 8, "questions at a time, each after the answer to another (closed loop)")
	f.Uint64Var(&flags.count, "count", 0, "stop after so many questions; this, --duration or both")
	f.DurationVar(&flags.duration, "duration", 0, "stop asking after so long; this, --count or both")
	f.BoolVar(&flags.endless, "endless", false, "ask until a signal, instead of --count or --duration: steady traffic")
	f.StringVar(&flags.confirm, "confirm", "async", "when a publish waits for the broker's confirm: one (each before the next), batch (after every --batch-size), async (never; tracked)")
	f.IntVar(&flags.batchSize, "batch-size", 100, "with --confirm batch: confirms to wait for at a time")
	f.StringSliceVar(&flags.operations, "operations", []string{string(contract.Add)}, "operations to take turns with: "+operationNames())
	flags.register(cmd)
	return cmd
}

// problems lists what is wrong with the flags; given says which were named.
func (f *loadFlags) problems(given func(string) bool) []error {
	errs := f.callFlags.problems()
	bad := func(wrong bool, format string, args ...any) {
		if wrong {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	bounded := given("count") || given("duration")
	bad(!bounded && !f.endless, "--count or --duration: one is required; a load has an end, unless it is --endless")
	bad(bounded && f.endless, "--endless: not with --count or --duration")
	bad(given("count") && f.count == 0, "--count 0: at least 1")
	bad(given("duration") && f.duration <= 0, "--duration %s: more than 0", f.duration)
	bad(given("rate") && given("in-flight"), "--rate and --in-flight: one or the other; an open loop does not wait for answers")
	bad(given("rate") && !(f.rate > 0 && f.rate <= maxRate), "--rate %g: more than 0, at most %g", f.rate, maxRate)
	bad(f.inFlight < 1 || f.inFlight > maxInFlight, "--in-flight %d: 1 to %d", f.inFlight, maxInFlight)
	bad(!slices.Contains([]string{"one", "batch", "async"}, f.confirm), "--confirm %s: want one, batch or async", f.confirm)
	bad(given("batch-size") && f.confirm != "batch", "--batch-size %d: only with --confirm batch", f.batchSize)
	bad(f.batchSize < 1 || f.batchSize > maxBatch, "--batch-size %d: 1 to %d", f.batchSize, maxBatch)
	bad(len(f.operations) == 0, "--operations: empty")
	for _, op := range f.operations {
		bad(!slices.Contains(contract.Operations(), contract.Operation(op)), "--operations %s: unknown; there are %s", op, operationNames())
	}
	return errs
}

const (
	maxRate     = 1e6
	maxInFlight = 100_000 // also bounds what an open loop can pile up
	maxBatch    = 2048    // the session's window: a larger batch could never be written
)

// confirmEvery is --confirm in the words of the session package.
func (f *loadFlags) confirmEvery() int {
	switch f.confirm {
	case "one":
		return 1
	case "batch":
		return f.batchSize
	}
	return 0
}

// load asks and prints. The error is of the settings only; how it went is in
// c.end.
func (c *client) load(ctx context.Context, cfg config, flags loadFlags) error {
	log, err := service.NewLogger(cfg.LogLevel)
	if err != nil {
		return err
	}
	events, registry := cfg.Recorder(c.stdout), prometheus.NewRegistry()

	// 2. Whoever typed a wrong password wants to know at once. Steady traffic is
	// a service: it may come before its user does, and does not end. Not within
	// --timeout: the library calls a handshake that is cut short a refusal.
	if !flags.endless {
		if err := cfg.AMQP.Probe(ctx); refusal(err) {
			err = &rpc.CallError{Err: fmt.Errorf("%w: %w", rpc.ErrUnavailable, err)}
			c.end = endingOf(err)
			_, err = fmt.Fprintln(c.stderr, failureOf(err).explain(""))
			c.written(err)
			events.Record(event.Line{Event: event.EOF})
			c.written(events.Err())
			return nil
		}
	}

	// 3. The session connects by itself, and again whenever the broker was away.
	options := cfg.callerOptions(log, events, registry)
	options.ConfirmEvery, options.NoRetry = flags.confirmEvery(), flags.noRetry
	caller, err := rpc.NewCaller(options)
	if err != nil {
		return err
	}
	l := &load{flags: flags, caller: caller, tally: newTally(c.stderr, registry)}

	// 4. The admin port outlives the signal: the drain is worth watching too.
	admin := service.Admin{Addr: cfg.AdminAddr, Ready: caller.Ready, Registry: registry}
	if cfg.Faults {
		admin.Routes = append(admin.Routes, func(mux *http.ServeMux) {
			mux.HandleFunc("POST /crash", func(http.ResponseWriter, *http.Request) { fault.Die() })
		})
	}
	stopAdmin, err := admin.Serve(context.WithoutCancel(ctx), log)
	if err != nil {
		closeCaller(caller)
		return fmt.Errorf("WARREN_ADMIN_ADDR=%s: %w", cfg.AdminAddr, err)
	}
	defer stopAdmin()

	// 5. Ask until the count, the duration or a signal, then wait for the answers.
	stopProgress := showProgress(c.stderr, l.progress)
	l.run(ctx)
	stopProgress()
	closeCaller(caller)

	// 6. Say how it went.
	s := l.tally.summary(publishes(registry))
	s.Interrupted = ctx.Err() != nil
	if !s.OK {
		c.end = failed
	}
	out := c.stdout
	if events != nil { // standard output is the ledger, and nothing else
		out = c.stderr
	}
	c.written(s.print(out, flags.output))
	events.Record(event.Line{Event: event.EOF})
	c.written(events.Err())
	return nil
}

// refusal says that a broker is there and does not want us. Waiting, which is for
// a broker that is away, does not mend that.
func refusal(err error) bool {
	var answer *amqp.Error
	var stranger *tls.CertificateVerificationError
	var plain tls.RecordHeaderError
	var alert *net.OpError
	return errors.As(err, &answer) && (answer.Code == amqp.AccessRefused || answer.Code == amqp.NotAllowed) ||
		errors.As(err, &stranger) || errors.As(err, &plain) ||
		errors.As(err, &alert) && alert.Op == "remote error" // TLS: it refuses our certificate
}

// load is a load that runs.
type load struct {
	flags  loadFlags
	caller *rpc.Caller
	tally  *tally
	next   atomic.Uint64 // number of the next question, of a closed loop
}

// run returns when the last call has ended. Each call ends by its own
// deadline, so this is bounded.
func (l *load) run(ctx context.Context) {
	// Connecting is not part of anybody's latency. A broker that stays away is:
	// the calls then wait for it themselves.
	ready, cancel := context.WithTimeout(ctx, l.flags.timeout)
	_ = l.caller.WaitReady(ready)
	cancel()

	began := l.tally.begin()
	if l.flags.duration > 0 {
		ctx, cancel = context.WithTimeout(ctx, l.flags.duration)
		defer cancel()
	}
	var calls sync.WaitGroup
	defer calls.Wait()
	if l.flags.rate > 0 {
		l.openLoop(ctx, began, &calls)
		return
	}
	for range l.flags.inFlight {
		calls.Go(func() { l.closedLoop(ctx) })
	}
}

// closedLoop is one caller: the next question after the last answer.
func (l *load) closedLoop(ctx context.Context) {
	for ctx.Err() == nil {
		n := l.next.Add(1) - 1
		if l.flags.count > 0 && n >= l.flags.count {
			return
		}
		if l.ask(ctx, n, time.Now()) {
			continue
		}
		// Some failures take no time. Asking again at once would be a busy loop
		// against a broker that is in trouble already.
		pause(ctx, 50*time.Millisecond)
	}
}

// openLoop asks at fixed instants. Each is reckoned from the start and not
// from the one before, so lateness neither adds up nor thins out the load.
func (l *load) openLoop(ctx context.Context, began time.Time, calls *sync.WaitGroup) {
	room := make(chan struct{}, maxInFlight)
	for n := uint64(0); l.flags.count == 0 || n < l.flags.count; n++ {
		intended := began.Add(time.Duration(float64(n) / l.flags.rate * float64(time.Second)))
		pause(ctx, time.Until(intended))
		select {
		case room <- struct{}{}:
		case <-ctx.Done():
		}
		if ctx.Err() != nil {
			return
		}
		calls.Go(func() {
			l.ask(ctx, n, intended)
			<-room
		})
	}
}

// ask makes one call and counts it; it reports whether the server replied.
func (l *load) ask(ctx context.Context, n uint64, intended time.Time) bool {
	op := contract.Operation(l.flags.operations[n%uint64(len(l.flags.operations))])
	// The operation's own number, or ten operations taking turns would make
	// the tenth divide by zero every time.
	q := newQuestion(op, n/uint64(len(l.flags.operations)))
	call := l.flags.call(newID(), q.request)
	call.WaitForSession = true // a load outlives a broker that is restarted

	// A signal ends the asking, not the calls in flight.
	limited, cancel := context.WithTimeout(context.WithoutCancel(ctx), l.flags.timeout)
	defer cancel()
	l.tally.sent()
	reply, err := l.caller.Call(limited, call)
	return l.tally.ended(call.ID, q, reply, err, time.Since(intended))
}

// progress is how far the load is, from 0 to 1, and a line about it.
func (l *load) progress() (part float64, line string) {
	s, passed := l.tally.summary(0), l.tally.passed()
	replied, failed := s.Answered+sum(s.Refused), sum(s.Failed)
	if l.flags.count > 0 {
		part = float64(replied+failed) / float64(l.flags.count)
	}
	if l.flags.duration > 0 {
		part = max(part, float64(passed)/float64(l.flags.duration))
	}
	line = fmt.Sprintf("%d sent, %d replied, %d failed, %d in flight", s.Sent, replied, failed, s.Sent-replied-failed)
	if passed > 0 {
		line += fmt.Sprintf(", %.0f/s", float64(replied)/passed.Seconds())
	}
	if why := l.caller.Ready(); why != nil {
		line += ", waiting: " + strings.ReplaceAll(why.Error(), "\n", "; ")
	}
	return min(part, 1), line
}

// pause waits, or returns early when ctx ends.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
