package vhost

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
)

// A password is in no error, whatever is wrong with its URL.
func TestRedact(t *testing.T) {
	for _, url := range []string{
		"amqp://user:S3cr3t%zz@127.0.0.1:1/v",
		"amqp://user:S3cr3t@127.0.0.1:1/v",
		"amqp://user:S3cr3t@127.0.0.1:notaport/v",
		"http://user:S3cr3t@127.0.0.1:1/v",
		"user:S3cr3t@127.0.0.1",
		"amqp://user:S3cr3t@host with spaces/",
	} {
		_, err := Dial(url)
		if got := message(err); got == "" || strings.Contains(got, "S3cr3t") {
			t.Errorf("Dial %s: %q, want an error without the password", url, got)
		}
	}
}

// The client library would log in as guest.
func TestDialWantsAUser(t *testing.T) {
	_, err := Dial("amqp://127.0.0.1:1/v")
	if got := message(err); !strings.Contains(got, "no user in the URL") {
		t.Errorf("Dial without a user: %q, want it refused", got)
	}
}

// A virtual host that a busy cluster could not start is made anew, not for ever;
// and a refusal is no reason to delete anything.
func TestCreate(t *testing.T) {
	for name, tc := range map[string]struct {
		answers []int // to the first requests that make it
		want    []string
		status  int
	}{
		"at once":        {nil, []string{"PUT", "permit"}, 0},
		"when it is not": {[]int{500}, []string{"PUT", "DELETE", "PUT", "permit"}, 0},
		"never":          {[]int{500, 500, 500}, []string{"PUT", "DELETE", "PUT", "DELETE", "PUT"}, 500},
		"refused":        {[]int{401}, []string{"PUT"}, 401},
	} {
		t.Run(name, func(t *testing.T) {
			var asked []string
			broker := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if strings.HasPrefix(r.URL.Path, "/api/permissions/") {
					asked = append(asked, "permit")
					return
				}
				asked = append(asked, r.Method)
				if r.Method == http.MethodPut && len(tc.answers) > 0 {
					w.WriteHeader(tc.answers[0])
					tc.answers = tc.answers[1:]
					fmt.Fprint(w, "no_such_vhost")
				}
			}))
			defer broker.Close()
			err := API{URL: broker.URL}.Create(t.Context(), "room")
			if Status(err) != tc.status || !slices.Equal(asked, tc.want) {
				t.Errorf("asked %q, got %v; want %q and status %d", asked, err, tc.want, tc.status)
			}
		})
	}
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
