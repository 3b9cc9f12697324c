package scenario

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/ledger"
	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/session"
)

// Peer is a program on the client library alone, in the lab itself: a
// connection, a channel with confirms, and nothing of ours in between. It keeps
// its part of the ledger like everybody else; a message that it has worked on is
// on record there.
type Peer struct {
	*amqp.Channel
	Conn      *amqp.Connection
	Mandatory bool // for Publish; true at first
	Immediate bool // for Publish

	w       *World
	events  *event.Recorder
	wire    net.Conn
	returns chan amqp.Return
	readers sync.WaitGroup // of deliveries; they end with the connection
	end     func()
}

// Connect makes a peer that may do everything in the room.
func (b Broker) Connect() *Peer {
	return b.connect(b.w.name(ledger.Peer), b.w.room.AdminURL(), amqp.Config{})
}

// ConnectRecovering makes one whose connection the library itself mends.
func (b Broker) ConnectRecovering() *Peer {
	return b.connect(b.w.name(ledger.Peer), b.w.room.AdminURL(), amqp.Config{Recovery: &amqp.Recovery{}})
}

func (b Broker) connect(name, url string, config amqp.Config) *Peer {
	b.w.tell("connecting " + name)
	url, _, _ = strings.Cut(url, ",") // one of several nodes is enough
	p := &Peer{w: b.w, Mandatory: true, events: event.NewRecorder(lineWriter(b.w.record), "lab", name)}
	config.Dial = func(network, addr string) (_ net.Conn, err error) {
		p.wire, err = amqp.DefaultDial(readyWithin)(network, addr)
		return p.wire, err
	}
	var err error
	p.Conn, err = amqp.DialConfig(url, config)
	b.w.must(err, "connect %s", name)
	p.end = sync.OnceFunc(func() {
		_ = p.Conn.Close()
		p.readers.Wait()
		p.events.Record(event.Line{Event: event.EOF})
	})
	b.w.leave = append(b.w.leave, p.end)
	p.Channel, err = p.Conn.Channel()
	b.w.must(err, "open a channel of %s", name)
	p.returns = p.NotifyReturn(make(chan amqp.Return, most))
	b.w.must(p.Confirm(false), "confirm.select of %s", name)
	return p
}

// Declare makes a durable queue that has to be empty in the end.
func (p *Peer) Declare(queue string, args amqp.Table) {
	_, err := p.QueueDeclare(queue, true, false, false, false, args)
	p.w.must(err, "declare %s", queue)
	p.w.calm.Declared()
	p.w.queues = append(p.w.queues, queue)
}

// DeclareExchange makes a durable exchange.
func (p *Peer) DeclareExchange(name, kind string, args amqp.Table) {
	p.w.must(p.ExchangeDeclare(name, kind, true, false, false, false, args), "declare exchange %s", name)
}

// Send publishes messages to a queue and requires that all are confirmed.
func (p *Peer) Send(queue string, messages ...amqp.Publishing) {
	for id, fate := range p.Publish("", queue, messages...) {
		if fate != session.Confirmed {
			p.w.must(fmt.Errorf("%s is %s", id, fate), "send to %s", queue)
		}
	}
}

// Publish publishes messages and returns what became of each. It reads a return
// after the confirm of its message, which the broker sends later
// (https://www.rabbitmq.com/docs/confirms#when-publishes-are-confirmed), and asks
// whether the channel lives before it believes in a nack.
func (p *Peer) Publish(exchange, key string, messages ...amqp.Publishing) map[string]session.Outcome {
	for _, m := range messages {
		p.events.Record(event.Line{Event: event.Publishing, Request: m.MessageId})
	}
	fates := p.publish(exchange, key, messages...)
	for id, fate := range fates {
		p.events.Record(event.Line{Event: fateEvents[fate], Request: id})
	}
	return fates
}

