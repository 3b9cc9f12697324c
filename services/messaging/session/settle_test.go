package session

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"slices"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"pgregory.net/rapid"
)

// A check takes microseconds, and the default of a hundred was seen to miss a
// prefix that reached one delivery too far.
func init() { _ = flag.Set("rapid.checks", "3000") }

// broker is what RabbitMQ's channel does with frames that settle, as its
// documentation of basic.ack, basic.nack and basic.reject has it.
type broker struct {
	outstanding []uint64
	settled     map[uint64]wire
}

func (b *broker) take(t *rapid.T, f wire) {
	hit := false
	b.outstanding = slices.DeleteFunc(b.outstanding, func(tag uint64) bool {
		if tag == f.tag || f.multiple && tag < f.tag {
			b.settled[tag] = f
			hit = true
			return true
		}
		return false
	})
	if !hit {
		t.Fatalf("406 unknown delivery tag %d", f.tag)
	}
}

// Whatever order handlers finish in and however their settlements gather into
// batches, the broker sees each delivery settled exactly once, as asked, and
// none that is still being worked on.
func TestFramesSettleWhatWasAskedAndNothingElse(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 60).Draw(t, "deliveries")
		b := &broker{settled: map[uint64]wire{}}
		tags := make([]uint64, n)
		for i := range tags {
			tags[i] = uint64(i + 1)
		}
		b.outstanding = slices.Clone(tags)
		var finished []uint64 // mostly in order, as handlers do
		for waiting := tags; len(waiting) > 0; {
			i := rapid.IntRange(0, min(3, len(waiting)-1)).Draw(t, "who of the oldest finishes next")
			finished, waiting = append(finished, waiting[i]), slices.Delete(waiting, i, i+1)
		}
		asked := map[uint64]wire{}
		var again []wire // acks that wait for the deliveries below them
		p := plan{next: 1, ahead: map[uint64]struct{}{}}
		for len(finished) > 0 || len(again) > 0 {
			batch := again
			again = nil
			for _, tag := range finished[:rapid.IntRange(min(1, len(finished)), min(5, len(finished))).Draw(t, "batch")] {
				w := wire{method: rapid.SampledFrom([]method{ack, ack, ack, reject, nack}).Draw(t, "how"), tag: tag}
				w.requeue = w.method != ack && rapid.Bool().Draw(t, "requeue")
				w.waited = rapid.Bool().Draw(t, "in a hurry")
				batch, asked[tag] = append(batch, w), w
			}
			finished = finished[len(asked)-n+len(finished):]
			frames, late := p.frames(slices.Clone(batch))
			for _, w := range batch {
				if _, ok := late[w.tag]; ok {
					if w.waited || w.method != ack {
						t.Fatalf("%+v is to wait again", w)
					}
					w.waited = true
					again = append(again, w)
				}
			}
			for _, f := range frames {
				if f.multiple && f.method != ack {
					t.Fatalf("%s with multiple", f.method)
				}
				b.take(t, f)
			}
			for tag, f := range b.settled {
				if w, ok := asked[tag]; !ok || f.method != w.method || f.requeue != w.requeue {
					t.Fatalf("tag %d: broker saw %+v, asked was %+v (%v)", tag, f, w, ok)
				}
			}
			if len(b.settled)+len(again) != len(asked) {
				t.Fatalf("asked to settle %d, broker settled %d, and %d wait", len(asked), len(b.settled), len(again))
			}
		}
		if len(p.ahead) > 0 {
			t.Fatalf("all is settled, and %d tags are still remembered", len(p.ahead))
		}
	})
}

func TestAcksInOrderBecomeOneFrame(t *testing.T) {
	p := plan{next: 1, ahead: map[uint64]struct{}{}}
	for _, tc := range []struct {
		batch []wire
		want  string
	}{
		{[]wire{{method: ack, tag: 1}}, "[ack 1 false]"},
		{[]wire{{method: ack, tag: 4}, {method: ack, tag: 2}, {method: ack, tag: 3}}, "[ack 4 true]"},
		{[]wire{{method: ack, tag: 7}, {method: ack, tag: 5}}, "[ack 5 false] late 7"}, // 6 is still worked on
		{[]wire{{method: ack, tag: 7, waited: true}}, "[ack 7 false]"},
		{[]wire{{method: ack, tag: 9}, {method: ack, tag: 8}}, "[] late 8 late 9"},
		{[]wire{{method: ack, tag: 9, waited: true}, {method: ack, tag: 8, waited: true}, {method: reject, tag: 6}}, "[reject 6 false ack 9 true]"},
	} {
		frames, late := p.frames(tc.batch)
		var words []string
		for _, f := range frames {
			words = append(words, fmt.Sprint(f.method, " ", f.tag, " ", f.multiple))
		}
		got := fmt.Sprint(words)
		for _, tag := range slices.Sorted(maps.Keys(late)) {
			got += fmt.Sprint(" late ", tag)
		}
		if got != tc.want {
			t.Errorf("got %s, want %s", got, tc.want)
		}
	}
}

// A channel records what reached the wire, and refuses what RabbitMQ would
// answer with 406.
type channel struct {
	t           *rapid.T
	outstanding map[uint64]string // tag to body: what the broker thinks it is
	settled     []string          // bodies, as the broker understood it
}

