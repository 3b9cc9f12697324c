package main

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"warren.example/messaging/contract"
	"warren.example/messaging/rpc"
)

func TestStatusesAreDistinct(t *testing.T) {
	seen := map[int]string{}
	for _, e := range endings {
		if other, taken := seen[e.Status]; taken {
			t.Errorf("status %d is both %s and %s", e.Status, other, e.Name)
		}
		seen[e.Status] = e.Name
		if e.Status == 2 {
			t.Errorf("%s has status 2, which is also Go's after a panic", e.Name)
		}
	}
}

// What a person and a program see of each ending: the exit status, the line,
// and the JSON object.
func TestEveryEndingIsExplained(t *testing.T) {
	failed := func(err error, attempts int, maybe bool) error {
		return &rpc.CallError{Request: "R", Attempts: attempts, MayHaveExecuted: maybe, Err: err}
	}
	for name, tc := range map[string]struct {
		err    error
		status int
		text   string
		json   string
	}{
		"result": {nil, 0, "0.3\n",
			`{"request":"R","result":"0.3","outcome":"answered","mayHaveExecuted":true,"attempts":1,"milliseconds":1.5}`},
		"refused": {&contract.Error{Code: contract.DivideByZero, Message: "1 / 0"}, 10,
			"DIVIDE_BY_ZERO: 1 / 0. It was evaluated and has no result. The same request will be refused again.\n",
			`{"request":"R","error":{"code":"DIVIDE_BY_ZERO","message":"1 / 0","retryable":false},"outcome":"refused","mayHaveExecuted":true,"attempts":1,"milliseconds":1.5}`},
		"invalid": {&contract.Error{Code: contract.InvalidArgument, Message: `operand 1: "x" is no number.`}, 10,
			`INVALID_ARGUMENT: operand 1: "x" is no number. It was not executed. The same request will be refused again.` + "\n",
			`{"request":"R","error":{"code":"INVALID_ARGUMENT","message":"operand 1: \"x\" is no number.","retryable":false},"outcome":"refused","mayHaveExecuted":false,"attempts":1,"milliseconds":1.5}`},
		"internal": {&contract.Error{Code: contract.Internal, Message: "panic", Retryable: true}, 10,
			"INTERNAL: panic. It may have been executed. Retrying with --id R is safe.\n",
			`{"request":"R","error":{"code":"INTERNAL","message":"panic","retryable":true},"outcome":"refused","mayHaveExecuted":true,"attempts":1,"milliseconds":1.5}`},
		"id conflict": {&contract.Error{Code: contract.IDConflict, Message: "another body"}, 10,
			"ID_CONFLICT: another body. It was not executed. The id belongs to another request: choose another --id, or none.\n",
			`{"request":"R","error":{"code":"ID_CONFLICT","message":"another body","retryable":false},"outcome":"refused","mayHaveExecuted":false,"attempts":1,"milliseconds":1.5}`},
		"unavailable": {failed(fmt.Errorf("%w: refused", rpc.ErrUnavailable), 0, false), 11,
			"UNAVAILABLE: the broker is away or blocks publishers: refused. It was not executed. Check the broker and WARREN_AMQP_*. Retrying is safe.\n",
			`{"request":"R","error":{"code":"UNAVAILABLE","message":"the broker is away or blocks publishers: refused","retryable":true},"outcome":"unavailable","mayHaveExecuted":false,"attempts":1,"milliseconds":1.5}`},
		"unavailable until the deadline": {failed(fmt.Errorf("%w: %w", rpc.ErrUnavailable, rpc.ErrDeadline), 0, false), 11,
			"UNAVAILABLE: the broker is away or blocks publishers: no reply before the deadline. It was not executed. Check the broker and WARREN_AMQP_*. Retrying is safe.\n",
			`{"request":"R","error":{"code":"UNAVAILABLE","message":"the broker is away or blocks publishers: no reply before the deadline","retryable":true},"outcome":"unavailable","mayHaveExecuted":false,"attempts":1,"milliseconds":1.5}`},
		"no server": {failed(rpc.ErrNoServer, 1, false), 12,
			"NO_SERVER: no server takes such requests. It was not executed. Start a server, or wait for one with --if-no-server wait. Retrying is safe.\n",
			`{"request":"R","error":{"code":"NO_SERVER","message":"no server takes such requests","retryable":true},"outcome":"no-server","mayHaveExecuted":false,"attempts":1,"milliseconds":1.5}`},
		"overloaded": {failed(rpc.ErrOverloaded, 4, true), 13,
			"OVERLOADED: the broker refuses more requests. It may have been executed. Give the servers time. Retrying with --id R is safe.\n",
			`{"request":"R","error":{"code":"OVERLOADED","message":"the broker refuses more requests","retryable":true},"outcome":"overloaded","mayHaveExecuted":true,"attempts":1,"milliseconds":1.5}`},
		"deadline": {failed(rpc.ErrDeadline, 1, true), 14,
			"DEADLINE: no reply before the deadline. It may have been executed. Retrying with --id R is safe.\n",
			`{"request":"R","error":{"code":"DEADLINE","message":"no reply before the deadline","retryable":true},"outcome":"deadline","mayHaveExecuted":true,"attempts":1,"milliseconds":1.5}`},
		"unknown": {failed(rpc.ErrUnknown, 1, true), 15,
			"UNKNOWN: nobody knows what became of the request. It may have been executed. Retrying with --id R is safe.\n",
			`{"request":"R","error":{"code":"UNKNOWN","message":"nobody knows what became of the request","retryable":true},"outcome":"unknown","mayHaveExecuted":true,"attempts":1,"milliseconds":1.5}`},
		"interrupted": {failed(errInterrupted, 1, true), 130,
			"INTERRUPTED: interrupted. It may have been executed. Retrying with --id R is safe.\n",
			`{"request":"R","error":{"code":"INTERRUPTED","message":"interrupted","retryable":true},"outcome":"interrupted","mayHaveExecuted":true,"attempts":1,"milliseconds":1.5}`},
		"anything else": {errors.New("surprise"), 1,
			"FAILED: surprise. It was not executed. Retrying is safe.\n",
			`{"request":"R","error":{"code":"FAILED","message":"surprise","retryable":true},"outcome":"failed","mayHaveExecuted":false,"attempts":1,"milliseconds":1.5}`},
	} {
		t.Run(name, func(t *testing.T) {
			if got := endingOf(tc.err).Status; got != tc.status {
				t.Errorf("got status %d, want %d", got, tc.status)
			}
			for output, want := range map[string]string{"text": tc.text, "json": tc.json + "\n"} {
				var stdout, stderr bytes.Buffer
				c := client{stdout: &stdout, stderr: &stderr}
				if err := c.printCall(output, printed{Request: "R", Attempts: 1, Milliseconds: 1.5}, contract.Reply{Result: "0.3"}, tc.err); err != nil {
					t.Fatal(err)
				}
				got, silent := &stdout, &stderr
				if output == "text" && tc.err != nil {
					got, silent = silent, got
				}
				if got.String() != want || silent.Len() != 0 {
					t.Errorf("%s:\n got %q\nwant %q\nand %q on the other stream, want nothing", output, got, want, silent)
				}
			}
		})
	}
}
