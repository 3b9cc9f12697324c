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
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"warren.example/messaging/service"
)

// Exit statuses.
const (
	exitRefused     = 1  // refused, not found, conflict; of reconcile: gaps; of the service: it could not run
	exitUsage       = 64 // wrong command, flag or setting
	exitUnreachable = 69 // the service is away, or cannot do it now
)

// exit is an error that knows its status.
type exit struct {
	status int
	error
}

func (e exit) Unwrap() error { return e.error }

// execute runs one command line and returns its exit status.
func execute(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	root := rootCommand(stdout)
	root.SetArgs(append([]string{}, args...)) // never nil: cobra would read os.Args
	root.SetIn(stdin)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintf(stderr, "dead-letter-auditor: %v\n", err)
	var e exit
	if errors.As(err, &e) {
		return e.status
	}
	return exitUsage // cobra's own errors are all about the command line
}

func rootCommand(stdout io.Writer) *cobra.Command {
	serve := func(cmd *cobra.Command, _ []string) error { return run(cmd.Context(), stdout) }
	root := &cobra.Command{
		Use:   "dead-letter-auditor",
		Short: "Why requests died, on record; replay or discard them",
		Long: `Without a command, or with serve, this is the service: it consumes calc.dlq and
keeps every dead letter in a database. The other commands talk to a running
service.

Exit status: 0 done; 1 refused, not found or in conflict, or gaps; 64 wrong
command line or setting; 69 the service cannot be reached or cannot do it now.

Settings of the service (environment):
` + service.Usage(new(config)),
		Version: service.Version(),
		Args:    cobra.NoArgs,
		RunE:    serve,
		// Whichever command it is: a misspelt setting is never silence.
		PersistentPreRunE: func(*cobra.Command, []string) error { return service.Load(new(spelling)) },
		SilenceErrors:     true,
		SilenceUsage:      true,
	}
	root.CompletionOptions.DisableDefaultCmd = true
	root.AddCommand(&cobra.Command{Use: "serve", Short: "Run the service", Args: cobra.NoArgs, RunE: serve})
	c := &client{out: stdout}
	root.AddCommand(c.list(), c.show(), c.replay(), c.discard(), c.trail(), c.reconcile())
	return root
}

// client is the commands that talk to the HTTP API.
type client struct {
	out       io.Writer
	url       string
	tokenFile string
	as        string
	output    string
}

// command adds the flags that all of them share.
func (c *client) command(cmd *cobra.Command) *cobra.Command {
	f := cmd.Flags()
	f.StringVar(&c.url, "url", "http://127.0.0.1:8080", "address of the service's HTTP API")
	f.StringVar(&c.tokenFile, "token-file", "", "file with the bearer token")
	f.StringVar(&c.output, "output", "text", "text or json")
	return cmd
}

// commandAs adds the flag of those that change something.
func (c *client) commandAs(cmd *cobra.Command) *cobra.Command {
	cmd.Flags().StringVar(&c.as, "as", os.Getenv("USER"), "who you are, for the trail")
	return c.command(cmd)
}

func (c *client) list() *cobra.Command {
	var status, reason string
	var limit int
	var after int64
	cmd := c.command(&cobra.Command{Use: "list", Short: "List dead letters, newest first", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		q := url.Values{"limit": {strconv.Itoa(limit)}}
		if status != "" {
			q.Set("status", status)
		}
		if reason != "" {
			q.Set("reason", reason)
		}
		if after != 0 {
			q.Set("after", strconv.FormatInt(after, 10))
		}
		var answer listAnswer
		return c.do(cmd.Context(), http.MethodGet, "/api/dead-letters?"+q.Encode(), nil, &answer, func(w io.Writer) {
			t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
			fmt.Fprintln(t, "ID\tSTATUS\tSEEN\tREQUEST\tWHY")
			for _, l := range answer.DeadLetters {
				fmt.Fprintf(t, "%d\t%s\t%d\t%s\t%s\n", l.ID, l.Status, l.Seen, l.title(), l.Why)
			}
			_ = t.Flush()
			if answer.Next > 0 {
				fmt.Fprintf(w, "more: --after %d\n", answer.Next)
			}
		})
	}})
	cmd.Flags().StringVar(&status, "status", "", "only of this status: "+join(statuses))
	cmd.Flags().StringVar(&reason, "reason", "", "only of this reason: "+join(reasons))
	cmd.Flags().IntVar(&limit, "limit", defaultLimit, "most to list")
	cmd.Flags().Int64Var(&after, "after", 0, "continue after this id")
	return cmd
}