func (c *channel) settle(tag uint64, multiple bool) error {
	if _, ok := c.outstanding[tag]; !ok {
		c.t.Errorf("406 unknown delivery tag %d", tag)
	}
	for other, body := range c.outstanding {
		if other == tag || multiple && other < tag {
			c.settled = append(c.settled, body)
			delete(c.outstanding, other)
		}
	}
	return nil
}

func (c *channel) Ack(tag uint64, multiple bool) error     { return c.settle(tag, multiple) }
func (c *channel) Nack(tag uint64, multiple, _ bool) error { return c.settle(tag, multiple) }
func (c *channel) Reject(tag uint64, _ bool) error         { return c.settle(tag, false) }

// Connections come and go while handlers finish in any order, some twice, some
// long after their connection. A message is settled if and only if its own
// handler said so on the connection that delivered it; whoever is told nil is
// on the wire of that connection, and nobody else is.
func TestNoDeliveryIsSettledOnAnotherEpochThanItsOwn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		type hand struct {
			*Delivery
			body string
			ch   *channel
		}
		var inHand []hand
		told := map[*channel][]string{} // bodies whose handlers were told that they are settled
		var epochs []*channel
		for id := range uint64(rapid.IntRange(1, 4).Draw(t, "epochs")) {
			e := newTestEpoch()
			e.id = id + 1
			ch := &channel{t: t, outstanding: map[uint64]string{}}
			epochs = append(epochs, ch)
			s := newSettler(ch, e, rapid.SampledFrom([]int{1, 10, 1000}).Draw(t, "prefetch"),
				rapid.SampledFrom([]time.Duration{0, 100 * time.Microsecond}).Draw(t, "ack delay"))
			done := make(chan struct{})
			go func() { defer close(done); s.run() }()
			for tag := range uint64(rapid.IntRange(0, 8).Draw(t, "deliveries")) {
				body := fmt.Sprintf("message %d of epoch %d", tag+1, e.id)
				ch.outstanding[tag+1] = body
				inHand = append(inHand, hand{&Delivery{Delivery: amqp.Delivery{DeliveryTag: tag + 1}, settler: s}, body, ch})
			}
			for range rapid.IntRange(0, 12).Draw(t, "handlers that finish before the next connection") {
				if len(inHand) == 0 {
					break
				}
				h := inHand[rapid.IntRange(0, len(inHand)-1).Draw(t, "which")]
				stale, before := h.Epoch() != e.id, h.settled.Load()
				err := rapid.SampledFrom([]func() error{h.Ack, func() error { return h.Reject(true) }, func() error { return h.Nack(true) }}).Draw(t, "how")()
				switch {
				case before && !errors.Is(err, ErrSettled):
					t.Fatalf("%s, settled again: got %v, want %v", h.body, err, ErrSettled)
				case !before && stale && !errors.Is(err, ErrStale):
					t.Fatalf("%s, on epoch %d: got %v, want %v", h.body, e.id, err, ErrStale)
				case !before && !stale && err != nil:
					t.Fatalf("%s: %v", h.body, err)
				case err == nil:
					told[h.ch] = append(told[h.ch], h.body)
				}
			}
			e.fail(errors.New("connection reset"))
			<-done
		}
		for _, ch := range epochs {
			slices.Sort(ch.settled)
			slices.Sort(told[ch])
			if !slices.Equal(ch.settled, told[ch]) {
				t.Fatalf("the broker settled %q, the handlers were told %q", ch.settled, told[ch])
			}
		}
	})
}

// The end of the epoch comes right behind the write: whoever is told that the
// ack is stale would record a redelivery that never comes.
func TestAnAckThatWasWrittenIsNotStale(t *testing.T) {
	for range 1000 {
		e := newTestEpoch()
		s := newSettler(nil, e, 1, 0)
		s.in = make(chan *settlement)
		go func() {
			one := <-s.in
			one.written <- nil
			e.fail(errors.New("connection reset"))
		}()
		if err := (&Delivery{Delivery: amqp.Delivery{DeliveryTag: 1}, settler: s}).Ack(); err != nil {
			t.Fatalf("got %v, want none", err)
		}
	}
}

func TestADeliverySettlesOnceAndOnItsOwnEpoch(t *testing.T) {
	e := newTestEpoch()
	s := newSettler(nil, e, 1, 0)
	d := &Delivery{Delivery: amqp.Delivery{DeliveryTag: 2}, settler: s}
	go func() { (<-s.in).written <- nil }()
	if err := d.Ack(); err != nil {
		t.Fatal(err)
	}
	if err := d.Reject(true); !errors.Is(err, ErrSettled) {
		t.Errorf("settled twice: got %v, want %v", err, ErrSettled)
	}
	late := &Delivery{Delivery: amqp.Delivery{DeliveryTag: 3}, settler: s}
	e.fail(errors.New("connection reset"))
	if err := late.Ack(); !errors.Is(err, ErrStale) {
		t.Errorf("ack after its epoch: got %v, want %v", err, ErrStale)
	}
	// The settlement that raced the end into the queue must not reach the wire.
	if err := s.write([]wire{{method: ack, tag: 3}}); !errors.Is(err, ErrStale) {
		t.Errorf("write after the epoch: got %v, want %v", err, ErrStale)
	}
}
