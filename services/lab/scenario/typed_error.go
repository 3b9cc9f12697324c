package scenario

import (
	"strings"

	"warren.example/messaging/contract"
	"warren.example/messaging/event"
)

// Requests that cannot have a result, and one that makes the server panic.
//
// Promise: each caller gets a typed error that says why; of the panic no more
// than INTERNAL; and the server goes on serving. Control: a handler without
// recover must take the whole server down.
var typedError = Scenario{
	Name:    "typed-error",
	Topic:   "request and reply",
	Broke:   "requests without a result; a panic in the server",
	Promise: "typed errors, no stack, the server stays up",
	Run:     askForErrors(nil),
	Controls: []Control{{
		Name:   "no recover",
		Shows:  "one request takes the server down",
		Breaks: staysUp,
		Run:    askForErrors(Settings{"RECOVER": "false"}),
	}},
}

const staysUp = "the server stays up"

func askForErrors(settings Settings) func(*World) {
	return func(w *World) {
		// ARRANGE  a server with a bug: it panics on every negate
		w.Audit(nil)
		server := w.Serve(settings.With(Settings{"PANIC_ON": "negate"}))
		// BREAK
		got := map[contract.Code]Outcome{
			contract.DivideByZero:    w.Call("divide", "1", "0"),
			contract.Undefined:       w.Call("sqrt", "-1"),
			contract.InvalidArgument: w.Call("add", "one", "2"),
			contract.Internal:        w.Call("--timeout", "4s", "negate", "5"),
		}
		after := w.Call("add", "0.1", "0.2")
		// OBSERVE
		v := w.Settle()
		// VERDICT
		for want, o := range got {
			v.That("a typed error", o.Outcome == "refused" && o.Code() == want, "want %s, got %s", want, o)
			v.That("no stack", o.Error == nil || !strings.Contains(o.Error.Message, "goroutine") && !strings.Contains(o.Error.Message, ".go:"), "%s", o)
		}
		v.That(staysUp, server.Restarts() == 0 && after.Result == "0.3", "%d restarts; then 0.1 + 0.2 was %s", server.Restarts(), after)
		v.Count("each is refused once", len(v.With(event.Refused)), len(got))
	}
}