func (c *client) show() *cobra.Command {
	return c.command(&cobra.Command{Use: "show ID", Short: "Show one dead letter, or all deaths of a message by its message-id", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		var answer showAnswer
		return c.do(cmd.Context(), http.MethodGet, "/api/dead-letters/"+url.PathEscape(args[0]), nil, &answer, func(w io.Writer) {
			for i, l := range answer.DeadLetters {
				if i > 0 {
					fmt.Fprintln(w)
				}
				l.print(w)
			}
			if len(answer.Trail) > 0 {
				fmt.Fprintln(w)
				printTrail(w, answer.Trail)
			}
		})
	}})
}

func (c *client) replay() *cobra.Command {
	var wait time.Duration
	cmd := c.commandAs(&cobra.Command{Use: "replay ID", Short: "Send a dead letter to the servers again, as its next generation", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		path := "/api/dead-letters/" + url.PathEscape(args[0])
		var answer rowAnswer
		started := func(w io.Writer) {
			fmt.Fprintf(w, "replaying %d as generation %d\n", answer.DeadLetter.ID, answer.DeadLetter.Generation)
		}
		if wait <= 0 {
			return c.do(cmd.Context(), http.MethodPost, path+"/replay", nil, &answer, started)
		}
		if _, err := c.fetch(cmd.Context(), http.MethodPost, path+"/replay", nil, &answer); err != nil {
			return err
		}
		return c.await(cmd.Context(), answer.DeadLetter.ID, wait)
	}})
	cmd.Flags().DurationVar(&wait, "wait", 0, "wait so long for the answer, and fail if it is none")
	return cmd
}

// await asks until the replay has ended, then prints how.
func (c *client) await(ctx context.Context, id int64, wait time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	for {
		var answer showAnswer
		raw, err := c.fetch(ctx, http.MethodGet, "/api/dead-letters/"+strconv.FormatInt(id, 10), nil, &answer)
		if err != nil && ctx.Err() == nil {
			return err
		}
		if err == nil && answer.DeadLetters[0].Status != Replaying {
			l := answer.DeadLetters[0]
			c.print(raw, func(w io.Writer) { fmt.Fprintf(w, "%s: %s\n", l.Status, l.Outcome) })
			if l.Status != Answered {
				return exit{exitRefused, fmt.Errorf("dead letter %d is %s", l.ID, l.Status)}
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return exit{exitRefused, fmt.Errorf("dead letter %d is still replaying after %s", id, wait)}
		case <-time.After(200 * time.Millisecond):
		}
	}
}

func (c *client) discard() *cobra.Command {
	var reason string
	cmd := c.commandAs(&cobra.Command{Use: "discard ID --reason TEXT", Short: "Give a dead letter up; it stays on record", Args: cobra.ExactArgs(1), RunE: func(cmd *cobra.Command, args []string) error {
		body, _ := json.Marshal(discardBody{reason}) // a string: cannot fail
		var answer rowAnswer
		return c.do(cmd.Context(), http.MethodPost, "/api/dead-letters/"+url.PathEscape(args[0])+"/discard", body, &answer, func(w io.Writer) {
			fmt.Fprintf(w, "discarded %d\n", answer.DeadLetter.ID)
		})
	}})
	cmd.Flags().StringVar(&reason, "reason", "", "why nobody needs it any more (required)")
	_ = cmd.MarkFlagRequired("reason") // fails only for a flag that does not exist
	return cmd
}

func (c *client) trail() *cobra.Command {
	var limit int
	var after int64
	cmd := c.command(&cobra.Command{Use: "trail", Short: "Show who did what, newest first", Args: cobra.NoArgs, RunE: func(cmd *cobra.Command, _ []string) error {
		q := url.Values{"limit": {strconv.Itoa(limit)}}
		if after != 0 {
			q.Set("after", strconv.FormatInt(after, 10))
		}
		var answer trailAnswer
		return c.do(cmd.Context(), http.MethodGet, "/api/trail?"+q.Encode(), nil, &answer, func(w io.Writer) {
			printTrail(w, answer.Trail)
			if answer.Next > 0 {
				fmt.Fprintf(w, "more: --after %d\n", answer.Next)
			}
		})
	}})
	cmd.Flags().IntVar(&limit, "limit", defaultLimit, "most to show")
	cmd.Flags().Int64Var(&after, "after", 0, "continue after this entry")
	return cmd
}

func (c *client) reconcile() *cobra.Command {
	return c.command(&cobra.Command{
		Use:   "reconcile FILE…",
		Short: "Name the requests of which neither an end nor a dead letter is on record",
		Long: `Read the publishers' event lines (WARREN_EVENTS=stdout) and name each gap: a
request that the broker confirmed, of which these lines tell no end, and of which
the service has no dead letter. An end is an answer, a refusal, or a reply that
came too late; that its caller gave up is none. The servers' lines may be given
as well: a reply to a caller that had died is on record there. "-" is standard
input.

A gap is not yet a loss. What is in flight is a gap until it ends: it may be in
a queue, calc.dlq included, or in somebody's hands. Let the queues run empty and
reconcile again. A gap that stays died where no dead letter comes out: of a
queue without a dead-letter exchange or with one that does not exist, or, at
most once, on its way to a dead-letter queue that was away. (What died under a
message-id that cannot be printed is on record under a hash, and is a gap here.)

Exit status: 0 no gap; 1 gaps; 64 wrong command line, setting, token or file; 69
the service cannot be reached or cannot do it now.`,
		Args: cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			f, err := readFates(args, cmd.InOrStdin())
			if err != nil {
				return exit{exitUsage, err}
			}
			ctx := cmd.Context()
			_, err = c.onRecord(ctx, "") // where nothing is to be asked, too, there must be somebody to ask
			var r reconciliation
			if err == nil {
				r, err = f.reconcile(func(id string) (bool, error) { return c.onRecord(ctx, id) })
			}
			var e exit
			if errors.As(err, &e) && e.status == exitRefused {
				return exit{exitUsage, err} // 1 says that there are gaps, and nothing else
			}
			if err != nil {
				return err
			}
			raw, _ := json.Marshal(r) // numbers and strings: cannot fail
			c.print(append(raw, '\n'), r.print)
			if len(r.Gaps) > 0 {
				return exit{exitRefused, fmt.Errorf("gaps: %d of %d confirmed requests have no end and no dead letter: still in flight, or died where no dead letter comes out; reconcile --help says more", len(r.Gaps), r.Confirmed)}
			}
			return nil
		},
	})
}