func (p *Peer) publish(exchange, key string, messages ...amqp.Publishing) map[string]session.Outcome {
	ctx, cancel := context.WithTimeout(p.w.ctx, p.w.slow*seenWithin)
	defer cancel()
	confirms, fates := map[string]*amqp.DeferredConfirmation{}, map[string]session.Outcome{}
	for _, m := range messages {
		c, err := p.PublishWithDeferredConfirm(exchange, key, p.Mandatory, p.Immediate, m)
		if err != nil {
			fates[m.MessageId] = session.NotWritten
			continue
		}
		confirms[m.MessageId] = c
	}
	for _, id := range slices.Sorted(maps.Keys(confirms)) {
		acked, err := confirms[id].WaitContext(ctx)
		switch {
		case err != nil, !acked && p.IsClosed():
			fates[id] = session.Unknown
		case !acked:
			fates[id] = session.Nacked
		default:
			fates[id] = session.Confirmed
		}
	}
	for len(p.returns) > 0 {
		if r, ok := <-p.returns; ok {
			fates[r.MessageId] = session.Returned
		}
	}
	return fates
}

// Throw publishes messages to a queue and does not wait. What the broker says of
// them is not put on record.
func (p *Peer) Throw(queue string, messages ...amqp.Publishing) []*amqp.DeferredConfirmation {
	var confirms []*amqp.DeferredConfirmation
	for _, m := range messages {
		p.events.Record(event.Line{Event: event.Publishing, Request: m.MessageId})
		confirm, err := p.PublishWithDeferredConfirm("", queue, p.Mandatory, false, m)
		p.w.must(err, "publish to %s", queue)
		confirms = append(confirms, confirm)
	}
	return confirms
}

// Blocked waits until the broker says that it does not read from this connection.
func (p *Peer) Blocked() (wait func()) {
	blocked := p.Conn.NotifyBlocked(make(chan amqp.Blocking, most))
	return func() {
		ctx, cancel := context.WithTimeout(p.w.ctx, p.w.slow*seenWithin)
		defer cancel()
		select {
		case <-blocked:
		case <-ctx.Done():
			p.w.must(ctx.Err(), "wait until the broker blocks the connection")
		}
	}
}

var fateEvents = map[session.Outcome]event.Kind{
	session.NotWritten: event.NotWritten, session.Returned: event.RequestReturned, session.Confirmed: event.Confirmed,
	session.Nacked: event.PublishNacked, session.Unknown: event.Unknown,
}

// Job is a message in hand.
type Job struct {
	ID      string
	Message *amqp.Delivery
	Ack     func() error // what it answers is all that the worker learns
}

// Worker takes jobs from a queue.
type Worker struct {
	w      *World
	events *event.Recorder
	jobs   chan Job
	die    func()
}

// Take makes a peer that works through the library's own consumer. With multiple
// its acks also stand for every delivery before.
func (p *Peer) Take(queue string, prefetch int, multiple bool) *Worker {
	p.w.must(p.Qos(prefetch, 0, false), "qos %d", prefetch)
	cancelled := p.NotifyCancel(make(chan string, 1))
	deliveries, err := p.Consume(queue, "", false, false, false, false, nil)
	p.w.must(err, "consume %s", queue)
	worker := &Worker{p.w, p.events, make(chan Job, most), p.Die}
	p.readers.Go(func() {
		defer close(worker.jobs)
		for d := range deliveries {
			p.got(d)
			worker.jobs <- Job{d.MessageId, &d, func() error { return d.Ack(multiple) }}
		}
		if _, ok := <-cancelled; ok { // closed with the channel if that was the reason
			p.events.Record(event.Line{Event: event.ConsumerCancelled, Reason: queue})
		}
	})
	return worker
}

// most is more than any story has messages, so that nobody waits for a reader.
const most = 1024

// Take makes a worker on a session of ours.
func (b Broker) Take(queue string, prefetch int) *Worker {
	w := b.w
	name := w.name(ledger.Peer)
	w.tell("starting " + name)
	worker := &Worker{w: w, events: event.NewRecorder(lineWriter(w.record), "lab", name), jobs: make(chan Job, most)}
	options := session.Options{Name: name, Events: worker.events, Config: sessionConfig(w.room.AdminURL())}
	consumer := session.NewConsumer(options, session.ConsumerOptions{Queue: queue, Prefetch: prefetch, Handle: func(d *session.Delivery) {
		worker.events.Record(event.Line{Event: event.Delivered, Request: d.MessageId, Epoch: d.Epoch(), Tag: d.DeliveryTag, Redelivered: d.Redelivered})
		worker.jobs <- Job{d.MessageId, &d.Delivery, d.Ack}
	}})
	worker.die = sync.OnceFunc(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), goneWithin)
		defer cancel()
		_ = consumer.Close(ctx)
		worker.events.Record(event.Line{Event: event.EOF})
	})
	w.leave = append(w.leave, worker.die)
	return worker
}

