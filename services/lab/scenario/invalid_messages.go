package scenario

import (
	"bytes"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/ledger"
	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/topology"
)

// A stranger publishes what no server can read, in sixteen ways.
//
// Promise: each is dead-lettered, and answered first where its reply-to is
// genuine; none is executed, none comes again and again; a good request among
// them is answered. Control: a server that requeues what it cannot read, on a
// queue without a delivery limit, must see the same messages for ever.
var invalidMessages = Scenario{
	Name:    "invalid-messages",
	Topic:   "dead letters",
	Broke:   "sixteen kinds of unreadable requests",
	Promise: "each answered or dead-lettered, none run or looping",
	Run:     publishRubbish(nil),
	Controls: []Control{{
		Name:   "requeue, no limit",
		Shows:  "the broker delivers the same rubbish for ever",
		Breaks: noLoop,
		Change: noDeliveryLimit,
		Run:    publishRubbish(Settings{"ON_INVALID": "requeue"}),
	}},
}

const noLoop = "none comes again and again"

// rubbish is how a good request is spoilt, and with which code the server
// answers; "" where it cannot know whom to answer.
var rubbish = []struct {
	kind  string
	code  contract.Code
	spoil func(*amqp.Publishing)
}{
	{"not JSON", contract.Malformed, func(p *amqp.Publishing) { p.Body = []byte("two plus two") }},
	{"JSON of another shape", contract.Malformed, func(p *amqp.Publishing) { p.Body = []byte(`["add",1,2]`) }},
	{"unknown field", contract.Malformed, func(p *amqp.Publishing) { p.Body = []byte(`{"operation":"add","operands":["1","2"],"urgent":true}`) }},
	{"field given twice", contract.Malformed, func(p *amqp.Publishing) {
		p.Body = []byte(`{"operation":"add","operation":"divide","operands":["1","2"]}`)
	}},
	{"something after the end", contract.Malformed, func(p *amqp.Publishing) { p.Body = append(p.Body, "{}"...) }},
	{"no operation", contract.Malformed, func(p *amqp.Publishing) { p.Body = []byte(`{"operands":["1","2"]}`) }},
	{"a number of 65 characters", contract.Malformed, func(p *amqp.Publishing) {
		p.Body = contract.Encode(contract.Request{Operation: contract.Add, Operands: []string{strings.Repeat("9", contract.MaxOperandLength+1), "1"}})
	}},
	{"too large", contract.Malformed, func(p *amqp.Publishing) { p.Body = bytes.Repeat([]byte(" "), contract.MaxBody+1) }},
	{"wrong content-type", contract.Malformed, func(p *amqp.Publishing) { p.ContentType = "text/plain" }},
	{"compressed", contract.Malformed, func(p *amqp.Publishing) { p.ContentEncoding = "gzip" }},
	{"another version", contract.Unimplemented, func(p *amqp.Publishing) { p.Type = "calc.request.v2" }},
	{"no deadline", contract.Malformed, func(p *amqp.Publishing) { p.Headers = nil }},
	{"no reply-to", "", func(p *amqp.Publishing) { p.ReplyTo = "" }},
	{"another user's reply-to", "", func(p *amqp.Publishing) { p.ReplyTo = contract.ReplyKey(contract.UserAuditor, "x") }},
	{"a wildcard for a reply-to", "", func(p *amqp.Publishing) { p.ReplyTo = "client." + contract.UserClient + ".#" }},
	{"a crafted direct reply-to", "", func(p *amqp.Publishing) { p.ReplyTo = "amq.rabbitmq.reply-to.g1h2AA5yZXBseUA" }},
}

func publishRubbish(settings Settings) func(*World) {
	return func(w *World) {
		// ARRANGE  a server and an auditor
		w.Audit(nil)
		server := w.Serve(settings)
		// BREAK  all the rubbish, and one good request at the end
		var all []amqp.Publishing
		answerable, mute, codes := ledger.Set{}, ledger.Set{}, map[string]contract.Code{}
		for _, r := range rubbish {
			p := request(contract.Add, "1", "2")
			r.spoil(&p)
			all = append(all, p)
			codes[p.MessageId] = r.code
			if r.code == "" {
				mute[p.MessageId] = struct{}{}
			} else {
				answerable[p.MessageId] = struct{}{}
			}
		}
		good := request(contract.Add, "1", "2")
		all = append(all, good)
		w.Publish(all...)
		w.Until("all is settled, or something came too often", func(l seen) bool {
			return len(l.With(event.Acked, event.DeadLettered)) == len(all) || len(l.AtLeast(topology.DeliveryLimit+3, event.Delivered)) > 0
		})
		server.Leave()
		// OBSERVE  a server with the right settings does the rest, if anything is left
		w.Serve(nil)
		v := w.Settle()
		// VERDICT
		invalid := answerable.Or(mute)
		v.Same("each is dead-lettered", v.With(event.Audited), invalid)
		v.Same("each is answered if it can be", v.With(event.Refused), answerable)
		v.None("with the right code", v.Where(func(l event.Line) bool { return l.Event == event.Refused && l.Code != string(codes[l.Request]) }))
		v.None("none is executed", v.With(event.Computed).And(invalid))
		v.None(noLoop, v.AtLeast(2, event.Delivered))
		v.Same("the good one is answered", v.With(event.Answered), ledger.SetOf(good.MessageId))
	}
}
