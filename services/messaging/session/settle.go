package session

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// What settling may answer, besides the library's errors. After ErrStale the
// broker has requeued the delivery, or will: expect it again.
var (
	ErrStale   = errors.New("the delivery belongs to a connection that is gone")
	ErrSettled = errors.New("the delivery was settled before")
)

// Delivery is one delivery on one epoch. It can be settled once, on that epoch
// or not at all.
type Delivery struct {
	amqp.Delivery
	settler *settler
	auto    bool
	settled atomic.Bool
}

// Epoch is the connection that delivered it, counted from 1.
func (d *Delivery) Epoch() uint64 { return d.settler.e.id }

// Ended is closed when the epoch is over. Work that only serves this delivery
// can stop then: the broker gives it to somebody else.
func (d *Delivery) Ended() <-chan struct{} { return d.settler.e.ctx.Done() }

// Ack tells the broker to forget the message. It returns when the ack is
// written; AMQP has no answer to it, so a crash of the broker may still
// deliver the message again.
func (d *Delivery) Ack() error { return d.settle(ack, false) }

// Reject reports a failure. With requeue the message is delivered again, and
// counts towards the delivery limit on every broker version; without, it is
// dead-lettered.
func (d *Delivery) Reject(requeue bool) error { return d.settle(reject, requeue) }

// Nack with requeue gives the message to somebody else. Since 4.3 it does not
// count towards the delivery limit; before, it did.
func (d *Delivery) Nack(requeue bool) error { return d.settle(nack, requeue) }

func (d *Delivery) settle(m method, requeue bool) error {
	if !d.settled.CompareAndSwap(false, true) {
		return fmt.Errorf("%s %d: %w", m, d.DeliveryTag, ErrSettled)
	}
	d.settler.inHand.Add(-1)
	if d.auto {
		return nil
	}
	s := &settlement{wire: wire{method: m, tag: d.DeliveryTag, requeue: requeue}, written: make(chan error, 1)}
	select {
	case d.settler.in <- s:
		select {
		case err := <-s.written:
			return err
		case <-d.Ended():
			select {
			case err := <-s.written: // before the end, which is no reason to deny it
				return err
			default:
			}
		}
	case <-d.Ended():
	}
	return fmt.Errorf("%s %d: %w", m, d.DeliveryTag, ErrStale)
}

type method uint8

const (
	ack method = iota + 1
	reject
	nack
)

func (m method) String() string { return [...]string{"?", "ack", "reject", "nack"}[m] }

// wire is one method frame that settles.
type wire struct {
	method   method
	tag      uint64
	multiple bool // ack only: this tag and every unsettled one below it
	requeue  bool
	waited   bool // for the deliveries below it, once
}

type settlement struct {
	wire
	written chan error
}

// A settler is the one goroutine that settles on a channel.
type settler struct {
	e      *epoch
	inHand atomic.Int64      // delivered and not settled
	ch     amqp.Acknowledger // the epoch's channel
	most   int               // acks that may wait for others
	delay  time.Duration     // how long
	in     chan *settlement
	todo   []*settlement
	plan   plan
}

// newSettler: only a quarter of the prefetch may wait, because the broker sends
// no more than that ahead.
func newSettler(ch amqp.Acknowledger, e *epoch, prefetch int, delay time.Duration) *settler {
	most := prefetch / 4
	if delay == 0 {
		most = 0
	}
	return &settler{e: e, ch: ch, most: most, delay: delay, in: make(chan *settlement, 256), plan: plan{next: 1, ahead: map[uint64]struct{}{}}}
}

// run settles until the epoch ends, each time all that has gathered meanwhile.
func (s *settler) run() {
	timer := time.NewTimer(s.delay)
	defer timer.Stop()
	for {
		if len(s.todo) == 0 && !s.take(nil) {
			return
		}
		timer.Reset(s.delay)
		for s.mayWait() && s.take(timer.C) {
		}
		if s.e.ctx.Err() != nil {
			return
		}
		runtime.Gosched() // whoever is about to settle does so first
		for s.more() {
		}
		s.flush()
	}
}

// take waits for one settlement. It returns false at wake and when the epoch
// is over.
func (s *settler) take(wake <-chan time.Time) bool {
	select {
	case one := <-s.in:
		s.todo = append(s.todo, one)
		return true
	case <-wake:
	case <-s.e.ctx.Done():
	}
	return false
}

func (s *settler) more() bool {
	select {
	case one := <-s.in:
		s.todo = append(s.todo, one)
		return true
	default:
		return false
	}
}

// mayWait says whether nobody is kept waiting by what is held back: neither the
// broker nor whoever shall get a rejected delivery next.
func (s *settler) mayWait() bool {
	return len(s.todo) < s.most && s.todo[len(s.todo)-1].method == ack
}

// flush writes what is to be settled, but for acks that may still become part
// of a multiple-ack.
func (s *settler) flush() {
	wires := make([]wire, len(s.todo))
	for i, one := range s.todo {
		one.waited = one.waited || len(s.todo) >= s.most
		wires[i] = one.wire
	}
	frames, late := s.plan.frames(wires)
	err := s.write(frames)
	kept := s.todo[:0]
	for _, one := range s.todo {
		if _, ok := late[one.tag]; ok && err == nil {
			one.waited = true
			kept = append(kept, one)
			continue
		}
		one.written <- err
	}
	clear(s.todo[len(kept):])
	s.todo = kept
}

func (s *settler) write(frames []wire) error {
	if context.Cause(s.e.ctx) != nil {
		return ErrStale
	}
	if len(frames) > 1 {
		s.e.raw.cork()
		defer s.e.raw.uncork()
	}
	for _, f := range frames {
		var err error
		switch f.method {
		case ack:
			err = s.ch.Ack(f.tag, f.multiple)
		case reject:
			err = s.ch.Reject(f.tag, f.requeue)
		case nack:
			err = s.ch.Nack(f.tag, false, f.requeue)
		}
		if err != nil {
			return fmt.Errorf("%s %d: %w", f.method, f.tag, err)
		}
	}
	return nil
}

// A plan knows which tags of a channel are settled, and so how far one
// multiple-ack may reach: over the contiguous prefix of settled deliveries and
// not one further, because it settles every tag below it, finished or not.
type plan struct {
	next  uint64              // the lowest tag that is not settled
	ahead map[uint64]struct{} // settled tags above it
}

// frames turns what is to be settled into as few frames as is safe, and says
// which acks are not among them: they lie above a delivery that is not settled,
// and have not waited for it yet. They are to be given again. Rejects and nacks
// come first, so that no multiple-ack can reach over them.
func (p *plan) frames(todo []wire) (frames []wire, late map[uint64]struct{}) {
	if len(todo) == 1 && todo[0].tag == p.next && len(p.ahead) == 0 {
		p.next++ // the usual case of an idle consumer
		return todo, nil
	}
	for _, w := range todo {
		p.ahead[w.tag] = struct{}{}
	}
	for {
		if _, ok := p.ahead[p.next]; !ok {
			break
		}
		delete(p.ahead, p.next)
		p.next++
	}
	var single []wire
	var top uint64
	below := 0
	for _, w := range todo {
		switch {
		case w.method != ack:
			frames = append(frames, w)
		case w.tag < p.next:
			top = max(top, w.tag)
			below++
		case w.waited:
			single = append(single, w)
		default:
			if late == nil {
				late = map[uint64]struct{}{}
			}
			late[w.tag] = struct{}{}
		}
	}
	if below > 0 {
		frames = append(frames, wire{method: ack, tag: top, multiple: below > 1})
	}
	return append(frames, single...), late
}
