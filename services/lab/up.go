package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"warren.example/lab/cluster"
	"warren.example/lab/substrate"
	"warren.example/lab/substrate/local"
	"warren.example/messaging/contract"
)

func upCommand() *cobra.Command {
	var detach bool
	var servers int
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a broker, servers and an auditor to play with, until Ctrl-C",
		Long: `Start a broker, servers and an auditor to play with, until Ctrl-C.

On Kubernetes the chart is installed, with a client that asks all the time.`,
		Args: cobra.NoArgs,
	}
	cmd.Flags().BoolVar(&detach, "detach", false, "go to the background when all is ready; lab down ends it")
	cmd.Flags().IntVar(&servers, "servers", 2, "calculator servers")
	where := placeFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		switch {
		case servers < 1 || servers > 20:
			return usageError("--servers %d: want 1 to 20", servers)
		case where.on != "local":
			return upRelease(cmd.Context(), cmd.OutOrStdout(), where, servers, detach)
		case detach:
			return upDetached(cmd.Context(), cmd.OutOrStdout())
		}
		return up(cmd.Context(), cmd.OutOrStdout(), where.local, servers)
	}
	return cmd
}

// upRelease installs the chart in a cluster, says how to use it, and waits for
// the user to end it. Detached, it leaves it there.
func upRelease(ctx context.Context, out io.Writer, where *place, servers int, detach bool) error {
	o := where.cluster
	o.Keep, o.Export, o.Test = o.Keep || detach, where.on == "kind", true
	o.Progress = func(step string) { fmt.Fprintf(out, "            %s\n", step) }
	o.Values = append([]string{fmt.Sprintf("server.replicas=%d", servers)}, o.Values...)
	c, err := cluster.Up(ctx, o)
	if err != nil {
		return setupError(err)
	}
	kubectl, down := howToReach(where, c.Namespace)
	fmt.Fprintf(out, "\nWatch it:\n\n  %s logs --follow --selector app.kubernetes.io/part-of=warren --prefix\n\n", kubectl)
	fmt.Fprintf(out, "Kill something:\n\n  %s delete pod --selector app.kubernetes.io/component=calculator-server\n\n", kubectl)
	if detach {
		fmt.Fprintf(out, "%s ends it.\n", down)
		return setupError(c.Close(ctx))
	}
	fmt.Fprintln(out, "Ctrl-C here ends it and leaves nothing behind.")
	<-ctx.Done()
	fmt.Fprintln(out, "down        taking away what was installed")
	return setupError(c.Close(ctx))
}

// howToReach is kubectl for the cluster, and the command that ends what is in it.
func howToReach(where *place, namespace string) (kubectl, down string) {
	o := where.cluster
	down = "lab down --on " + where.on
	if o.Name != "" {
		down += " --name " + o.Name
	}
	kubectl = "kubectl --context " + cmp.Or(o.Context, "kind-"+cmp.Or(o.Name, "warren"))
	if o.Kubeconfig != "" {
		kubectl += " --kubeconfig " + o.Kubeconfig
	}
	return kubectl + " --namespace " + namespace, down
}

// up starts everything, says how to use it, and waits for the user to end it.
func up(ctx context.Context, out io.Writer, o local.Options, servers int) (err error) {
	o.Progress = func(step string) { fmt.Fprintf(out, "            %s\n", step) }
	var s *local.Substrate
	defer func() {
		if s == nil {
			return
		}
		fmt.Fprintln(out, "down        ending services and broker")
		closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		if why := s.Close(closing); why != nil {
			err = setupError(errors.Join(err, why))
		}
	}()
	var room substrate.Room
	var auditor *local.Process
	steps := []step{
		{"broker", "the broker to answer", func() error {
			s, err = local.New(ctx, o)
			return err
		}},
		{"topology", "users, permissions and queues", func() error {
			ledger, err := os.OpenFile(s.Folder()+"/ledger.jsonl", os.O_CREATE|os.O_WRONLY, 0o600)
			if err != nil {
				return err
			}
			room, err = s.Open(ctx, "up", nil, recordTo(ledger))
			return err
		}},
		{"servers", fmt.Sprintf("%d calculator-server to consume", servers), func() error {
			return startAll(ctx, room, servers)
		}},
		{"auditor", "dead-letter-auditor to consume", func() error {
			p, err := startReady(ctx, room, substrate.Service{Kind: substrate.DeadLetterAuditor, Name: "auditor", Restart: true})
			auditor, _ = p.(*local.Process)
			return err
		}},
		{"call", "a first call, 0.1 + 0.2, to be answered", func() error { return firstCall(ctx, room) }},
	}
	for _, step := range steps {
		if err := step.run(out); err != nil {
			return setupError(err)
		}
	}
	text, err := howTo(ctx, s, room, auditor)
	if err != nil {
		return setupError(err)
	}
	if err := s.Announce(text); err != nil {
		return setupError(err)
	}
	fmt.Fprint(out, "\n", text, "\n")
	<-ctx.Done()
	return nil
}

// step is a part of up: what it is called and what it waits for.
type step struct {
	name, waits string
	do          func() error
}

func (s step) run(out io.Writer) error {
	began := time.Now()
	fmt.Fprintf(out, "%-11s waits for %s\n", s.name, s.waits)
	if err := s.do(); err != nil {
		return fmt.Errorf("%s: %w", s.name, err)
	}
	fmt.Fprintf(out, "%-11s ready after %.1f s\n", s.name, time.Since(began).Seconds())
	return nil
}

const readyTime = 30 * time.Second

