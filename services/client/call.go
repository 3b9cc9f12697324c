package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"go.uber.org/zap"

	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/rpc"
	"warren.example/messaging/service"
)

// callFlags are the flags of one call; a load has them for each of its calls.
type callFlags struct {
	timeout     time.Duration
	ifNoServer  string
	output      string
	noMandatory bool
	noExpiry    bool
	noRetry     bool
}

func (f *callFlags) register(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.DurationVar(&f.timeout, "timeout", 10*time.Second, "longest wait for an answer, of everything together")
	flags.StringVar(&f.ifNoServer, "if-no-server", "wait", "wait: the request stays in the queue until --timeout; fail: ask first, and fail at once")
	flags.StringVar(&f.output, "output", "text", "text or json")
	for _, l := range lessons {
		flags.BoolVar(l.flag(f), l.name, false, l.teaches)
		_ = flags.MarkHidden(l.name)
	}
}

// A lesson is a flag that takes one safety away, to show what it was for.
type lesson struct {
	name, teaches string
	flag          func(*callFlags) *bool
}

var lessons = []lesson{
	{"no-mandatory", "the broker drops a request that no queue takes, and says nothing: the call learns of it by its deadline only",
		func(f *callFlags) *bool { return &f.noMandatory }},
	{"no-expiration", "the request outlives its deadline in the queue, and a server that does not check runs it late",
		func(f *callFlags) *bool { return &f.noExpiry }},
	{"no-retry", "a request whose fate is unknown is not published again: the call ends as unknown",
		func(f *callFlags) *bool { return &f.noRetry }},
}

func lessonsHelp() string {
	var b strings.Builder
	b.WriteString("Lessons (flags that each take one safety away; never use them for work):\n")
	for _, l := range lessons {
		fmt.Fprintf(&b, "  --%s\n      %s\n", l.name, l.teaches)
	}
	return b.String()
}

// problems lists what is wrong with the flags.
func (f *callFlags) problems() []error {
	var errs []error
	if f.timeout < time.Millisecond {
		errs = append(errs, fmt.Errorf("--timeout %s: at least 1ms, the broker's unit", f.timeout))
	}
	if f.ifNoServer != "wait" && f.ifNoServer != "fail" {
		errs = append(errs, fmt.Errorf("--if-no-server %s: want wait or fail", f.ifNoServer))
	}
	if f.output != "text" && f.output != "json" {
		errs = append(errs, fmt.Errorf("--output %s: want text or json", f.output))
	}
	return errs
}

// call is what the flags say about a call of the rpc package.
func (f *callFlags) call(id string, r contract.Request) rpc.Call {
	return rpc.Call{
		ID: id, Request: r,
		FailIfNoServer: f.ifNoServer == "fail",
		NoMandatory:    f.noMandatory,
		NoExpiration:   f.noExpiry,
	}
}

func (c *client) callCommand() *cobra.Command {
	var flags callFlags
	var id string
	cmd := &cobra.Command{
		Use:   "call [flags] OPERATION [OPERANDS...]",
		Short: "Ask one question and print the result",
		Long: `Ask one question and print the result.

Flags stand before the operation; what follows it is an operand, so negative
numbers need no quoting. Operations: ` + operationNames() + `.

The result is printed on standard output. A failure is one line on standard
error: what happened, whether the request may have been executed, and what to
do next. With --output json either is one JSON object on standard output.

If the environment has a TRACEPARENT, as tracing tools set it for commands, the
request carries it on, and whoever logs about the request names its trace_id.

` + lessonsHelp() + "\n" + statusHelp(),
		Example: `  client call add 0.1 0.2
  client call --timeout 2s --if-no-server fail subtract 1 -5
  client call --id order-4711 memory-add 10   # may be repeated: it is added once`,
		Args: cobra.ArbitraryArgs, // checked below, with the contract's own words
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return strings.Split(operationNames(), ", "), cobra.ShellCompDirectiveNoFileComp
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			// 1. Refuse what cannot work before touching the network.
			request, err := parseRequest(args)
			if err = errors.Join(append(flags.problems(), checkID(id, cmd.Flags().Changed("id")), err)...); err != nil {
				return err
			}
			cfg, err := loadConfig()
			if err != nil {
				return err
			}
			var trace contract.Traceparent
			if given := os.Getenv("TRACEPARENT"); given != "" {
				if trace, err = contract.ParseTraceparent(given); err != nil {
					return fmt.Errorf("TRACEPARENT: %w", err)
				}
			}
			// 2. An id of our own choice, so that a failure can name it.
			if id == "" {
				id = newID()
			}
			question := flags.call(id, request)
			question.Trace = trace
			return c.call(cmd.Context(), cfg, flags, question)
		},
	}
	// Without this "-5" would be read as a flag. The price is that flags after
	// the operation are operands too; parseRequest says so.
	cmd.Flags().SetInterspersed(false)
	flags.register(cmd)
	cmd.Flags().StringVar(&id, "id", "", fmt.Sprintf("message id, also the idempotency key: the same call under the same id is executed once (default: a new UUIDv7; at most %d characters)", contract.MaxID))
	return cmd
}

