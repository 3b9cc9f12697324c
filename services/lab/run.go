package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"golang.org/x/sync/errgroup"

	"warren.example/lab/report"
	"warren.example/lab/scenario"
	"warren.example/messaging/event"
)

func runCommand() *cobra.Command {
	var all bool
	var output string
	var count, parallel int
	cmd := &cobra.Command{
		Use:   "run NAME… | --all",
		Short: "Break something on purpose and judge what became of every request",
		Long: `Break something on purpose and judge what became of every request.

Each scenario runs in a virtual host of its own, then again with one safety
taken away: that control must fail, or the fault has proved nothing. 'lab list'
shows the names. The ledger of the run is kept for 'lab explain ID'.

Exit status: 0 all HELD (or SKIPPED), 1 something BROKEN, 2 something
INCONCLUSIVE, 3 could not be set up (with CI=true also: everything SKIPPED),
64 usage.`,
		Example: `  lab run killed-before-ack
  lab run --all --output junit > report.xml
  lab run poison --count 10 --keep
  lab run --all --parallel 2
  lab run --all --on kind`,
		ValidArgsFunction: func(_ *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
			return scenarioNames(), cobra.ShellCompDirectiveNoFileComp
		},
	}
	where := placeFlags(cmd)
	flags := cmd.Flags()
	flags.BoolVar(&all, "all", false, "run every scenario")
	flags.StringVar(&output, "output", "table", "table, json or junit, on standard output; progress goes to standard error")
	flags.IntVar(&count, "count", 1, "run the scenarios that often, one round after the other")
	flags.IntVar(&parallel, "parallel", 1, "so many scenarios at once, each in its own virtual host; what breaks the broker or a machine for all comes after them, alone")
	cmd.RunE = func(cmd *cobra.Command, names []string) error {
		// 1. Refuse what cannot work before anything is started.
		chosen, err := choose(names, all)
		if err != nil {
			return err
		}
		if !slices.Contains([]string{"table", "json", "junit"}, output) {
			return usageError("--output %s: want table, json or junit", output)
		}
		if count < 1 {
			return usageError("--count %d: at least 1", count)
		}
		if parallel < 1 {
			return usageError("--parallel %d: at least 1", parallel)
		}
		if parallel > 1 && where.local.AMQPURL != "" && where.local.ManagementURL == "" {
			return usageError("--parallel %d: needs --management-url, without which there is one virtual host", parallel)
		}
		// 2. Break and judge.
		live := report.NewLive(cmd.ErrOrStderr())
		results, err := play(cmd.Context(), where, slices.Repeat(chosen, count), parallel, live, nil)
		if results == nil {
			return err
		}
		// 3. Say what it came to, also if something was left behind.
		return errors.Join(conclude(cmd, output, results), err)
	}
	return cmd
}

func scenarioNames() []string {
	var names []string
	for _, s := range scenario.All() {
		names = append(names, s.Name)
	}
	return names
}

func choose(names []string, all bool) ([]scenario.Scenario, error) {
	switch {
	case all && len(names) > 0:
		return nil, usageError("--all and %s: one or the other", strings.Join(names, " "))
	case all:
		return scenario.All(), nil
	case len(names) == 0:
		return nil, usageError("no scenario; name some, or --all; there are %s", strings.Join(scenarioNames(), ", "))
	}
	chosen, err := scenario.Find(names...)
	if err != nil {
		return nil, usageError("%v", err)
	}
	return chosen, nil
}

