package main

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"warren.example/messaging/contract"
)

func TestOperandsMayBeNegative(t *testing.T) {
	for name, args := range map[string]string{
		"as they are":          "add -1 -2.5",
		"after two dashes":     "add -- -1 -2.5",
		"behind flags":         "--timeout 5s add -1 -2.5",
		"behind all, by habit": "--timeout 5s -- add -1 -2.5",
	} {
		t.Run(name, func(t *testing.T) {
			cmd := new(client).callCommand()
			if err := cmd.ParseFlags(strings.Fields(args)); err != nil {
				t.Fatal(err)
			}
			got, err := parseRequest(cmd.Flags().Args())
			if err != nil || got.Operation != contract.Add || !slices.Equal(got.Operands, []string{"-1", "-2.5"}) {
				t.Errorf("got %+v, %v; want add -1 -2.5", got, err)
			}
		})
	}
}

// Whether an operand is a number is the server's to say.
func TestMalformedNumbersAreNotTheClientsBusiness(t *testing.T) {
	if _, err := parseRequest([]string{"add", "one", "zwei"}); err != nil {
		t.Errorf("got %v, want no error", err)
	}
}

func TestCallFlagsReachTheCall(t *testing.T) {
	flags := callFlags{timeout: time.Second, ifNoServer: "fail", noMandatory: true, noExpiry: true}
	got := flags.call("R", contract.Request{Operation: contract.MemoryRecall})
	if !got.FailIfNoServer || !got.NoMandatory || !got.NoExpiration || got.ID != "R" || got.WaitForSession {
		t.Errorf("got %+v", got)
	}
	flags = callFlags{ifNoServer: "wait"}
	if got := flags.call("R", contract.Request{}); got.FailIfNoServer || got.NoMandatory || got.NoExpiration {
		t.Errorf("got %+v, want every safety in place", got)
	}
}

// Each lesson is one flag, and takes away one safety.
func TestLessonsAreSeparate(t *testing.T) {
	for _, l := range lessons {
		cmd := new(client).callCommand()
		if err := cmd.ParseFlags([]string{"--" + l.name}); err != nil {
			t.Fatal(err)
		}
		var off callFlags
		*l.flag(&off) = true
		if n := len(slices.DeleteFunc([]bool{off.noMandatory, off.noExpiry, off.noRetry}, func(b bool) bool { return !b })); n != 1 {
			t.Errorf("--%s sets %d switches, want 1", l.name, n)
		}
	}
}

// A broker that is not there is one line, at once, without the password.
func TestUnreachableBrokerIsOneLineAtOnce(t *testing.T) {
	settings(t, nowhere)
	began := time.Now()
	status, stdout, stderr := cli(t.Context(), "call", "add", "1", "2")
	if status != unavailable.Status || stdout != "" || !strings.HasPrefix(stderr, "UNAVAILABLE: ") || strings.Count(stderr, "\n") != 1 {
		t.Errorf("got status %d, stdout %q, stderr %q", status, stdout, stderr)
	}
	if strings.Contains(stderr, "s3cret") || !strings.Contains(stderr, "127.0.0.1:1 as calc-client") {
		t.Errorf("got %q, want the address and the user, and no password", stderr)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("took %s of a timeout of 10s, want at once", took)
	}
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("no space left on device") }

// A result that could not be written is no success.
func TestOutputThatCannotBeWritten(t *testing.T) {
	var stderr bytes.Buffer
	c := client{stdout: full{}, stderr: &stderr, end: answered}
	c.written(c.printCall("text", printed{}, contract.Reply{Result: "3"}, nil))
	if c.end.Status != failed.Status || stderr.String() != "client: write output: no space left on device\n" {
		t.Errorf("got status %d, %q", c.end.Status, &stderr)
	}
}