func sessionConfig(urls string) session.Config {
	return session.Config{
		URL: strings.Split(urls, ","), Heartbeat: 10 * time.Second,
		WriteTimeout: 5 * time.Second, OpenTimeout: 10 * time.Second, MaxBackoff: time.Second,
	}
}

// Next waits for so many jobs.
func (k *Worker) Next(n int) []Job {
	jobs := k.rest(n)
	if len(jobs) < n {
		k.w.must(errors.New("no more came"), "take %d messages; %d came", n, len(jobs))
	}
	return jobs
}

// rest is what comes of so many jobs until patience ends, or the deliveries do;
// on a session of ours they never end.
func (k *Worker) rest(n int) []Job {
	ctx, cancel := context.WithTimeout(k.w.ctx, k.w.slow*seenWithin)
	defer cancel()
	var jobs []Job
	for len(jobs) < n {
		select {
		case j, ok := <-k.jobs:
			if !ok {
				return jobs
			}
			jobs = append(jobs, j)
		case <-ctx.Done():
			return jobs
		}
	}
	return jobs
}

// Work is what is done with a message; after it the message is on record.
func (k *Worker) Work(j Job) { k.events.Record(event.Line{Event: event.Audited, Request: j.ID}) }

// WorkOn works on the jobs in hand and on what comes then, until so many are done
// or nothing comes any more. It returns how many that were.
func (k *Worker) WorkOn(jobs []Job, most int) (done int) {
	ctx, cancel := context.WithTimeout(k.w.ctx, k.w.slow*goneWithin)
	defer cancel()
	for {
		for _, j := range jobs {
			k.Work(j)
			_ = j.Ack()
			done++
		}
		if done >= most {
			return done
		}
		select {
		case j, ok := <-k.jobs:
			if !ok {
				return done
			}
			jobs = []Job{j}
		case <-ctx.Done():
			return done
		}
	}
}

// Finish works until so many jobs are acked, or no more come, and says how many.
func (k *Worker) Finish(n int) (acked int) {
	for acked < n {
		jobs := k.rest(1)
		if len(jobs) == 0 {
			break
		}
		k.Work(jobs[0])
		if jobs[0].Ack() == nil { // if it is too late the message comes again
			acked++
		}
	}
	return acked
}

// Die ends the worker with whatever it has in hand.
func (k *Worker) Die() { k.die() }

// got records a delivery.
func (p *Peer) got(d amqp.Delivery) {
	p.events.Record(event.Line{Event: event.Delivered, Request: d.MessageId, Tag: d.DeliveryTag, Redelivered: d.Redelivered, Attempt: attempt(d)})
}

// triesHeader counts how often a message was tried, by whoever publishes it again.
const triesHeader = "lesson-tries"

// attempt counts the ways by which a message came, from 1. What was published
// again says so; what was dead-lettered is new to its queue, and not flagged as
// redelivered: x-death tells.
func attempt(d amqp.Delivery) int {
	if tries, ok := d.Headers[triesHeader].(int64); ok {
		return 1 + int(tries)
	}
	published, _ := d.Headers[contract.HeaderAttempt].(int64)
	n := int(max(1, published))
	list, _ := d.Headers["x-death"].([]any)
	for _, one := range list {
		death, _ := one.(amqp.Table)
		count, _ := death["count"].(int64)
		n += int(count)
	}
	return n
}

func (p *Peer) worked(d amqp.Delivery) {
	p.events.Record(event.Line{Event: event.Audited, Request: d.MessageId})
}

