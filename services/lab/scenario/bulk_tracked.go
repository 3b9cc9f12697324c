package scenario

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/ledger"
	"warren.example/lab/link"
	"warren.example/messaging/event"
	"warren.example/messaging/session"
)

// A bulk of messages is published without waiting in between. Some cannot be
// routed, some are refused, and its connection is cut twice: once when a confirm
// is on its way, so that its message is in the queue and nobody is told, and once
// when a message is on its way, which is then in no queue. The publisher sees the
// same of both.
//
// Promise: a session of ours tells what became of each message: confirmed,
// returned, nacked, unknown or not written; publishing again what is unknown or
// not written loses none, and only unknown ones come twice. Control: whoever only
// counts acks must publish the wrong ones again, and believe in others that are
// nowhere.
var bulkTracked = Scenario{
	Name:    "bulk-tracked",
	Topic:   "publishing",
	Broke:   "a bulk of messages, in four ways",
	Promise: "each has a status of its own, none is lost",
	Run: publishBulk(func(b Broker) *Sender {
		return b.Sender(session.PublisherOptions{Exchange: failExchange, Window: 16})
	}),
	Controls: []Control{{
		Name:   "counting acks",
		Shows:  "57 of 60 acked: the wrong three are sent again",
		Breaks: string(ledger.NoLoss),
		Run:    publishBulk(func(b Broker) *Sender { return b.BelievingSender(true, countAcks) }),
	}},
}

func publishBulk(begin func(Broker) *Sender) func(*World) {
	return func(w *World) {
		const third, each = 60, 3
		// ARRANGE  a bulk in which some messages have no queue, and others a full one
		lab := w.Broker.Connect()
		lab.DeclareFailing()
		sender := begin(w.Broker)
		bulk := toWork(3 * third)
		for i := range each {
			bulk[third/3+i].Key = "nobody"
			bulk[third/2+i].Key = fullQueue
		}
		// BREAK
		fates := sender.Write(bulk[:third]...)()
		sender.BreakAt(link.Broker, "basic.ack", 1, link.Reset)
		maps.Copy(fates, sender.Write(bulk[third:2*third]...)())
		sender.BreakAt(link.Service, "basic.publish", third/2, link.Reset)
		maps.Copy(fates, sender.Write(bulk[2*third:]...)())
		// OBSERVE
		sender.WriteAgain(bulk, fates)
		lab.Drain(workQueue)
		v := w.Settle()
		// VERDICT
		returned, nacked, unknown := with(fates, session.Returned), with(fates, session.Nacked), with(fates, session.Unknown)
		twice := v.AtLeast(2, event.Delivered)
		v.Hit("an unknown message that was there", len(twice) > 0)
		v.Hit("an unknown message that was not", len(v.Late().And(unknown)) > 0)
		v.Count("messages returned", len(returned), each)
		v.Count("messages nacked", len(nacked), each)
		v.None("only unknown ones come twice", twice.Minus(unknown))
		v.Same("all others arrive", v.With(event.Audited), v.With(event.Publishing).Minus(returned, nacked))
		v.Note("of %d at first %s; %d came twice", len(bulk), tally(fates), len(twice))
	}
}

// with is the messages with this outcome.
func with(fates map[string]session.Outcome, want session.Outcome) ledger.Set {
	ids := idsOf(fates)
	for id, fate := range fates {
		if fate != want {
			delete(ids, id)
		}
	}
	return ids
}

// tally is "120 confirmed, 3 returned".
func tally(fates map[string]session.Outcome) string {
	count := map[session.Outcome]int{}
	for _, fate := range fates {
		count[fate]++
	}
	var words []string
	for _, o := range slices.Sorted(maps.Keys(count)) {
		words = append(words, fmt.Sprintf("%d %s", count[o], o))
	}
	return strings.Join(words, ", ")
}

// toWork are messages for the work queue, by way of an exchange.
func toWork(n int) []session.Message {
	var all []session.Message
	for _, m := range messages(n) {
		all = append(all, session.Message{Exchange: failExchange, Key: workQueue, Mandatory: true, Publishing: m})
	}
	return all
}

// DeclareFailing makes an exchange with a queue that takes messages, and one that
// is full from the start.
func (p *Peer) DeclareFailing() {
	p.DeclareExchange(failExchange, amqp.ExchangeDirect, nil)
	p.Declare(workQueue, quorum)
	p.Declare(fullQueue, amqp.Table{"x-queue-type": "classic", "x-max-length": int64(0), "x-overflow": "reject-publish"})
	for _, queue := range []string{workQueue, fullQueue} {
		p.w.must(p.QueueBind(queue, queue, failExchange, false, nil), "bind %s", queue)
	}
}
