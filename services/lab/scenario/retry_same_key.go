package scenario

import (
	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/fault"
)

// A client dies when the server has added to the memory and not yet replied.
// Whoever started it cannot know whether anything was done, and starts it again.
//
// Promise: under the same message-id the memory is added to once, and the second
// call gets the answer that the first would have had; the id stands for that one
// request, so another body under it is refused. Control: a retry under a new id
// is a new request, and must be added a second time.
var retrySameKey = Scenario{
	Name:    "retry-same-key",
	Topic:   "request and reply",
	Broke:   "client: SIGKILL before its reply; a retry",
	Promise: "executed once, and the retry is answered",
	Run:     retry(func(id string) []string { return []string{"--id", id} }),
	Controls: []Control{{
		Name:   "a new id",
		Shows:  "the memory is added to twice",
		Breaks: addedOnce,
		Run:    retry(func(string) []string { return nil }),
	}},
}

const addedOnce = "added once"

func retry(flags func(id string) []string) func(*World) {
	return func(w *World) {
		// ARRANGE  a server that will hold the answer when the memory is changed
		server := w.Serve(nil)
		server.HoldAt(fault.AfterWork, 1)
		client := w.Load("--count", "1", "--operations", "memory-add", "--timeout", "1m")
		w.Until("the memory is changed, and the answer held", passed(event.Held, 1))
		id := w.ledger.With(event.Held).IDs()[0]
		// BREAK
		client.Kill()
		server.Release()
		w.Until("the reply is returned, and on record", passed(event.Orphaned, 1))
		again := w.Call(append(flags(id), "memory-add", "1")...)
		other := w.Call("--id", id, "memory-add", "2")
		memory := w.Call("memory-recall")
		// OBSERVE
		v := w.Settle()
		// VERDICT
		v.Hit("a reply without a caller", v.With(event.Orphaned).Has(id))
		v.That(addedOnce, memory.Result == "1", "the memory holds %q after an addition of 1 and its retry, which said %s", memory.Result, again)
		v.That("the retry is answered", again.Outcome == "answered", "%s", again)
		v.That("another body is refused", other.Code() == contract.IDConflict, "%s", other)
	}
}
