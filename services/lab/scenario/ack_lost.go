package scenario

import (
	"strconv"

	"warren.example/lab/link"
	"warren.example/messaging/event"
)

// The connection is reset when a server has written an ack and the broker has
// not read it. AMQP confirms publishes and not acks: the server cannot know.
//
// Promise: the broker delivers again what it has no ack for; the server, on a
// new connection, knows the key, answers from its record and executes nothing;
// the caller drops the second reply. Control: without the idempotency key the
// same reset must execute requests twice, though no process has died.
var ackLost = Scenario{
	Name:    "ack-lost",
	Topic:   "acknowledgements",
	Broke:   "network: reset at an ack that the broker never reads",
	Promise: "one answer, executed once, the duplicate counted",
	Run:     loseAck(nil),
	Controls: []Control{{
		Name:   "no idempotency key",
		Shows:  "the memory is added to twice",
		Breaks: executedOnce,
		Run:    loseAck(Settings{"IDEMPOTENCY": "false"}),
	}},
}

func loseAck(settings Settings) func(*World) {
	return func(w *World) {
		const sent, at = 40, 10
		// ARRANGE  one server behind a link; each request adds 1 to the memory, one at a time, so that each has an ack of its own
		way := w.Link()
		w.Serve(way.Settings().With(settings))
		// BREAK
		way.BreakAt(link.Service, "basic.ack", at, link.Reset)
		w.Load("--count", strconv.Itoa(sent), "--in-flight", "1", "--operations", "memory-add", "--timeout", "15s")
		w.Until("all are answered", passed(event.Answered, sent))
		memory := w.Call("memory-recall")
		// OBSERVE
		v := w.Settle()
		// VERDICT
		added := v.Where(func(l event.Line) bool { return l.Event == event.Publishing && l.Operation == "memory-add" })
		v.Hit("the link broken", way.Broke(1))
		// Answered is enough: a server whose connection ends in that instant may not count the ack as written.
		v.Hit("an answered request delivered again", len(v.Redelivered().And(v.AtLeast(2, event.ReplyConfirmed))) > 0)
		v.Same("every request is answered", v.With(event.Answered).And(added), added)
		v.None(executedOnce, v.AtLeast(2, event.Computed))
		v.That("the memory holds the sum", memory.Result == strconv.Itoa(sent), "it holds %q after %d additions of 1", memory.Result, sent)
	}
}