// onRecord asks whether a message has died; "" stands for any.
func (c *client) onRecord(ctx context.Context, id string) (bool, error) {
	q := url.Values{"limit": {"1"}}
	if id != "" {
		q.Set("message_id", id)
	}
	var answer listAnswer
	if _, err := c.fetch(ctx, http.MethodGet, "/api/dead-letters?"+q.Encode(), nil, &answer); err != nil {
		return false, err
	}
	if answer.DeadLetters == nil { // none would be an empty list
		return false, exit{exitUnreachable, fmt.Errorf("--url %s: answers something that is not the auditor's", c.url)}
	}
	return len(answer.DeadLetters) > 0, nil
}

func (r reconciliation) print(w io.Writer) {
	fmt.Fprintf(w, "%d confirmed: %d ended, %d on record as dead letters, %d gaps\n", r.Confirmed, r.Ended, r.OnRecord, len(r.Gaps))
	for _, id := range r.Gaps {
		fmt.Fprintln(w, quoteUnlessPlain(id))
	}
	for _, name := range r.Incomplete {
		fmt.Fprintf(w, "%s: incomplete: it ends in the middle of a line, and what that told is not known\n", name)
	}
}

// do fetches and prints.
func (c *client) do(ctx context.Context, method, path string, body []byte, answer any, text func(io.Writer)) error {
	raw, err := c.fetch(ctx, method, path, body, answer)
	if err == nil {
		c.print(raw, text)
	}
	return err
}

func (c *client) print(raw []byte, text func(io.Writer)) {
	if c.output == "text" {
		text(c.out)
		return
	}
	var b bytes.Buffer
	_ = json.Indent(&b, raw, "", "  ") // it was decoded before
	_, _ = b.WriteTo(c.out)
}

