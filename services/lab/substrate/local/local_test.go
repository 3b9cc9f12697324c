package local

import (
	"context"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestOptions(t *testing.T) {
	for name, tc := range map[string]struct {
		o    Options
		want string // part of the error; empty: none
	}{
		"nothing is said":        {Options{}, ""},
		"three nodes":            {Options{Nodes: 3}, ""},
		"two nodes":              {Options{Nodes: 2}, "--nodes 2: want 1, or 3"},
		"another kind of broker": {Options{Broker: "cloud"}, "--broker cloud: want"},
		"url without a URL":      {Options{Broker: "url"}, "needs --amqp-url"},
		"a URL is enough":        {Options{AMQPURL: "amqp://u:p@h/v"}, ""},
		"URL and process":        {Options{Broker: "process", AMQPURL: "amqp://u:p@h/v"}, "contradicts --amqp-url"},
		"management alone":       {Options{ManagementURL: "http://u:p@h"}, "needs --amqp-url"},
		"nodes of others":        {Options{AMQPURL: "amqp://u:p@h/v", Nodes: 3}, "--nodes 3: not with --amqp-url"},
	} {
		err := tc.o.Validate()
		if got := message(err); (tc.want == "") != (err == nil) || !strings.Contains(got, tc.want) {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}

func TestRoomNames(t *testing.T) {
	s := &Substrate{folder: &folder{path: t.TempDir()}}
	for name, suffix := range map[string]string{
		"killed-before-ack":      "-7-killed-before-ack",
		"Test/control: auto ack": "-7-test-control-auto-ack",
	} {
		if got := newRoom(s, 7, name, nil).vhost; !strings.HasSuffix(got, suffix) {
			t.Errorf("room %q: virtual host %s, want …%s", name, got, suffix)
		}
	}
	if got := newRoom(s, 7, strings.Repeat("long", 40), nil).vhost; len(got) > 64 {
		t.Errorf("virtual host of %d characters, want at most 64: it names the run on every event", len(got))
	}
}

// A password is in no error, whatever is wrong with its URL.
func TestUseBrokerRedacts(t *testing.T) {
	for _, url := range []string{
		"amqp://user:S3cr3t%zz@127.0.0.1:1/v",
		"amqp://user:S3cr3t@127.0.0.1:1/v",
		"amqp://user:S3cr3t@host with spaces/",
	} {
		_, err := useBroker(t.Context(), url, "")
		if got := message(err); got == "" || strings.Contains(got, "S3cr3t") {
			t.Errorf("useBroker %s: %q, want an error without the password", url, got)
		}
	}
}

// witness kills no node while another runs.
type witness struct {
	processes
	t     *testing.T
	nodes []*node
}

func (w *witness) signal(n *node, s syscall.Signal) error {
	for _, other := range w.nodes {
		ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
		defer cancel()
		if s == syscall.SIGKILL && stopped(ctx, other.child.pid()) != nil {
			w.t.Errorf("%s is killed while %s runs: its clients are served there", n.name, other.name)
		}
	}
	return w.processes.signal(n, s)
}

func TestCrashAllIsAtOnce(t *testing.T) {
	w := &witness{t: t}
	for _, name := range []string{"node0", "node1", "node2"} {
		c, err := spawn(&folder{path: t.TempDir()}, exec.Command("sleep", "60"), syscall.SIGKILL)
		if err != nil {
			t.Fatal(err)
		}
		defer c.kill()
		w.nodes = append(w.nodes, &node{name: name, child: c})
	}
	b := &Broker{launch: w, nodes: w.nodes}
	if err := b.CrashAll(t.Context()); err != nil {
		t.Error(err)
	}
	for _, n := range w.nodes {
		if !n.child.gone() {
			t.Errorf("%s lives", n.name)
		}
	}
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