// play runs scenarios on a substrate of their own and leaves nothing behind,
// whatever happens. Before, if not nil, is told what comes next.
func play(ctx context.Context, where *place, chosen []scenario.Scenario, parallel int, live *report.Live, before func(i int, s scenario.Scenario)) (results []scenario.Result, err error) {
	defer live.Clear()
	sub, err := where.open(ctx, func(step string) { live.Step("set-up", step, "") }, forRooms...)
	if err != nil {
		return nil, setupError(err)
	}
	defer func() { err = errors.Join(err, sub.close(ctx)) }()
	record, closeLedger, why := keepLedger()
	if why != nil {
		live.Say("the ledger of this run is not kept for 'lab explain': " + why.Error())
	}
	defer func() { err = errors.Join(err, closeLedger()) }()

	var collecting sync.Mutex
	runner := scenario.Runner{Substrate: sub.Substrate, Record: record, Tell: live.Step, Failed: func(ctx context.Context) {
		collecting.Lock()
		defer collecting.Unlock()
		if err := sub.failed(ctx); err != nil { // the verdict does not rest on them
			live.Say(err.Error())
		}
	}}
	results = make([]scenario.Result, len(chosen))
	one := func(i int) {
		if ctx.Err() != nil {
			return
		}
		if before != nil {
			before(i, chosen[i])
		}
		if results[i] = runner.Run(ctx, chosen[i]); ctx.Err() == nil {
			live.Done(results[i])
		}
	}
	inTurn(chosen, parallel, one)
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return results, nil
}

// inTurn calls one for the index of every scenario, so many at once. What is
// Alone comes after the others, if there are any beside it.
func inTurn(chosen []scenario.Scenario, parallel int, one func(i int)) {
	var together errgroup.Group
	together.SetLimit(parallel)
	for i, s := range chosen {
		if parallel > 1 && !s.Alone {
			together.Go(func() error { one(i); return nil })
		}
	}
	_ = together.Wait()
	for i, s := range chosen {
		if parallel == 1 || s.Alone {
			one(i)
		}
	}
}

// conclude prints the results and makes the exit status of them.
func conclude(cmd *cobra.Command, output string, results []scenario.Result) error {
	var err error
	switch out := cmd.OutOrStdout(); output {
	case "json":
		err = report.JSON(out, results)
	case "junit":
		err = report.JUnit(out, results)
	default:
		fmt.Fprintln(out)
		report.Table(out, results)
	}
	if err != nil {
		return fmt.Errorf("print results: %w", err)
	}
	report.Details(cmd.ErrOrStderr(), results, func(name string) string { return again(cmd, name) })
	if status := report.Status(results, os.Getenv("CI") == "true"); status != exitHeld {
		return &exitError{status: status}
	}
	return nil
}

// again is the command that runs one scenario again and leaves the logs. What
// may hold a password is left for the user to fill in.
func again(cmd *cobra.Command, name string) string {
	program := os.Args[0]
	if strings.Contains(program, "go-build") {
		program = "go run ./services/lab"
	}
	words := []string{program, "run", name, "--keep"}
	cmd.Flags().Visit(func(f *pflag.Flag) {
		switch f.Name {
		case "all", "count", "output", "keep":
		case "amqp-url", "management-url":
			words = append(words, "--"+f.Name+" …")
		case "values":
			words = append(words, "--values …")
		default:
			words = append(words, "--"+f.Name+"="+f.Value.String())
		}
	})
	return strings.Join(words, " ")
}

// ledgerFile is where the lines of the last run are kept.
func ledgerFile() (string, error) {
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "warren", "last-run.jsonl"), err
}

// keepLedger begins the file of this run. Take is nil if there is none, and
// why says so; closing it is safe all the same.
func keepLedger() (take func(event.Line), closed func() error, why error) {
	closed = func() error { return nil }
	path, err := ledgerFile()
	if err != nil {
		return nil, closed, err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, closed, err
	}
	// Two runs at once must not write into each other's: the last to end is the last run.
	f, err := os.CreateTemp(filepath.Dir(path), "run-*.jsonl")
	if err != nil {
		return nil, closed, err
	}
	return recordTo(f), func() error { return errors.Join(f.Close(), os.Rename(f.Name(), path)) }, nil
}

func recordTo(w io.Writer) func(event.Line) {
	enc := json.NewEncoder(w)
	var mu sync.Mutex // scenarios may run at once
	return func(line event.Line) {
		mu.Lock()
		defer mu.Unlock()
		_ = enc.Encode(line) // the verdict does not rest on the file
	}
}
