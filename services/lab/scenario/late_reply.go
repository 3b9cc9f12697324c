package scenario

import (
	"context"
	"strconv"
	"time"

	"warren.example/lab/ledger"
	"warren.example/lab/link"
	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/fault"
)

// A caller asks one question after the other. The answer to the first comes when
// it has given that up and waits for the second; the answer to the second comes
// twice, because the connection is reset at the server's ack.
//
// Promise: a reply belongs to the question that its correlation-id names; one that
// is late, or comes again, is counted and answers nothing else. Control: a caller
// that takes the next reply in its queue for the answer to its question must be
// wrong from then on.
var lateReply = Scenario{
	Name:    "late-reply",
	Topic:   "request and reply",
	Broke:   "a reply comes late, the next comes twice",
	Promise: "each question has its own answer, or none",
	Run:     replyLate(askOurWay),
	Controls: []Control{{
		Name:   "no correlation-id",
		Shows:  "every answer is another question's",
		Breaks: string(ledger.Agreement),
		Run:    replyLate(askNaively),
	}},
}

// lateAfter is when a caller gives a question up; times the substrate's patience.
const lateAfter = 1500 * time.Millisecond

func replyLate(ask func(*World) (enough func())) func(*World) {
	return func(w *World) {
		// ARRANGE  a server behind a link, with one request in hand at a time; an auditor for what may expire meanwhile
		w.Audit(nil)
		way := w.Link()
		server := w.Serve(way.Settings().With(Settings{"PREFETCH": "1"}))
		way.BreakAt(link.Service, "basic.ack", 2, link.Reset)
		server.HoldAt(fault.AfterWork, 1)
		enough := ask(w)
		// BREAK  the first answer is held past its deadline, and let go when the second question has been asked
		w.Until("the first answer is held", passed(event.Held, 1))
		first := w.ledger.With(event.Held)
		server.HoldAt(fault.BeforeWork, 1)
		w.Until("its caller gave up and has asked again", func(l seen) bool {
			return len(l.With(event.TimedOut).And(first)) == 1 && len(l.With(event.Confirmed)) >= 2
		})
		server.Release()
		w.Until("the second question is in hand, after the first reply", passed(event.Held, 2))
		second := w.ledger.With(event.Held).Minus(first)
		server.Release()
		w.Until("the second has been replied to twice", func(l seen) bool { return len(l.AtLeast(2, event.ReplyConfirmed).And(second)) == 1 })
		// OBSERVE  two questions more, whose answers stand behind all that in the queue
		answered := len(w.ledger.With(event.Answered))
		w.Until("two more are answered", passed(event.Answered, answered+2))
		enough()
		v := w.Settle()
		// VERDICT
		v.Hit("the link broken", way.Broke(1))
		v.Hit("a reply to a question given up", len(v.With(event.TimedOut).And(v.With(event.ReplyConfirmed)).And(first)) == 1)
		v.Same("the late reply is counted", v.With(event.LateReply).And(first), first)
		v.Same("the second reply is counted", v.With(event.DuplicateReply).And(second), second)
		v.None("what was given up is not answered", v.With(event.TimedOut).And(v.With(event.Answered)))
	}
}

// askOurWay asks as our client does.
func askOurWay(w *World) (enough func()) {
	return w.Load("--endless", "--in-flight", "1", "--timeout", (w.slow * lateAfter).String()).Enough
}

// askNaively takes what comes next for the answer.
func askNaively(w *World) (enough func()) {
	caller, queue, key := w.Broker.Caller(contract.UserClient, contract.ClientReplyQueue)
	replies, err := caller.Consume(queue, "", true, true, false, false, nil)
	w.must(err, "consume %s", queue)
	asking, stop := context.WithCancel(w.ctx)
	ended := make(chan struct{})
	caller.readers.Go(func() {
		defer close(ended)
		for n := 1; asking.Err() == nil; n++ {
			question := request(contract.Add, strconv.Itoa(n), "1")
			question.ReplyTo = key
			caller.Publish(contract.RequestExchange, contract.RequestKey, question)
			outcome := event.Line{Event: event.TimedOut, Request: question.MessageId}
			select {
			case d, ok := <-replies:
				if !ok {
					return // the lab hangs up
				}
				reply, _ := contract.DecodeReply(&d)
				outcome.Event, outcome.Result = event.Answered, reply.Result
			case <-time.After(w.slow * lateAfter):
			}
			caller.events.Record(outcome)
		}
	})
	return func() { stop(); <-ended }
}
