// Command lab starts the suite on this machine or on Kubernetes, breaks it on
// purpose, and judges from a ledger of every request what was lost, answered twice or kept.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"warren.example/messaging/service"
)

// Exit statuses.
const (
	exitHeld         = 0
	exitBroken       = 1
	exitInconclusive = 2
	exitSetup        = 3  // could not be set up, or was interrupted
	exitUsage        = 64 // EX_USAGE of sysexits.h
)

func main() {
	// SIGHUP too: a closed terminal must not leave a broker behind.
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := rootCommand().ExecuteContext(ctx)
	if text := oneLine(err); text != "" {
		fmt.Fprintln(os.Stderr, "lab: "+text)
	}
	os.Exit(exitStatus(err))
}

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:     "lab",
		Version: service.Version(),
		Short:   "Break RabbitMQ and the services on purpose, and judge what became of every request",
		Long: `Break RabbitMQ and the services on purpose, and judge what became of every request.

Exit status: 0 held, 1 broken, 2 inconclusive, 3 could not be set up, 64 usage.`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cmd.Help()
			}
			return usageError("%s: unknown command; lab --help lists them", args[0])
		},
	}
	root.AddCommand(
		demoCommand(), listCommand(), runCommand(), explainCommand(), // scenarios and their ledger
		soakCommand(), replayCommand(),
		upCommand(), downCommand(), // something to play with
		brokerCommand(), topologyCommand(), doctorCommand(), // tools
		checkCommand(), waitCommand(), linkCommand(), // for pods
	)
	refuseAsUsage(root)
	return root
}

// refuseAsUsage gives wrong flags and arguments their exit status.
func refuseAsUsage(cmd *cobra.Command) {
	cmd.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError("%v", err) })
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError("%s: %v", cmd.CommandPath(), err)
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		refuseAsUsage(sub)
	}
}

// exitError is an error with an exit status of its own. Without err there is
// nothing left to say.
type exitError struct {
	status int
	err    error
}

func (e *exitError) Error() string {
	if e.err == nil {
		return ""
	}
	return e.err.Error()
}

func (e *exitError) Unwrap() error { return e.err }

// setupError of nil is nil.
func setupError(err error) error {
	if err == nil {
		return nil
	}
	return &exitError{exitSetup, err}
}

func usageError(format string, a ...any) error {
	return &exitError{exitUsage, fmt.Errorf(format, a...)}
}

func exitStatus(err error) int {
	var e *exitError
	switch {
	case err == nil:
		return exitHeld
	case errors.As(err, &e):
		return e.status
	default:
		return exitSetup
	}
}

// oneLine is what the user reads of an error.
func oneLine(err error) string {
	switch {
	case err == nil:
		return ""
	case errors.Is(err, context.Canceled):
		return "interrupted"
	}
	return strings.ReplaceAll(strings.TrimSpace(err.Error()), "\n", "; ")
}