// Listen takes what comes into a reply queue as answers to the requests whose ids
// are the correlation-ids.
func (p *Peer) Listen(queue string) {
	replies, err := p.Consume(queue, "", true, true, false, false, nil)
	p.w.must(err, "consume %s", queue)
	p.readers.Go(func() {
		told := map[string]bool{}
		for d := range replies {
			line := event.Line{Event: event.Answered, Request: d.CorrelationId}
			if reply, err := contract.DecodeReply(&d); err != nil {
				var e *contract.Error
				if line.Event = event.Refused; errors.As(err, &e) {
					line.Code = string(e.Code)
				}
			} else {
				line.Result = reply.Result
			}
			if told[d.CorrelationId] {
				line.Event = event.DuplicateReply
			}
			told[d.CorrelationId] = true
			p.events.Record(line)
		}
	})
}

// Answer replies to a request through an exchange, to whatever its reply-to says,
// and acks it once it is known what became of the reply.
func (p *Peer) Answer(j Job, exchange, result string) {
	about := event.Line{Request: j.ID, Tag: j.Message.DeliveryTag, Result: result}
	record := func(k event.Kind) { about.Event = k; p.events.Record(about) }
	record(event.Computed)
	record(event.Replying)
	switch fate := p.publish(exchange, j.Message.ReplyTo, amqp.Publishing{
		MessageId: j.ID, CorrelationId: j.Message.CorrelationId,
		Type: contract.ReplyType, ContentType: contract.ContentType, Body: contract.Encode(contract.Reply{Result: result}),
	})[j.ID]; fate {
	case session.Confirmed:
		record(event.ReplyConfirmed)
	case session.Returned:
		record(event.ReplyReturned)
		record(event.Orphaned)
	default:
		p.w.must(fmt.Errorf("it is %s", fate), "reply to %s", j.ID)
	}
	p.w.must(j.Ack(), "ack %s", j.ID)
	record(event.Acked)
}

// Gone waits until the broker knows no queue, or direct reply-to, of this name.
func (p *Peer) Gone(queue string) {
	ctx, cancel := context.WithTimeout(p.w.ctx, p.w.slow*seenWithin)
	defer cancel()
	for {
		ch, err := p.Conn.Channel() // another for each look: what is not there costs it
		p.w.must(err, "open a channel")
		_, err = ch.QueueDeclarePassive(queue, false, false, false, false, nil)
		_ = ch.Close()
		var no *amqp.Error
		if errors.As(err, &no) && no.Code == amqp.NotFound {
			return
		}
		p.w.must(ctx.Err(), "wait for the end of %s (%v)", queue, err)
		time.Sleep(look / 10)
	}
}

// Refuse takes the next delivery of a queue and gives it back, so many times.
func (p *Peer) Refuse(queue string, times int, how func(amqp.Delivery) error) {
	ctx, cancel := context.WithTimeout(p.w.ctx, p.w.slow*seenWithin)
	defer cancel()
	for range times {
		for {
			d, ok, err := p.Get(queue, false)
			p.w.must(err, "get from %s", queue)
			if ok {
				p.got(d)
				p.w.must(how(d), "refuse")
				break
			}
			p.w.must(ctx.Err(), "wait for a delivery of %s", queue)
			time.Sleep(look / 10)
		}
	}
}

// Drain works on whatever is in a queue, or comes back into it, until the end.
func (p *Peer) Drain(queue string) {
	p.Handle(queue, func(d amqp.Delivery) error {
		p.worked(d)
		return d.Ack(false)
	})
}

// Handle does something with whatever is in a queue, or comes back into it, until
// the end.
func (p *Peer) Handle(queue string, do func(amqp.Delivery) error) {
	deliveries, err := p.Consume(queue, "", false, false, false, false, nil)
	p.w.must(err, "consume %s", queue)
	p.readers.Go(func() {
		for d := range deliveries {
			p.got(d)
			_ = do(d) // what it did not reach comes back, and is seen
		}
	})
}

// Die ends the connection as SIGKILL of the program would: without a word. The
// library would mend it, if told to, so that one is closed.
func (p *Peer) Die() {
	if p.Conn.Config.Recovery == nil {
		_ = p.wire.Close()
	}
	p.end()
}
