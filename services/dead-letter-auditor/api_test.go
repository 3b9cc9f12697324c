package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"go.uber.org/zap"

	"warren.example/messaging/contract"
)

const secret = token("0123456789abcdef")

// newAPI is the API over a real database; what it publishes goes to w.
func newAPI(t *testing.T, w *wire, secret token) (*sqlStore, *httptest.Server) {
	t.Helper()
	s := newStore(t)
	r := newReplayer(s, w)
	srv := httptest.NewServer((&api{store: s, replayer: r, service: t.Context(), token: secret, log: zap.NewNop()}).handler())
	t.Cleanup(func() { srv.Close(); r.calls.Wait() })
	return s, srv
}

// ask sends one request; headers are "Name: value".
func ask(t *testing.T, method, url, body string, headers ...string) (status int, answer string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		r.Header.Set(name, value)
		if name == "Host" {
			r.Host = value
		}
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, strings.TrimSpace(string(b))
}

func TestRefusedRequests(t *testing.T) {
	s, srv := newAPI(t, &wire{away: errors.New("not connected")}, "")
	mustAudit(t, s, newLetter("m"))
	mustAudit(t, s, newLetter("m", func(l *DeadLetter) { l.Attempt = 2 }))
	const ann = "Warren-Actor: ann"
	for name, c := range map[string]struct {
		method, path, body string
		header             string
		status             int
		answer             string
	}{
		"unknown key":        {"GET", "/api/dead-letters?stauts=open", "", "", 400, `{"error":"query: unknown key \"stauts\"; there are [\"status\" \"reason\" \"message_id\" \"limit\" \"after\"]"}`},
		"key twice":          {"GET", "/api/dead-letters?limit=1&limit=2", "", "", 400, `{"error":"query: limit is given 2 times"}`},
		"unknown status":     {"GET", "/api/dead-letters?status=closed", "", "", 400, `{"error":"status=closed: want one of [open replaying replay-failed answered refused died-again discarded]"}`},
		"unknown reason":     {"GET", "/api/dead-letters?reason=old", "", "", 400, `{"error":"reason=old: want one of [rejected expired maxlen delivery_limit unknown]"}`},
		"limit":              {"GET", "/api/trail?limit=0", "", "", 400, `{"error":"limit=0: want 1 to 500"}`},
		"after":              {"GET", "/api/trail?after=x", "", "", 400, `{"error":"after=x: want the number in \"next\" of the page before"}`},
		"no such row":        {"GET", "/api/dead-letters/99", "", "", 404, `{"error":"no such dead letter: 99"}`},
		"no actor":           {"POST", "/api/dead-letters/1/replay", "", "", 400, `{"error":"Warren-Actor: \"\": want the name of who asks, of letters, digits and . _ @ -, at most 64"}`},
		"bad actor":          {"POST", "/api/dead-letters/1/replay", "", "Warren-Actor: a b", 400, `{"error":"Warren-Actor: \"a b\": want the name of who asks, of letters, digits and . _ @ -, at most 64"}`},
		"unknown field":      {"POST", "/api/dead-letters/1/discard", `{"raeson":"x"}`, ann, 400, `{"error":"body: unknown field \"raeson\""}`},
		"field for replay":   {"POST", "/api/dead-letters/1/replay", `{"reason":"x"}`, ann, 400, `{"error":"body: unknown field \"reason\""}`},
		"two values":         {"POST", "/api/dead-letters/1/discard", `{"reason":"x"} {}`, ann, 400, `{"error":"body: more than one JSON value"}`},
		"no reason":          {"POST", "/api/dead-letters/1/discard", `{}`, ann, 400, `{"error":"reason: missing; say why nobody needs it any more"}`},
		"too large":          {"POST", "/api/dead-letters/1/discard", `{"reason":"` + strings.Repeat("x", 5000) + `"}`, ann, 413, `{"error":"body: more than 4096 bytes"}`},
		"several deaths":     {"POST", "/api/dead-letters/m/replay", "", ann, 400, `{"error":"the message died 2 times: name one of 2, 1"}`},
		"broker away":        {"POST", "/api/dead-letters/1/replay", "", ann, 503, `{"error":"not now: not connected"}`},
		"another site":       {"GET", "/api/trail", "", "Host: evil.example", 421, `{"error":"Host: want localhost or a loopback address, because no token is set"}`},
		"wrong method":       {"DELETE", "/api/dead-letters/1", "", "", 405, `Method Not Allowed`},
		"replay by a reader": {"GET", "/api/dead-letters/1/replay", "", "", 405, `Method Not Allowed`},
	} {
		t.Run(name, func(t *testing.T) {
			var headers []string
			if c.header != "" {
				headers = append(headers, c.header)
			}
			status, answer := ask(t, c.method, srv.URL+c.path, c.body, headers...)
			if status != c.status || answer != c.answer {
				t.Errorf("got  %d %s\nwant %d %s", status, answer, c.status, c.answer)
			}
		})
	}
	if status, _ := ask(t, "POST", srv.URL+"/api/dead-letters/1/discard", `{"reason":"x"}`, ann, "Sec-Fetch-Site: cross-site"); status != 403 {
		t.Errorf("a page of another site: got %d, want 403", status)
	}
	if got := mustFind(t, s, 1); got.Status != Open {
		t.Errorf("after all that row 1 is %s, want open", got.Status)
	}
}

