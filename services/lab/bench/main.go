// Command bench measures request/reply over RabbitMQ: our rpc package beside a
// tutorial and beside amqp091-go used directly, unsafe and safe. Run it with
// scripts/bench, which brings a broker of its own.
//
// Client, server and broker are separate processes, so that CPU and memory are
// counted apart. Rounds are interleaved (every contender once per round, in
// rotated order) and ratios are formed within a round: on a shared machine
// only those mean anything.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Exit statuses.
const (
	exitMissed = 1 // --check, and a target is missed
	exitSetUp  = 3 // a cell could not be measured
	exitUsage  = 64
)

var errUsage = errors.New("usage")

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	code, err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	switch {
	case err == nil, errors.Is(err, flag.ErrHelp):
		code = 0
	case err != errUsage:
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) (int, error) {
	o, err := parse(args, stderr)
	if err != nil {
		return exitUsage, err
	}
	b, err := brokerFromEnv()
	if err != nil {
		return exitSetUp, err
	}
	if part := os.Getenv(childEnv); part != "" {
		return exitSetUp, playPart(ctx, b, part)
	}
	samples, err := measure(ctx, b, o, stderr)
	if err != nil {
		return exitSetUp, err
	}
	r := summarise(samples, o)
	if err := r.write(stdout, o.output); err != nil {
		return exitSetUp, err
	}
	if o.check && !r.held() {
		return exitMissed, errors.New("a target is missed")
	}
	return 0, nil
}

type options struct {
	contenders []string
	inFlight   []int
	rounds     int
	output     string
	check      bool
	cell       cell // Window, Warmup and Profile, the same for all
}

func parse(args []string, stderr io.Writer) (options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.SetOutput(stderr)
	f.Usage = func() {
		fmt.Fprint(stderr, "usage: scripts/bench [--broker 3.10|4.3] [flags]\n\nContenders:\n")
		for _, c := range contenders {
			fmt.Fprintf(stderr, "  %-16s %s\n", c.Name, c.What)
		}
		fmt.Fprint(stderr, "\nFlags:\n")
		f.PrintDefaults()
	}
	names := f.String("contenders", strings.Join(contenderNames(), ","), "which to run")
	levels := f.String("in-flight", "1,8,64,256,1024", "calls in flight")
	f.IntVar(&o.rounds, "rounds", 5, "interleaved rounds")
	f.StringVar(&o.output, "output", "table", "table or json")
	f.BoolVar(&o.check, "check", false, "exit 1 if a target is missed")
	f.DurationVar(&o.cell.Window, "window", time.Second, "measured time of a cell")
	f.DurationVar(&o.cell.Warmup, "warmup", 300*time.Millisecond, "time before it")
	f.StringVar(&o.cell.Profile, "profile", "", "folder for CPU and allocation profiles of clients and servers")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return o, err
		}
		return o, errUsage // its cause has been printed
	}
	usage := func(format string, a ...any) (options, error) {
		return o, fmt.Errorf("%w: "+format, append([]any{errUsage}, a...)...)
	}
	if f.NArg() > 0 {
		return usage("unexpected argument %q", f.Arg(0))
	}
	if o.output != "table" && o.output != "json" {
		return usage("--output %s: want table or json", o.output)
	}
	if o.rounds < 1 || o.cell.Window <= 0 || o.cell.Warmup < 0 {
		return usage("--rounds and --window must be more than 0, --warmup not less")
	}
	o.contenders = strings.Split(*names, ",")
	for _, n := range o.contenders {
		if _, err := contenderByName(n); err != nil {
			return usage("--contenders: %s", err)
		}
	}
	for _, s := range strings.Split(*levels, ",") {
		n, err := strconv.Atoi(s)
		if err != nil || n < 1 || n > prefetch {
			return usage("--in-flight %s: want numbers from 1 to %d", s, prefetch)
		}
		o.inFlight = append(o.inFlight, n)
	}
	return o, nil
}
