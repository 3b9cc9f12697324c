package main

import (
	"bytes"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"warren.example/messaging/event"
)

// lives is event lines as a publisher writes them: "request event …".
func lives(t *testing.T, of ...string) string {
	t.Helper()
	var b bytes.Buffer
	r := event.NewRecorder(&b, "test", "client-0")
	for _, life := range of {
		request, steps, _ := strings.Cut(life, " ")
		for step := range strings.FieldsSeq(steps) {
			r.Record(event.Line{Event: event.Kind(step), Request: request})
		}
	}
	r.Record(event.Line{Event: event.EOF})
	return b.String()
}

func TestReconcileNamesGaps(t *testing.T) {
	s, srv := newAPI(t, &wire{}, "")
	mustAudit(t, s, newLetter("died"))
	mustAudit(t, s, newLetter("m"))
	for name, c := range map[string]struct {
		lines string
		want  string // on standard output
	}{
		"nothing was sent":             {lives(t), "0 confirmed: 0 ended, 0 on record as dead letters, 0 gaps\n"},
		"an answer":                    {lives(t, "a publishing confirmed answered"), "1 confirmed: 1 ended, 0 on record as dead letters, 0 gaps\n"},
		"an answer before its confirm": {lives(t, "a publishing answered confirmed"), "1 confirmed: 1 ended, 0 on record as dead letters, 0 gaps\n"},
		"a refusal":                    {lives(t, "a publishing confirmed refused"), "1 confirmed: 1 ended, 0 on record as dead letters, 0 gaps\n"},
		"a late reply":                 {lives(t, "a publishing confirmed timed-out late-reply"), "1 confirmed: 1 ended, 0 on record as dead letters, 0 gaps\n"},
		"an orphan":                    {lives(t, "a publishing confirmed", "a orphaned"), "1 confirmed: 1 ended, 0 on record as dead letters, 0 gaps\n"},
		"a dead letter":                {lives(t, "died publishing confirmed timed-out"), "1 confirmed: 0 ended, 1 on record as dead letters, 0 gaps\n"},
		"never confirmed":              {lives(t, "a publishing request-returned", "b publishing publish-nacked", "c publishing unknown"), "0 confirmed: 0 ended, 0 on record as dead letters, 0 gaps\n"},
		"in flight":                    {lives(t, "a publishing confirmed"), "1 confirmed: 0 ended, 0 on record as dead letters, 1 gaps\na\n"},
		"its caller gave up":           {lives(t, "a publishing confirmed timed-out"), "1 confirmed: 0 ended, 0 on record as dead letters, 1 gaps\na\n"},
		"its second attempt returned":  {lives(t, "a publishing confirmed publishing request-returned"), "1 confirmed: 0 ended, 0 on record as dead letters, 1 gaps\na\n"},
		"the number of another's row":  {lives(t, "1 publishing confirmed"), "1 confirmed: 0 ended, 0 on record as dead letters, 1 gaps\n1\n"},
		"an id that is a path":         {lives(t, "../trail? publishing confirmed"), "1 confirmed: 0 ended, 0 on record as dead letters, 1 gaps\n../trail?\n"},
		"an id that acts":              {lives(t, "\x1b[31m publishing confirmed"), "1 confirmed: 0 ended, 0 on record as dead letters, 1 gaps\n" + `"\x1b[31m"` + "\n"},
		"some of all": {
			lives(t, "z publishing confirmed", "a publishing confirmed answered", "died publishing confirmed", "b publishing confirmed confirmed"),
			"4 confirmed: 1 ended, 1 on record as dead letters, 2 gaps\nz\nb\n",
		},
	} {
		status, stdout, stderr := commandOn(t, c.lines, "reconcile", "-", "--url", srv.URL)
		want := 0
		if !strings.Contains(c.want, " 0 gaps") {
			want = exitRefused
		}
		if status != want || stdout != c.want || (stderr != "") != (want != 0) {
			t.Errorf("%s: got %d\n%s%swant %d\n%s", name, status, stdout, stderr, want, c.want)
		}
	}
}