// fetch sends one request and decodes its answer.
func (c *client) fetch(ctx context.Context, method, path string, body []byte, answer any) (raw []byte, err error) {
	if c.output != "text" && c.output != "json" {
		return nil, exit{exitUsage, fmt.Errorf("--output %s: want text or json", c.output)}
	}
	base, err := url.Parse(c.url)
	if err != nil || base.Host == "" || base.Scheme != "http" && base.Scheme != "https" {
		return nil, exit{exitUsage, fmt.Errorf("--url %s: want http://host:port or https://host:port", c.url)}
	}
	ctx, cancel := context.WithTimeout(ctx, apiTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, method, strings.TrimRight(c.url, "/")+path, bytes.NewReader(body))
	if err != nil {
		return nil, exit{exitUsage, err}
	}
	if method == http.MethodPost {
		if !actorName.MatchString(c.as) {
			return nil, exit{exitUsage, fmt.Errorf("--as %q: want your name, of letters, digits and . _ @ -, at most 64", c.as)}
		}
		r.Header.Set(actorHeader, c.as)
		r.Header.Set("Content-Type", "application/json")
	}
	if c.tokenFile != "" {
		t, err := readToken(c.tokenFile)
		if err != nil {
			return nil, exit{exitUsage, fmt.Errorf("--token-file %s: %w", c.tokenFile, err)}
		}
		r.Header.Set("Authorization", "Bearer "+string(t))
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		return nil, exit{exitUnreachable, fmt.Errorf("--url %s: %w", c.url, errors.Unwrap(err))}
	}
	defer res.Body.Close()
	if raw, err = io.ReadAll(res.Body); err != nil {
		return nil, exit{exitUnreachable, fmt.Errorf("--url %s: %w", c.url, err)}
	}
	if res.StatusCode >= 300 {
		return nil, refusal(c.url, res.Status, res.StatusCode, raw)
	}
	if err := json.Unmarshal(raw, answer); err != nil {
		return nil, exit{exitUnreachable, fmt.Errorf("--url %s: answers something that is not the auditor's: %w", c.url, err)}
	}
	return raw, nil
}

// refusal is the service's "no" and the exit status for it.
func refusal(url, status string, code int, raw []byte) error {
	var answer errorAnswer
	if json.Unmarshal(raw, &answer) != nil || answer.Error == "" {
		answer.Error = fmt.Sprintf("--url %s: answers %s", url, status)
	}
	err := errors.New(answer.Error)
	switch {
	case code == http.StatusBadRequest || code == http.StatusRequestEntityTooLarge:
		return exit{exitUsage, err}
	case code >= 500:
		return exit{exitUnreachable, err}
	default:
		return exit{exitRefused, err}
	}
}

// title is the message-id with what tells one death of it from another.
func (l *DeadLetter) title() string {
	s := l.MessageID
	if digest, ok := strings.CutPrefix(s, "sha256:"); ok {
		s = "sha256:" + digest[:min(len(digest), 12)] + "…"
	}
	if l.Suspicious != "" {
		s += " (suspicious)"
	}
	if l.Replay > 0 {
		s += fmt.Sprintf(" replay %d", l.Replay)
	}
	if l.Attempt > 1 {
		s += fmt.Sprintf(" attempt %d", l.Attempt)
	}
	return s
}

// print shows one dead letter to a person. Everything that a stranger wrote
// was cleaned when it was stored, or is quoted as JSON.
func (l *DeadLetter) print(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) {
		if s := fmt.Sprintf(format, args...); s != "" {
			fmt.Fprintf(t, "%s\t%s\n", name, s)
		}
	}
	line("dead letter", "%d", l.ID)
	line("request", "%s", l.title())
	if l.Suspicious != "" {
		line("recorded as", "%s", l.MessageID)
	}
	line("why", "%s", l.Why)
	line("suspicious", "%s", l.Suspicious)
	line("status", "%s", l.Status)
	line("outcome", "%s", l.Outcome)
	if l.Generation > 0 {
		line("replayed as", "generation %d", l.Generation)
	}
	line("asked by", "%s", l.Asker())
	if !l.DiedAt.IsZero() {
		line("died", "%s", l.DiedAt.Format(time.RFC3339))
	}
	line("seen", "%d, first %s, last %s", l.Seen, l.FirstSeen.Format(time.RFC3339), l.LastSeen.Format(time.RFC3339))
	line("properties", "%s", l.Properties)
	line("headers", "%s", l.Headers)
	cut := ""
	if l.Truncated() {
		cut = fmt.Sprintf(" (the first %d of %d bytes)", len(l.Body), l.BodySize)
	}
	if utf8.Valid(l.Body) {
		line("body"+cut, "%s", quoteUnlessPlain(string(l.Body)))
	} else {
		line("body"+cut, "%q", l.Body)
	}
	_ = t.Flush()
}

// quoteUnlessPlain shows text as it is unless it could act on the terminal.
func quoteUnlessPlain(s string) string {
	if clean(s, len(s)) == s {
		return s
	}
	return strconv.Quote(s)
}

func printTrail(w io.Writer, trail []Entry) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "WHEN\tWHO\tDID\tTO\tBEFORE\tAFTER\tDETAIL")
	for _, e := range trail {
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%s\t%s\t%s\n", e.At.Format(time.RFC3339), e.Actor, e.Action, e.Row, e.Before, e.After, e.Detail)
	}
	_ = t.Flush()
}

func join[T ~string](names []T) string {
	all := make([]string, len(names))
	for i, n := range names {
		all[i] = string(n)
	}
	return strings.Join(all, ", ")
}
