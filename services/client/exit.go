package main

import (
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"

	"warren.example/messaging/contract"
	"warren.example/messaging/rpc"
)

// An ending is one way in which a call, or this process, ends.
type ending struct {
	Name    string // in JSON, metrics and summaries
	Status  int    // of the process
	Meaning string // for the help
	is      error  // what the rpc package calls it
	next    string // what the caller can do about it
}

// errInterrupted is the error of a call that a signal cut short.
var errInterrupted = errors.New("interrupted")

// The endings. Statuses of calls begin at 10: Go itself exits with 2 after a
// panic, and a script must not take that for an answer.
var (
	answered = ending{Name: "answered", Status: 0,
		Meaning: "call: the result is printed; load: every call ended as it should"}
	failed = ending{Name: "failed", Status: 1, next: again,
		Meaning: "load: some call failed, got a wrong result or an unexpected refusal, or none was sent; both: output could not be written"}
	refused = ending{Name: "refused", Status: 10,
		Meaning: "the server answered with an error, printed as CODE: message"}
	unavailable = ending{Name: "unavailable", Status: 11, is: rpc.ErrUnavailable, next: "Check the broker and WARREN_AMQP_*. " + again,
		Meaning: "the broker cannot be reached, refuses the login, or blocks publishers; not executed"}
	noServer = ending{Name: "no-server", Status: 12, is: rpc.ErrNoServer, next: "Start a server, or wait for one with --if-no-server wait. " + again,
		Meaning: "nobody would take the request; not executed"}
	overloaded = ending{Name: "overloaded", Status: 13, is: rpc.ErrOverloaded, next: "Give the servers time. " + again,
		Meaning: "the broker refused the request, mostly because its queue is full"}
	deadline = ending{Name: "deadline", Status: 14, is: rpc.ErrDeadline, next: again,
		Meaning: "no answer within --timeout; may have been executed"}
	unknown = ending{Name: "unknown", Status: 15, is: rpc.ErrUnknown, next: again,
		Meaning: "the connection broke before the answer and --no-retry forbade to publish again, or a load was cut short; may have been executed"}
	usage = ending{Name: "usage", Status: 64,
		Meaning: "wrong command line or setting; nothing was sent"}
	interrupted = ending{Name: "interrupted", Status: 130, is: errInterrupted, next: again,
		Meaning: "call: a signal came before the answer; may have been executed"}
)

// again stands where a failure says how to retry.
const again = "{again}"

// endings is the only table of exit statuses. Its order matters: a call that
// waited for the broker until its deadline is unavailable, not late.
var endings = []ending{answered, failed, refused, unavailable, noServer, overloaded, deadline, unknown, usage, interrupted}

// endingOf finds how a call ended.
func endingOf(err error) ending {
	if err == nil {
		return answered
	}
	if e := (*contract.Error)(nil); errors.As(err, &e) {
		return refused
	}
	for _, e := range endings {
		if e.is != nil && errors.Is(err, e.is) {
			return e
		}
	}
	return failed
}

// code is the ending as an error code, in the spelling of the server's.
func (e ending) code() string { return strings.ToUpper(strings.ReplaceAll(e.Name, "-", "_")) }

// A failure is what a caller may conclude from the error of a call.
type failure struct {
	end             ending
	cause           contract.Error // the server's, or our own in the same form
	mayHaveExecuted bool
	published       bool // at least once
}

func failureOf(err error) failure {
	f := failure{end: endingOf(err)}
	var refusal *contract.Error
	var call *rpc.CallError
	switch {
	case errors.As(err, &refusal):
		f.cause, f.mayHaveExecuted, f.published = *refusal, mayHaveExecuted(refusal.Code), true
		return f
	case errors.As(err, &call):
		f.mayHaveExecuted, f.published, err = call.MayHaveExecuted, call.Attempts > 0, call.Err
	}
	// Every failure of ours may be retried under the same id: that is what the
	// idempotency key is for.
	f.cause = contract.Error{Code: contract.Code(f.end.code()), Message: err.Error(), Retryable: true}
	return f
}

// mayHaveExecuted reads a refusal. A code that we do not know yet may mean anything.
func mayHaveExecuted(c contract.Code) bool {
	switch c {
	case contract.InvalidArgument, contract.TooMuchWork, contract.Unimplemented, contract.IDConflict, contract.Malformed:
		return false
	}
	return true // also DeadlineExceeded: only the server that says so did not
}

// explain is the failure in one line: what happened, whether the request may
// have been executed, and what to do next.
func (f failure) explain(id string) string {
	executed, next := "It was not executed.", f.end.next
	if f.mayHaveExecuted {
		executed = "It may have been executed."
	}
	switch f.cause.Code {
	case contract.DivideByZero, contract.Undefined, contract.Overflow, contract.Underflow:
		executed = "It was evaluated and has no result."
	}
	if f.end.Status == refused.Status {
		switch {
		case f.cause.Retryable:
			next = again
		case f.cause.Code == contract.IDConflict:
			next = "The id belongs to another request: choose another --id, or none."
		default:
			next = "The same request will be refused again."
		}
	}
	retry := "Retrying is safe."
	if f.mayHaveExecuted { // under another id it would be another request
		retry = "Retrying with --id " + id + " is safe."
	}
	return fmt.Sprintf("%s. %s %s", strings.TrimSuffix(f.cause.Error(), "."), executed, strings.ReplaceAll(next, again, retry))
}

func statusHelp() string {
	var b strings.Builder
	b.WriteString("Exit statuses:\n")
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	for _, e := range endings {
		fmt.Fprintf(w, "  %d\t%s\t%s\n", e.Status, e.Name, e.Meaning)
	}
	w.Flush()
	return b.String()
}
