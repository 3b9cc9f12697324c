package scenario

import (
	"strconv"

	"warren.example/messaging/event"
	"warren.example/messaging/fault"
)

// A server dies between a reply and the ack of its request. The request comes
// again though the caller has its answer.
//
// Promise: the caller gets one answer, the second reply is counted and dropped,
// and an operation that is not idempotent is executed once. Control: without
// the idempotency key the same kill must execute it twice.
var killedAfterReply = Scenario{
	Name:    "killed-after-reply",
	Topic:   "request and reply",
	Broke:   "server: SIGKILL after the reply, before the ack",
	Promise: "one answer, executed once, the duplicate counted",
	Run:     killAfterReply(nil),
	Controls: []Control{{
		Name:   "no idempotency key",
		Shows:  "the memory is added to twice",
		Breaks: executedOnce,
		Run:    killAfterReply(Settings{"IDEMPOTENCY": "false"}),
	}},
}

const executedOnce = "executed once"

func killAfterReply(settings Settings) func(*World) {
	return func(w *World) {
		const sent = 40
		// ARRANGE  one server; each request adds 1 to the memory
		server := w.Serve(settings)
		// BREAK  it dies when reply 20 is confirmed and its request not yet acked
		server.CrashAt(fault.AfterReply, 20)
		w.Load("--count", strconv.Itoa(sent), "--in-flight", "5", "--operations", "memory-add", "--timeout", "15s")
		w.Until("all are answered", passed(event.Answered, sent))
		memory := w.Call("memory-recall")
		// OBSERVE  until nothing comes any more
		v := w.Settle()
		// VERDICT
		added := v.Where(func(l event.Line) bool { return l.Event == event.Publishing && l.Operation == "memory-add" })
		v.Hit("a request delivered again", len(v.Redelivered()) > 0)
		v.Hit("a second reply to one request", len(v.With(event.DuplicateReply)) > 0)
		v.Same("every request is answered", v.With(event.Answered).And(added), added)
		v.None(executedOnce, v.AtLeast(2, event.Computed))
		v.That("the memory holds the sum", memory.Result == strconv.Itoa(sent), "it holds %q after %d additions of 1", memory.Result, sent)
		v.None("a duplicate was answered first", v.With(event.DuplicateReply).Minus(v.With(event.Answered)))
	}
}
