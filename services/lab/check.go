package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"warren.example/messaging/contract"
	"warren.example/messaging/rpc"
	"warren.example/messaging/service"
	"warren.example/messaging/session"
)

// waitCommand is what the lab's pod runs: its image holds one program and no
// shell, so that there is nothing else that could keep it alive for exec.
func waitCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "wait",
		Short: "Do nothing until a signal, in a pod that people exec into",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			<-cmd.Context().Done()
			return nil
		},
	}
}

func checkCommand() *cobra.Command {
	var timeout time.Duration
	var tokenFile string
	var c suiteCheck
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Prove a running suite: one round trip, and one dead letter on record",
		Long: `Prove a running suite, as helm test does: 0.1 + 0.2 is asked and must be 0.3; a
request that nobody can read must be refused, die, and stand in the auditor's
database with the right reason. That dead letter is discarded afterwards.

Exit status: 0 all of it holds, 1 something does not, 64 usage.

Settings (environment), of a user who may ask, normally ` + contract.UserClient + `:
` + service.Usage(new(service.Settings)),
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// 1. Refuse what cannot work before touching the network.
			if timeout <= 0 {
				return usageError("check: --timeout %s: more than 0", timeout)
			}
			if u, err := url.Parse(c.url); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
				return usageError("check: --auditor-url %s: want http(s)://host:port", c.url)
			}
			var cfg service.Settings
			if err := service.Load(&cfg); err != nil {
				return usageError("check: %v", err)
			}
			if tokenFile != "" {
				token, err := os.ReadFile(tokenFile)
				if err != nil {
					return usageError("check: --token-file: %v", err)
				}
				c.token = strings.TrimSpace(string(token))
			}

			// 2. Ask as any client does, by the same code.
			caller, err := rpc.NewCaller(rpc.CallerOptions{
				Session:    session.Options{Config: cfg.AMQP, Name: "check/" + cfg.Instance},
				Instance:   cfg.Instance,
				ReplyQueue: contract.ClientReplyQueue,
			})
			if err != nil {
				return usageError("check: %v", err)
			}
			defer func() {
				closing, cancel := context.WithTimeout(context.WithoutCancel(cmd.Context()), 5*time.Second)
				defer cancel()
				_ = caller.Close(closing) // nothing is in flight
			}()
			c.broker, c.user, c.out = caller, cfg.AMQP.User(), cmd.OutOrStdout()
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			if err := c.run(ctx); err != nil {
				return &exitError{exitBroken, fmt.Errorf("check: %w", err)}
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&c.url, "auditor-url", "http://127.0.0.1:8080", "address of the auditor's HTTP API")
	f.StringVar(&tokenFile, "token-file", "", "file with its bearer token")
	f.DurationVar(&timeout, "timeout", time.Minute, "longest that everything together may take, waiting for the broker included")
	return cmd
}

// suiteCheck is one run of lab check.
type suiteCheck struct {
	broker interface {
		WaitReady(context.Context) error
		Call(context.Context, rpc.Call) (contract.Reply, error)
	}
	user       string // that the requests come from
	url, token string // of the auditor
	out        io.Writer
}