func TestReconcileReadsFiles(t *testing.T) {
	_, srv := newAPI(t, &wire{}, secret)
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	token := file("token", string(secret)+"\n")
	whole := lives(t, "a publishing confirmed answered")
	good, other := file("good", whole), file("other", lives(t, "b publishing confirmed", "a publishing confirmed"))
	for name, c := range map[string]struct {
		args   []string
		status int
		out    string // that stdout or stderr contains
	}{
		"one":                 {[]string{good}, 0, "1 confirmed: 1 ended"},
		"two are one story":   {[]string{other, good}, exitRefused, "2 confirmed: 1 ended, 0 on record as dead letters, 1 gaps\nb\n"},
		"what may be said":    {[]string{other}, exitRefused, "gaps: 2 of 2 confirmed requests have no end and no dead letter: still in flight, or died where"},
		"json":                {[]string{other, good, "--output", "json"}, exitRefused, `"confirmed": 2,` + "\n" + `  "ended": 1,` + "\n" + `  "on_record": 0,` + "\n" + `  "gaps": [` + "\n" + `    "b"` + "\n" + `  ],` + "\n" + `  "incomplete": []` + "\n}\n"},
		"no newline at last":  {[]string{file("cut", strings.TrimSpace(whole))}, 0, "1 confirmed: 1 ended, 0 on record as dead letters, 0 gaps\n"},
		"a torn last line":    {[]string{file("torn", whole[:len(whole)-9])}, 0, filepath.Join(dir, "torn") + ": incomplete: it ends in the middle of a line"},
		"torn, as json":       {[]string{filepath.Join(dir, "torn"), "--output", "json"}, 0, filepath.Join(dir, "torn") + `"` + "\n" + `  ]`},
		"torn in between":     {[]string{file("between", whole[:20]+whole)}, exitUsage, "between:1: no event line"},
		"a line of another":   {[]string{good, file("log", whole+"0.3\n")}, exitUsage, filepath.Join(dir, "log") + `:5: no event line: "0.3"`},
		"another's last line": {[]string{file("last", whole+"0.3")}, exitUsage, "last:5: no event line"},
		"JSON of another":     {[]string{file("json", `{"level":"info"}`+"\n")}, exitUsage, "json:1: no event line"},
		"a long line":         {[]string{file("long", strings.Repeat(" ", 3*event.MaxLine))}, exitUsage, "long:1: longer than any event line"},
		"no such file":        {[]string{"/nowhere"}, exitUsage, "/nowhere: no such file or directory"},
		"a folder":            {[]string{dir}, exitUsage, "is a directory"},
		"no file":             {nil, exitUsage, "requires at least 1 arg(s)"},
		"wrong output":        {[]string{good, "--output", "yaml"}, exitUsage, "--output yaml: want text or json"},
		"nobody listens":      {[]string{good, "--url", "http://127.0.0.1:1"}, exitUnreachable, "connection refused"},
		"not the auditor's":   {[]string{good, "--url", srv.URL + "/elsewhere"}, exitUsage, "answers 404 Not Found"}, // and not 1: that would be gaps
	} {
		args := append([]string{"reconcile", "--url", srv.URL, "--token-file", token}, c.args...)
		if status, stdout, stderr := command(t, args...); status != c.status || !strings.Contains(stdout+stderr, c.out) {
			t.Errorf("%s: got %d\n%s%swant %d and %q", name, status, stdout, stderr, c.status, c.out)
		}
	}
	if status, stdout, stderr := command(t, "reconcile", other, "--url", srv.URL); status != exitUsage || stdout != "" {
		t.Errorf("no token: got %d\n%s%swant %d", status, stdout, stderr, exitUsage)
	}
	stranger := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("{}")) }))
	defer stranger.Close()
	if status, stdout, stderr := command(t, "reconcile", other, "--url", stranger.URL); status != exitUnreachable || stdout != "" {
		t.Errorf("a stranger: got %d\n%s%swant %d", status, stdout, stderr, exitUnreachable)
	}
}