func TestTokenIsRequired(t *testing.T) {
	_, srv := newAPI(t, &wire{}, secret)
	for header, want := range map[string]int{
		"Authorization: ":                          401,
		"Authorization: Bearer wrong":              401,
		"Authorization: Basic " + string(secret):   401,
		"Authorization: Bearer " + string(secret):  200,
		"Authorization: bearer " + string(secret):  200,
		"Authorization: Bearer  " + string(secret): 401,
	} {
		if got, _ := ask(t, "GET", srv.URL+"/api/trail", "", header); got != want {
			t.Errorf("%s: got %d, want %d", header, got, want)
		}
	}
	if s := fmt.Sprintf("%v %+v %#v %s", secret, secret, secret, secret); strings.Contains(s, "0123") {
		t.Errorf("the token prints: %s", s)
	}
}

func TestListShowReplayDiscard(t *testing.T) {
	s, srv := newAPI(t, &wire{answer: answers(contract.Reply{Result: "0.3"}, nil)}, "")
	for i := range 3 {
		mustAudit(t, s, newLetter(fmt.Sprint("m", i)))
	}
	get := func(path string, into any) {
		t.Helper()
		status, answer := ask(t, "GET", srv.URL+path, "")
		if status != 200 {
			t.Fatalf("%s: %d %s", path, status, answer)
		}
		if err := json.Unmarshal([]byte(answer), into); err != nil {
			t.Fatal(err)
		}
	}
	var page listAnswer
	get("/api/dead-letters?limit=2", &page)
	if len(page.DeadLetters) != 2 || page.Next != 2 || page.DeadLetters[0].Body != nil {
		t.Errorf("first page: got %d rows, next %d", len(page.DeadLetters), page.Next)
	}
	page = listAnswer{}
	get(fmt.Sprintf("/api/dead-letters?limit=2&after=%d", 2), &page)
	if len(page.DeadLetters) != 1 || page.Next != 0 {
		t.Errorf("last page: got %d rows, next %d; want 1 and none", len(page.DeadLetters), page.Next)
	}

	if status, answer := ask(t, "POST", srv.URL+"/api/dead-letters/m0/replay", "", "Warren-Actor: ann"); status != 202 {
		t.Errorf("replay: got %d %s", status, answer)
	}
	if status, answer := ask(t, "POST", srv.URL+"/api/dead-letters/1/replay", "", "Warren-Actor: bob"); status != 409 {
		t.Errorf("replay again: got %d %s, want 409", status, answer)
	}
	if status, answer := ask(t, "POST", srv.URL+"/api/dead-letters/2/discard", `{"reason":"test"}`, "Warren-Actor: bob"); status != 200 {
		t.Errorf("discard: got %d %s", status, answer)
	}
	if status, answer := ask(t, "POST", srv.URL+"/api/dead-letters/2/discard", `{"reason":"test"}`, "Warren-Actor: bob"); status != 409 {
		t.Errorf("discard again: got %d %s, want 409", status, answer)
	}

	var shown showAnswer
	eventually(t, func() string {
		shown = showAnswer{}
		get("/api/dead-letters/m0", &shown)
		if l := shown.DeadLetters[0]; l.Status != Answered || l.Outcome != "0.3" {
			return fmt.Sprintf("got %s %q, want answered 0.3", l.Status, l.Outcome)
		}
		return ""
	})
	if string(shown.DeadLetters[0].Body) != `{"operation":"memory-recall"}` || len(shown.Trail) != 2 || shown.Trail[1].Actor != "ann" {
		t.Errorf("shown: got %+v", shown)
	}
	var trail trailAnswer
	get("/api/trail", &trail)
	if len(trail.Trail) != 3 {
		t.Errorf("trail: got %d entries, want 3: %+v", len(trail.Trail), trail.Trail)
	}
}