// call asks and prints. The error is of the settings only; how the call ended
// is in c.end.
func (c *client) call(ctx context.Context, cfg config, flags callFlags, question rpc.Call) error {
	log := zap.NewNop() // one line on failure, and nothing around it
	if cfg.LogLevel == "debug" {
		var err error
		if log, err = service.NewLogger(cfg.LogLevel); err != nil {
			return err
		}
	}
	events, registry := cfg.Recorder(c.stdout), prometheus.NewRegistry()
	options := cfg.callerOptions(log, events, registry)
	options.NoRetry = flags.noRetry

	began := time.Now()
	limited, cancel := context.WithTimeout(ctx, flags.timeout)
	defer cancel()
	reply, hangUp, err := ask(limited, options, question)
	p := printed{Request: question.ID, Milliseconds: float64(time.Since(began).Microseconds()) / 1000}
	if call := (*rpc.CallError)(nil); errors.As(err, &call) {
		p.Attempts = call.Attempts
		if ctx.Err() != nil {
			call.Err = errInterrupted // the rest is its consequence
		}
	} else if flags.output == "json" {
		hangUp() // the reply overtakes the confirm, and the last attempt is counted by that
		p.Attempts = publishes(registry)
	}
	c.end = endingOf(err)
	c.written(c.printCall(flags.output, p, reply, err))
	hangUp() // it may take a while, which is nobody's wait for an answer
	events.Record(event.Line{Event: event.EOF})
	c.written(events.Err())
	return nil
}

// ask makes one call on a session of its own, which hangUp ends.
func ask(ctx context.Context, options rpc.CallerOptions, call rpc.Call) (reply contract.Reply, hangUp func(), err error) {
	hangUp = func() {}
	unavailable := func(err error) (contract.Reply, func(), error) {
		return reply, hangUp, &rpc.CallError{Request: call.ID, Err: fmt.Errorf("%w: %w", rpc.ErrUnavailable, err)}
	}
	// A session waits for its broker for ever. Whoever types a command wants to
	// know at once that there is none, or that the password is wrong.
	if err := options.Session.Config.Probe(ctx); err != nil {
		return unavailable(err)
	}
	caller, err := rpc.NewCaller(options)
	if err != nil {
		return reply, hangUp, err
	}
	hangUp = func() { closeCaller(caller) }
	if err := caller.WaitReady(ctx); err != nil {
		return unavailable(err)
	}
	reply, err = caller.Call(ctx, call)
	return reply, hangUp, err
}

// closeCaller is for when every call has ended: nothing is lost with the
// connections, so an error changes nothing.
func closeCaller(caller *rpc.Caller) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_ = caller.Close(ctx)
}

// printed is a call as JSON: a result or an error, never both.
type printed struct {
	Request         string          `json:"request"`
	Result          *string         `json:"result,omitempty"`
	Error           *contract.Error `json:"error,omitempty"`
	Outcome         string          `json:"outcome"`
	MayHaveExecuted bool            `json:"mayHaveExecuted"`
	Attempts        int             `json:"attempts"`
	Milliseconds    float64         `json:"milliseconds"`
}

func (c *client) printCall(output string, p printed, reply contract.Reply, err error) error {
	f := failure{end: answered, mayHaveExecuted: true}
	if err != nil {
		f = failureOf(err)
	}
	switch {
	case output == "json":
		p.Outcome, p.MayHaveExecuted = f.end.Name, f.mayHaveExecuted
		if err != nil {
			p.Error = &f.cause
		} else {
			p.Result = &reply.Result
		}
		return json.NewEncoder(c.stdout).Encode(p)
	case err != nil:
		_, werr := fmt.Fprintln(c.stderr, f.explain(p.Request))
		return werr
	default:
		_, werr := fmt.Fprintln(c.stdout, reply.Result)
		return werr
	}
}

// parseRequest reads OPERATION [OPERANDS...] and refuses what no server would
// read. Whether an operand is a number is the server's to say: two parsers
// would disagree one day.
func parseRequest(args []string) (contract.Request, error) {
	if len(args) == 0 {
		return contract.Request{}, fmt.Errorf("no operation; there are %s", operationNames())
	}
	r := contract.Request{Operation: contract.Operation(args[0]), Operands: args[1:]}
	if len(r.Operands) > 0 && r.Operands[0] == "--" { // "call add -- -1 2": the habit of other commands
		r.Operands = r.Operands[1:]
	}
	for _, o := range r.Operands {
		if strings.HasPrefix(o, "--") {
			return r, fmt.Errorf("%s: a flag among the operands; flags stand before the operation", o)
		}
	}
	if e := (*contract.Error)(nil); errors.As(r.Operation.Check(len(r.Operands)), &e) {
		return r, errors.New(e.Message)
	}
	for i, o := range r.Operands {
		switch {
		case !utf8.ValidString(o):
			return r, fmt.Errorf("operand %d: not UTF-8", i+1)
		case utf8.RuneCountInString(o) > contract.MaxOperandLength:
			return r, fmt.Errorf("operand %d: %d characters, at most %d", i+1, utf8.RuneCountInString(o), contract.MaxOperandLength)
		}
	}
	if n := len(contract.Encode(r)); n > contract.MaxBody {
		return r, fmt.Errorf("operands: %d bytes in all, at most %d", n, contract.MaxBody)
	}
	return r, nil
}

func checkID(id string, given bool) error {
	if given && (id == "" || len(id) > contract.MaxID || !utf8.ValidString(id)) {
		return fmt.Errorf("--id %q: want 1 to %d bytes of UTF-8", id, contract.MaxID)
	}
	return nil
}

// newID is a UUIDv7: unique, and sortable by time in a database of keys.
func newID() string { return uuid.Must(uuid.NewV7()).String() }

func operationNames() string {
	var names []string
	for _, op := range contract.Operations() {
		names = append(names, string(op))
	}
	return strings.Join(names, ", ")
}