func startReady(ctx context.Context, r substrate.Room, svc substrate.Service) (substrate.Process, error) {
	p, err := r.Start(ctx, svc)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	return p, p.WaitReady(ctx)
}

func startAll(ctx context.Context, r substrate.Room, servers int) error {
	for i := range servers {
		svc := substrate.Service{Kind: substrate.CalculatorServer, Name: fmt.Sprintf("server-%d", i), Restart: true}
		if _, err := startReady(ctx, r, svc); err != nil {
			return err
		}
	}
	return nil
}

// firstCall shows that it works before saying so.
func firstCall(ctx context.Context, r substrate.Room) error {
	ctx, cancel := context.WithTimeout(ctx, readyTime)
	defer cancel()
	p, err := r.Start(ctx, substrate.Service{Kind: substrate.Client, Name: "first-call", Args: []string{"call", "add", "0.1", "0.2"}})
	if err != nil {
		return err
	}
	exit, err := p.Wait(ctx)
	if err != nil {
		return err
	}
	if got := strings.TrimSpace(string(exit.Stdout)); exit.Code != 0 || got != "0.3" {
		return fmt.Errorf("client call add 0.1 0.2: printed %q, status %d, want 0.3; %s", got, exit.Code, strings.Join(p.Tail(), "; "))
	}
	return nil
}

// howTo says how to use what is up, in lines that can be pasted.
func howTo(ctx context.Context, s *local.Substrate, r substrate.Room, auditor *local.Process) (string, error) {
	client, err := s.Program(ctx, substrate.Client)
	if err != nil {
		return "", err
	}
	var b strings.Builder
	fmt.Fprintf(&b, "Call it:\n\n  export WARREN_AMQP_URL='%s'\n  %s call add 0.1 0.2\n\n", r.URL(contract.UserClient), client)
	fmt.Fprintf(&b, "Dead letters      http://%s\n", auditor.HTTPAddr())
	if url := s.ManagementURL(); url != "" {
		fmt.Fprintf(&b, "RabbitMQ          %s\n", url)
	}
	fmt.Fprintf(&b, "Logs and ledger   %s\n\nCtrl-C here, or lab down, ends it and leaves nothing behind.\n", s.Folder())
	return b.String(), nil
}

// inForeground is the command line without --detach, however that was spelt: of
// two values the last counts.
func inForeground(args []string) []string { return append(slices.Clone(args), "--detach=false") }

// upDetached runs the same command without --detach in the background and
// returns when it is ready.
func upDetached(ctx context.Context, out io.Writer) error {
	program, err := os.Executable()
	if err != nil {
		return setupError(err)
	}
	log, err := os.CreateTemp("", "lab-up-*.log")
	if err != nil {
		return setupError(err)
	}
	defer log.Close()
	defer os.Remove(log.Name()) // the child writes on; nobody reads
	child := exec.Command(program, inForeground(os.Args[1:])...)
	child.Stdout, child.Stderr = log, log
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // out of this terminal's reach
	if err := child.Start(); err != nil {
		return setupError(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- child.Wait() }()
	for {
		text, err := announcement(child.Process.Pid)
		if err != nil {
			return setupError(err)
		}
		if text != "" {
			fmt.Fprint(out, text)
			return nil
		}
		select {
		case <-ended:
			said, _ := os.ReadFile(log.Name())
			last := strings.TrimPrefix(lastLine(string(said)), "lab: ")
			return setupError(errors.New(last))
		case <-ctx.Done():
			_ = child.Process.Signal(syscall.SIGTERM)
			<-ended
			return ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func announcement(pid int) (string, error) {
	labs, err := local.Running()
	if err != nil {
		return "", err
	}
	for _, l := range labs {
		if l.PID == pid {
			return l.Text, nil
		}
	}
	return "", nil
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

func downCommand() *cobra.Command {
	var on string
	var o cluster.Options
	cmd := &cobra.Command{
		Use:   "down",
		Short: "End what lab up started, and sweep up after labs that were killed",
		Args:  cobra.NoArgs,
		PreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkPlace(cmd, on, o.Context); err != nil {
				return err
			}
			if on == "cluster" && o.Context == "" {
				return usageError("--on cluster: needs --context; a pod of the release cannot take it away")
			}
			if err := o.Validate(); err != nil {
				return usageError("%v", err)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			if on == "local" {
				return down(cmd.Context(), cmd.OutOrStdout())
			}
			deleted, err := cluster.Down(cmd.Context(), o)
			switch {
			case err != nil:
				return setupError(err)
			case deleted:
				fmt.Fprintln(cmd.OutOrStdout(), "taken away")
			default:
				fmt.Fprintln(cmd.OutOrStdout(), "nothing is up")
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&on, "on", "local", "local, kind or cluster, as for lab up")
	addClusterFlags(cmd, &o)
	return cmd
}

// down ends the labs of this machine.
func down(ctx context.Context, out io.Writer) error {
	labs, err := local.Running()
	if err != nil {
		return setupError(err)
	}
	ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
	defer cancel()
	for _, l := range labs {
		if err := l.Stop(ctx); err != nil {
			return setupError(err)
		}
		fmt.Fprintf(out, "ended lab %d\n", l.PID)
	}
	swept, err := local.Sweep()
	for _, folder := range swept {
		fmt.Fprintf(out, "removed %s, left by a lab that was killed\n", folder)
	}
	if err != nil {
		return setupError(err)
	}
	if len(labs)+len(swept) == 0 {
		fmt.Fprintln(out, "nothing is up")
	}
	return nil
}
