package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"warren.example/lab/substrate"
	"warren.example/lab/substrate/local"
	"warren.example/messaging/topology"
)

func brokerCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "broker [flags] -- COMMAND [ARG…]",
		Short: "Run a command with a private broker",
		Long: `Run a command with a private broker, and pass its exit status on.

The command finds in its environment:

  AMQP_URL                  every right in a virtual host with the topology
  AMQP_URL_TOPOLOGY, AMQP_URL_CALC_SERVER, AMQP_URL_CALC_CLIENT,
  AMQP_URL_DLQ_AUDITOR, AMQP_URL_MONITOR
                            the same virtual host as each of the suite's users
  AMQP_MANAGEMENT_URL       the management API, as an administrator
  LAB_BROKER                process, container or url
  LAB_BROKER_PID            of the Erlang VM of node 0
  LAB_BROKER_CONTROL        POST /crash, /start, /pause, /resume (?node=N, default
                            0), answered when done, with the VM's pid; POST /ctl
                            with rabbitmqctl's arguments as a JSON array`,
		Example: `  lab broker -- go test -tags integration ./...
  lab broker --nodes 3 -- sh -c 'echo "$AMQP_URL"'`,
	}
	cmd.Flags().SetInterspersed(false) // what follows the command is the command's
	cmd.Args = cobra.MinimumNArgs(1)
	options := localFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		if _, err := exec.LookPath(args[0]); err != nil {
			return setupError(err)
		}
		options.Progress = func(step string) { fmt.Fprintln(cmd.ErrOrStderr(), "lab broker: "+step) }
		return withBroker(cmd.Context(), *options, func(s *local.Substrate, r substrate.Room) error {
			control, stop, err := serveControl(s.Broker())
			if err != nil {
				return setupError(err)
			}
			defer stop()
			return passThrough(cmd.Context(), args, append(environment(s, r), "LAB_BROKER_CONTROL="+control))
		})
	}
	return cmd
}

// withBroker gives f a broker with one room, and takes both away after it.
func withBroker(ctx context.Context, o local.Options, f func(*local.Substrate, substrate.Room) error) (err error) {
	s, err := local.New(ctx, o)
	if err != nil {
		return setupError(err)
	}
	defer func() {
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if why := s.Close(closing); why != nil && err == nil {
			err = setupError(fmt.Errorf("clean up: %w", why))
		}
	}()
	r, err := s.Open(ctx, "broker", nil, nil)
	if err != nil {
		return setupError(err)
	}
	return f(s, r)
}

func environment(s *local.Substrate, r substrate.Room) []string {
	env := []string{"AMQP_URL=" + r.AdminURL(), "LAB_BROKER=url"}
	if url := s.ManagementURL(); url != "" {
		env = append(env, "AMQP_MANAGEMENT_URL="+url)
	}
	for _, u := range topology.Users() {
		name := strings.ToUpper(strings.ReplaceAll(u.Name, "-", "_"))
		env = append(env, "AMQP_URL_"+name+"="+r.URL(u.Name))
	}
	if b, ours := s.Broker().(*local.Broker); ours {
		env = append(env, "LAB_BROKER="+b.Kind(), "LAB_BROKER_PID="+strconv.Itoa(b.PID(0)))
	}
	return env
}

// passThrough runs a command on our terminal and takes over its exit status.
func passThrough(ctx context.Context, args, env []string) error {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	// The terminal's Ctrl-C reaches the command as well as us; it ends by itself
	// and we wait, since it still uses the broker.
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 15 * time.Second
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &exit):
		status := exit.ExitCode()
		if ws, ok := exit.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			status = 128 + int(ws.Signal()) // as a shell says it
		}
		return &exitError{status: status}
	default:
		return setupError(fmt.Errorf("run %s: %w", args[0], err))
	}
}

// serveControl lets the command crash and pause the broker that it uses.
func serveControl(b substrate.Broker) (url string, stop func(), err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, fmt.Errorf("control server: %w", err)
	}
	srv := &http.Server{Handler: control(b), ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = srv.Serve(l) }()
	return "http://" + l.Addr().String(), func() { _ = srv.Close() }, nil
}

func control(b substrate.Broker) http.Handler {
	mux := http.NewServeMux()
	handle := func(path string, act func(ctx context.Context, node int, body io.Reader) ([]byte, error)) {
		mux.HandleFunc("POST "+path, func(w http.ResponseWriter, r *http.Request) {
			node := 0
			if s := r.URL.Query().Get("node"); s != "" {
				n, err := strconv.Atoi(s)
				if err != nil {
					http.Error(w, fmt.Sprintf("node %q: not a number", s), http.StatusBadRequest)
					return
				}
				node = n
			}
			out, err := act(r.Context(), node, r.Body)
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			_, _ = w.Write(out)
		})
	}
	for path, act := range map[string]func(context.Context, int) error{
		"/crash": b.Crash, "/start": b.Start, "/pause": b.Pause, "/resume": b.Resume,
	} {
		handle(path, func(ctx context.Context, node int, _ io.Reader) ([]byte, error) {
			if err := act(ctx, node); err != nil {
				return nil, err
			}
			if own, ok := b.(*local.Broker); ok {
				return fmt.Appendln(nil, own.PID(node)), nil
			}
			return nil, nil
		})
	}
	handle("/ctl", func(ctx context.Context, node int, body io.Reader) ([]byte, error) {
		var args []string
		if err := json.NewDecoder(body).Decode(&args); err != nil {
			return nil, fmt.Errorf("body: want rabbitmqctl's arguments as a JSON array of strings: %w", err)
		}
		return b.Command(ctx, node, args...)
	})
	return mux
}
