package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"warren.example/messaging/contract"
	"warren.example/messaging/rpc"
)

// suite plays broker, server and auditor of a check.
type suite struct {
	sum       string // what 0.1 + 0.2 is here
	unread    error  // what becomes of the unreadable request
	row       string // what the auditor has of it; "" is nothing
	pending   int    // how often it is not there yet
	token     string
	discarded []string
	id        string
}

func (s *suite) WaitReady(context.Context) error { return nil }

func (s *suite) Call(_ context.Context, call rpc.Call) (contract.Reply, error) {
	if call.Body != nil {
		s.id = call.ID
		return contract.Reply{}, s.unread
	}
	return contract.Reply{Result: s.sum}, nil
}

func (s *suite) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	switch {
	case r.Header.Get("Authorization") != "Bearer "+s.token:
		http.Error(w, `{"error":"want the token"}`, http.StatusUnauthorized)
	case r.Method == http.MethodPost && r.Header.Get("Warren-Actor") != "":
		s.discarded = append(s.discarded, r.URL.Path+" "+string(body))
		fmt.Fprintln(w, "{}")
	case r.URL.Path == "/api/dead-letters/"+s.id && s.row != "" && s.pending == 0:
		fmt.Fprintf(w, `{"dead_letters":[%s],"trail":[]}`, s.row)
	default:
		s.pending--
		http.Error(w, `{"error":"no such dead letter"}`, http.StatusNotFound)
	}
}

func TestCheckFailsWhenAnyPartDoes(t *testing.T) {
	malformed := &contract.Error{Code: contract.Malformed, Message: "body: not JSON"}
	row := func(reason, code, user string) string {
		return fmt.Sprintf(`{"id":7,"reason":%q,"code":%q,"user":%q,"queue":"calc.requests","why":"rejected by the server"}`, reason, code, user)
	}
	good := row("rejected", "MALFORMED", "calc-client")
	for name, tc := range map[string]struct {
		suite
		token   string
		want    string // the error; "" is none
		cleaned bool
	}{
		"all is well":               {suite{sum: "0.3", unread: malformed, row: good}, "t", "", true},
		"audited after a while":     {suite{sum: "0.3", unread: malformed, row: good, pending: 2}, "t", "", true},
		"wrong sum":                 {suite{sum: "0.30000000000000004"}, "t", "add 0.1 0.2: got 0.30000000000000004, want 0.3", false},
		"rubbish has a result":      {suite{sum: "0.3"}, "t", "got <nil>, want MALFORMED", false},
		"rubbish is another error":  {suite{sum: "0.3", unread: errors.New("no reply")}, "t", "got no reply, want MALFORMED", false},
		"never audited":             {suite{sum: "0.3", unread: malformed}, "t", "not on record: context deadline exceeded: GET", false},
		"audited for another cause": {suite{sum: "0.3", unread: malformed, row: row("expired", "MALFORMED", "calc-client")}, "t", `reason is "expired", want "rejected"`, true},
		"audited without its code":  {suite{sum: "0.3", unread: malformed, row: row("rejected", "", "calc-client")}, "t", `code is "", want "MALFORMED"`, true},
		"audited as somebody's":     {suite{sum: "0.3", unread: malformed, row: row("rejected", "MALFORMED", "")}, "t", `user is "", want "calc-client"`, true},
		"audited twice":             {suite{sum: "0.3", unread: malformed, row: good + "," + good}, "t", "2 dead letters, want 1", false},
		"wrong token":               {suite{sum: "0.3", unread: malformed, row: good}, "x", "401 Unauthorized", false},
	} {
		t.Run(name, func(t *testing.T) {
			s := tc.suite
			s.token = "t"
			server := httptest.NewServer(&s)
			defer server.Close()
			var out bytes.Buffer
			c := suiteCheck{broker: &s, user: contract.UserClient, url: server.URL, token: tc.token, out: &out}
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			err := c.run(ctx)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("got %v after\n%swant %q", err, out.String(), tc.want)
			}
			if tc.want == "" && strings.Count(out.String(), "\n") != 5 {
				t.Errorf("got\n%swant a line for each of five steps", out.String())
			}
			cleaned := len(s.discarded) == 1 && s.discarded[0] == `/api/dead-letters/7/discard {"reason":"made by lab check"}`
			if cleaned != tc.cleaned {
				t.Errorf("discarded %q, want cleaned up: %v", s.discarded, tc.cleaned)
			}
		})
	}
}

func TestWaitEndsWithTheSignal(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	root := rootCommand()
	root.SetArgs([]string{"wait"})
	if err := root.ExecuteContext(ctx); err != nil {
		t.Errorf("got %v, want none", err)
	}
}