func (c *suiteCheck) run(ctx context.Context) error {
	if err := c.broker.WaitReady(ctx); err != nil {
		return fmt.Errorf("broker: %w", err)
	}
	fmt.Fprintln(c.out, "broker       reached as", c.user)

	sum := contract.Request{Operation: contract.Add, Operands: []string{"0.1", "0.2"}}
	reply, err := c.broker.Call(ctx, rpc.Call{Request: sum, WaitForSession: true})
	if err != nil {
		return fmt.Errorf("round trip: add 0.1 0.2: %w", err)
	}
	if reply.Result != "0.3" {
		return fmt.Errorf("round trip: add 0.1 0.2: got %s, want 0.3", reply.Result)
	}
	fmt.Fprintln(c.out, "round trip   add 0.1 0.2 = 0.3")

	id := "check-" + uuid.NewString()
	_, err = c.broker.Call(ctx, rpc.Call{ID: id, Body: []byte("unreadable on purpose"), WaitForSession: true})
	var refused *contract.Error
	if !errors.As(err, &refused) || refused.Code != contract.Malformed {
		return fmt.Errorf("dead letter: request %s, which nobody can read: got %v, want %s", id, err, contract.Malformed)
	}
	fmt.Fprintf(c.out, "dead letter  request %s was refused with %s\n", id, refused.Code)

	row, err := c.audited(ctx, id)
	if err != nil {
		return fmt.Errorf("auditor: %w", err)
	}
	wrong := row.differsFrom(deadLetter{Reason: "rejected", Code: string(contract.Malformed), User: c.user, Queue: contract.RequestQueue})
	if wrong == nil {
		fmt.Fprintf(c.out, "auditor      has it as %d: %s\n", row.ID, row.Why)
	}
	if err := c.discard(ctx, row.ID); err != nil { // right or wrong, it is ours to remove
		return fmt.Errorf("auditor: %w", errors.Join(wrong, err))
	}
	if wrong != nil {
		return fmt.Errorf("auditor: dead letter %d of request %s: %w", row.ID, id, wrong)
	}
	fmt.Fprintln(c.out, "cleaned up   dead letter discarded")
	return nil
}

// deadLetter is what the check reads of a row of the auditor.
type deadLetter struct {
	ID     int64  `json:"id"`
	Reason string `json:"reason"`
	Code   string `json:"code"`
	User   string `json:"user"`
	Queue  string `json:"queue"`
	Why    string `json:"why"`
}

func (got deadLetter) differsFrom(want deadLetter) error {
	var errs []error
	for name, v := range map[string][2]string{
		"reason": {got.Reason, want.Reason}, "code": {got.Code, want.Code},
		"user": {got.User, want.User}, "queue": {got.Queue, want.Queue},
	} {
		if v[0] != v[1] {
			errs = append(errs, fmt.Errorf("%s is %q, want %q", name, v[0], v[1]))
		}
	}
	return errors.Join(errs...)
}

// audited waits until the request stands in the auditor's database: it is
// answered before it dies, and the broker hands it over after that.
func (c *suiteCheck) audited(ctx context.Context, id string) (deadLetter, error) {
	var last error
	for {
		var answer struct {
			DeadLetters []deadLetter `json:"dead_letters"`
		}
		status, err := c.ask(ctx, http.MethodGet, "/api/dead-letters/"+id, "", &answer)
		switch {
		case err == nil && len(answer.DeadLetters) == 1:
			return answer.DeadLetters[0], nil
		case err == nil:
			return deadLetter{}, fmt.Errorf("request %s: %d dead letters, want 1", id, len(answer.DeadLetters))
		case status == http.StatusUnauthorized:
			return deadLetter{}, err // waiting does not change a token
		case ctx.Err() == nil || last == nil:
			last = err
		}
		select {
		case <-ctx.Done():
			return deadLetter{}, fmt.Errorf("request %s is not on record: %w: %w", id, ctx.Err(), last)
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (c *suiteCheck) discard(ctx context.Context, row int64) error {
	_, err := c.ask(ctx, http.MethodPost, fmt.Sprintf("/api/dead-letters/%d/discard", row), `{"reason":"made by lab check"}`, nil)
	return err
}

// ask speaks to the auditor; the status is 0 if it did not answer.
func (c *suiteCheck) ask(ctx context.Context, method, path, body string, into any) (status int, err error) {
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(c.url, "/")+path, strings.NewReader(body))
	if err != nil {
		return 0, err
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	req.Header.Set("Warren-Actor", "lab-check")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	if err != nil {
		return res.StatusCode, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if res.StatusCode/100 != 2 {
		return res.StatusCode, fmt.Errorf("%s %s: %s: %s", method, path, res.Status, bytes.TrimSpace(text))
	}
	if into == nil {
		return res.StatusCode, nil
	}
	if err := json.Unmarshal(text, into); err != nil {
		return res.StatusCode, fmt.Errorf("%s %s: %w", method, path, err)
	}
	return res.StatusCode, nil
}
