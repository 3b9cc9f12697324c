package vhost

import (
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

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
