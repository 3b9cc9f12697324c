package scenario

import (
	"time"

	"warren.example/messaging/event"
)

// Messages come now and then, to somebody who asks for them with basic.get.
//
// Promise: a consumer asks once, and has each message with one request of its own,
// the ack. Control: whoever polls must send a request for each message, and one for
// each look at an empty queue.
var getOrConsume = Scenario{
	Name:    "get-or-consume",
	Topic:   "acknowledgements",
	Broke:   "nothing; messages come now and then",
	Promise: "one request per message, and one to begin",
	Run: takeAll(func(p *Peer, n int) (requests int) {
		worker := p.Take(workQueue, 10, false)
		for range n {
			j := worker.Next(1)[0]
			worker.Work(j)
			p.w.must(j.Ack(), "ack")
		}
		return 1 + n
	}),
	Controls: []Control{{
		Name:   "basic.get",
		Shows:  "a request for every look, most of them for nothing",
		Breaks: fewRequests,
		Run: takeAll(func(p *Peer, n int) (requests int) {
			for taken := 0; taken < n; requests++ {
				d, ok, err := p.Get(workQueue, false)
				p.w.must(err, "get")
				if ok {
					p.got(d)
					p.worked(d)
					p.w.must(d.Ack(false), "ack")
					taken++
					requests++
				}
			}
			return requests
		}),
	}},
}

const fewRequests = "one request per message"

func takeAll(take func(*Peer, int) (requests int)) func(*World) {
	return func(w *World) {
		const sent = 20
		// ARRANGE
		lab := w.Broker.Connect()
		lab.Declare(workQueue, quorum)
		// BREAK  messages come, with pauses
		done := make(chan struct{})
		go func() {
			defer close(done)
			for _, m := range messages(sent) {
				lab.Publish("", workQueue, m)
				time.Sleep(look / 10)
			}
		}()
		requests := take(w.Broker.Connect(), sent)
		<-done
		// OBSERVE
		v := w.Settle()
		// VERDICT
		v.Hit("all messages taken", len(v.With(event.Audited)) == sent)
		v.That(fewRequests, requests <= sent+1, "%d requests for %d messages", requests, sent)
		v.Note("%d requests for %d messages", requests, sent)
	}
}
