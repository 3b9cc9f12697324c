package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"warren.example/messaging/topology"
)

// The users are made from their files before anything is declared, and what is
// wrong with the files is said by flag and name, never by content.
func TestTopologyMakesTheUsers(t *testing.T) {
	made := map[string]string{}
	api := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		name, isUser := strings.CutPrefix(r.URL.Path, "/api/users/")
		switch {
		case user != "root" || password != "t0p":
			w.WriteHeader(http.StatusUnauthorized)
		case r.URL.Path == "/api/overview":
			fmt.Fprint(w, `{"rabbitmq_version":"4.3.6"}`)
		case isUser:
			var body struct{ Password string }
			_ = json.NewDecoder(r.Body).Decode(&body)
			made[name] = body.Password
			w.WriteHeader(http.StatusCreated)
		default: // the virtual host; the rest is vhost's business, at a real broker
			w.WriteHeader(http.StatusTeapot)
		}
	}))
	defer api.Close()

	admin, users := t.TempDir(), t.TempDir()
	write := func(dir, name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(admin, "username", "root\n")
	write(admin, "password", "t0p\n")
	want := map[string]string{}
	for _, u := range topology.Users() {
		want[u.Name] = "s3cret-" + u.Name
		write(users, u.Name, want[u.Name]+"\n")
	}
	from := userSource{api.URL, admin, users}
	if _, err := declare(t.Context(), "amqp://127.0.0.1:1/calc", from); err == nil || !strings.Contains(err.Error(), "418") || strings.Contains(err.Error(), "s3cret") {
		t.Errorf("got %v, want the refusal of the virtual host", err)
	}
	if fmt.Sprint(made) != fmt.Sprint(want) {
		t.Errorf("made %v, want %v", made, want)
	}

	// One after another: each finds what the one before has spoilt.
	for _, tc := range []struct {
		url, want string
		spoil     func() error
	}{
		{"amqp://a:s3cret@[/calc", "the broker's URL: malformed", func() error { return nil }},
		{"amqp://h/calc", "--users: " + filepath.Join(users, "monitor") + ": empty", func() error { return os.Truncate(filepath.Join(users, "monitor"), 0) }},
		{"amqp://h/calc", "--users: open " + filepath.Join(users, "monitor"), func() error { return os.Remove(filepath.Join(users, "monitor")) }},
		{"amqp://h/calc", "401 Unauthorized", func() error { return os.WriteFile(filepath.Join(admin, "password"), []byte("wr0ng"), 0o600) }},
		{"amqp://h/calc", "--admin: open " + filepath.Join(admin, "password"), func() error { return os.Remove(filepath.Join(admin, "password")) }},
	} {
		if err := tc.spoil(); err != nil {
			t.Fatal(err)
		}
		if _, err := declare(t.Context(), tc.url, from); err == nil || !strings.Contains(err.Error(), tc.want) || strings.Contains(err.Error(), "s3cret") {
			t.Errorf("got %v, want %q", err, tc.want)
		}
	}
}

func TestRetryTellsAReasonOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) { // its clock jumps
		starting := errors.New("starting")
		for limit, want := range map[time.Duration]error{time.Minute: nil, 0: starting} {
			told, tries := 0, 0
			err := retry(t.Context(), limit, func(error) { told++ }, func(context.Context) error {
				if tries++; tries < 4 {
					return starting
				}
				return nil
			})
			if err != want || limit > 0 && told != 1 || limit == 0 && told+tries != 1 {
				t.Errorf("for %s: got %v after %d tries, %d times told", limit, err, tries, told)
			}
		}
	})
}
