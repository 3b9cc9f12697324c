// Command client asks the calculator: one request with "client call", many
// with "client load".
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"warren.example/messaging/service"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	// The first signal asks us to finish. From then on a signal does what it
	// does to any process, so the second one ends us at once.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is the whole command; it returns the exit status. Settings come from
// the environment of the process.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	c := &client{stdout: stdout, stderr: stderr, end: answered}
	root := &cobra.Command{
		Use:           "client",
		Version:       service.Version(),
		Short:         "Ask the calculator over RabbitMQ",
		Long:          "Ask the calculator over RabbitMQ.\n\n" + settingsHelp() + "\n" + statusHelp(),
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	root.AddCommand(c.callCommand(), c.loadCommand())
	// What a command hands back is always the user's mistake, found before
	// anything was sent. How it went after that is c.end.
	if cmd, err := root.ExecuteContextC(ctx); err != nil {
		for _, problem := range strings.Split(err.Error(), "\n") {
			fmt.Fprintf(stderr, "%s: %s\n", cmd.CommandPath(), problem)
		}
		fmt.Fprintf(stderr, "%s --help says more\n", cmd.CommandPath())
		return usage.Status
	}
	return c.end.Status
}

// client is one invocation.
type client struct {
	stdout, stderr io.Writer
	end            ending
}

// written notes whether the output was written; a result that reaches nobody
// is a failure, whatever the call's own ending.
func (c *client) written(err error) {
	if err != nil {
		fmt.Fprintf(c.stderr, "client: write output: %v\n", err)
		c.end = failed
	}
}
