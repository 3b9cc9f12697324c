// Package link is the network between a service and the broker, in a form that
// breaks when it is told to: at once, or at one AMQP frame ("reset at the 40th
// basic.ack"), which no tool that knows only bytes can do.
//
// Frames are read as AMQP 0-9-1, section 2.3.5 (general frame format), has
// them, so a link speaks plain amqp, not amqps.
package link

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// Action is what can be done to a link.
type Action string

// The actions. Reset, Tear and Freeze meet every connection of the link, or the
// one whose frame an order waited for.
const (
	Reset  Action = "reset"  // both ends get a TCP reset; a frame waited for is not passed on
	Tear   Action = "tear"   // the same, with half of the frame passed on
	Freeze Action = "freeze" // nothing passes and nobody is told, until Heal: a half-open connection
	Slow   Action = "slow"   // every frame takes Delay longer, also on later connections, until Heal
	Drip   Action = "drip"   // bytes pass one by one, one each Delay, until Heal
	Heal   Action = "heal"   // ends Freeze, Slow and Drip
)

// Side is an end of a link. Both send basic.ack: a service for deliveries, the
// broker for publishes.
type Side string

// The sides.
const (
	Service Side = "service"
	Broker  Side = "broker"
)

// Order is an action, and the frame that it waits for.
type Order struct {
	Action Action        `json:"action"`
	Method string        `json:"method,omitempty"` // one of Methods; "": at once
	From   Side          `json:"from,omitempty"`   // who sends it; of Drip: whose bytes, "" for both
	N      int           `json:"n,omitempty"`      // at the n-th such frame from now on
	Delay  time.Duration `json:"delay,omitempty"`  // of Slow and Drip
}

// Methods that an order can wait for, by class and method id.
var Methods = map[string]uint32{
	"basic.publish": 60<<16 | 40, "basic.return": 60<<16 | 50, "basic.deliver": 60<<16 | 60,
	"basic.ack": 60<<16 | 80, "basic.reject": 60<<16 | 90, "basic.nack": 60<<16 | 120, "basic.cancel": 60<<16 | 30,
	"connection.blocked": 10<<16 | 60, "connection.close": 10<<16 | 50, "channel.close": 20<<16 | 40,
}

// Validate names the field that cannot be carried out.
func (o Order) Validate() error {
	_, known := Methods[o.Method]
	breaks := o.Action == Reset || o.Action == Tear || o.Action == Freeze
	switch {
	case !breaks && o.Action != Slow && o.Action != Drip && o.Action != Heal:
		return fmt.Errorf("action %q: want %s, %s, %s, %s, %s or %s", o.Action, Reset, Tear, Freeze, Slow, Drip, Heal)
	case o.Method != "" && !known:
		return fmt.Errorf("method %q: not one that a link looks for", o.Method)
	case o.Method != "" && !breaks:
		return fmt.Errorf("method %q: %s waits for no frame", o.Method, o.Action)
	case o.Method != "" && o.From != Service && o.From != Broker:
		return fmt.Errorf("from %q: want %s or %s", o.From, Service, Broker)
	case o.Method != "" && o.N < 1:
		return fmt.Errorf("n %d: at least 1", o.N)
	case o.Action == Tear && o.Method == "":
		return errors.New("method: missing; tear needs a frame")
	case o.Action == Drip && o.From != "" && o.From != Service && o.From != Broker:
		return fmt.Errorf("from %q: want %s, %s or nothing", o.From, Service, Broker)
	case (o.Action == Slow || o.Action == Drip) && o.Delay <= 0:
		return fmt.Errorf("delay %s: more than 0", o.Delay)
	}
	return nil
}

// Link passes connections on to a broker. Make one with Listen.
type Link struct {
	target string
	l      net.Listener
	done   sync.WaitGroup

	mu       sync.Mutex
	pairs    map[*pair]bool
	waiting  []*Order
	hit      int // orders that met their frame
	slow     Order
	frozen   chan struct{} // closed: all passes
	finished bool
}

// pair is one connection of a service and ours to the broker for it.
type pair struct {
	service, broker net.Conn
	ended           sync.Once // the first end counts: a reset must not become a close half-way
}

// Listen makes a link from a free port of the address's host, or its own port
// if it names one, to target, host:port of a broker.
func Listen(addr, target string) (*Link, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("link to %s: %w", target, err)
	}
	k := &Link{target: target, l: l, pairs: map[*pair]bool{}, frozen: make(chan struct{})}
	close(k.frozen)
	k.done.Go(k.accept)
	return k, nil
}

// Addr is host:port for the service.
func (k *Link) Addr() string { return k.l.Addr().String() }

// Hit is how many orders have met the frame that they waited for.
func (k *Link) Hit() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.hit
}

// Do carries an order out, or lets it wait for its frame.
func (k *Link) Do(o Order) error {
	if err := o.Validate(); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case o.Method != "":
		k.waiting = append(k.waiting, &o)
	case o.Action == Slow, o.Action == Drip:
		k.slow = o
	case o.Action == Heal:
		k.slow = Order{}
		k.thaw()
	case o.Action == Freeze:
		k.freeze()
	default:
		for p := range k.pairs {
			p.reset()
		}
	}
	return nil
}

// Close resets every connection and returns when nothing of the link runs.
func (k *Link) Close() error {
	err := k.l.Close()
	k.mu.Lock()
	k.finished = true
	k.thaw()
	for p := range k.pairs {
		p.reset()
	}
	k.mu.Unlock()
	k.done.Wait()
	return err
}

func (k *Link) freeze() {
	if k.passes() {
		k.frozen = make(chan struct{})
	}
}

func (k *Link) thaw() {
	if !k.passes() {
		close(k.frozen)
	}
}

func (k *Link) passes() bool {
	select {
	case <-k.frozen:
		return true
	default:
		return false
	}
}

func (k *Link) accept() {
	for {
		service, err := k.l.Accept()
		if err != nil {
			return // closed
		}
		k.done.Go(func() { k.connect(service) })
	}
}

// connect makes a pair, unless the broker is away: then the service is refused.
func (k *Link) connect(service net.Conn) {
	broker, err := net.DialTimeout("tcp", k.target, 5*time.Second)
	if err != nil {
		_ = service.Close()
		return
	}
	p := &pair{service: service, broker: broker}
	k.mu.Lock()
	if k.pairs[p] = true; k.finished {
		p.reset()
	}
	k.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { k.pass(p, service, broker, Service) })
	both.Go(func() { k.pass(p, broker, service, Broker) })
	both.Wait()
	k.mu.Lock()
	delete(k.pairs, p)
	k.mu.Unlock()
}

// reset ends both connections as a router that forgot them would.
func (p *pair) reset() {
	p.ended.Do(func() {
		for _, c := range []net.Conn{p.service, p.broker} {
			_ = c.(*net.TCPConn).SetLinger(0)
			_ = c.Close()
		}
	})
}

// close ends both; what was passed on arrives.
func (p *pair) close() { p.ended.Do(func() { _, _ = p.service.Close(), p.broker.Close() }) }

// sent is a frame on its way, and the order that waited for it.
type sent struct {
	frame []byte
	due   time.Time
	order Order
}

// pass carries one direction of a pair, until either end closes or a reset.
func (k *Link) pass(p *pair, from, to net.Conn, side Side) {
	way := make(chan sent, 1024) // what is under way when all is slow
	k.done.Go(func() {
		defer p.close()
		for s := range way {
			if k.deliver(p, to, side, s) != nil {
				break
			}
		}
		for range way { // so that the reader is not left behind
		}
	})
	defer close(way)
	for first := side == Service; ; first = false {
		frame, err := readFrame(from, first)
		if err != nil {
			return
		}
		s := sent{frame: frame, due: time.Now()}
		k.mu.Lock()
		s.order = k.meets(side, frame)
		if k.slow.Action == Slow {
			s.due = s.due.Add(k.slow.Delay)
		}
		k.mu.Unlock()
		way <- s
	}
}

// errCut is why deliver stopped.
var errCut = errors.New("cut")

// deliver writes a frame when it is due and nothing is frozen, or does to the
// pair what was ordered at that frame. What went before it has been passed on.
func (k *Link) deliver(p *pair, to net.Conn, side Side, s sent) error {
	time.Sleep(time.Until(s.due))
	switch s.order.Action {
	case Reset:
		p.reset()
		return errCut
	case Tear:
		_, _ = to.Write(s.frame[:len(s.frame)/2])
		p.reset()
		return errCut
	}
	k.mu.Lock()
	if s.order.Action == Freeze {
		k.freeze()
	}
	frozen, slow := k.frozen, k.slow
	k.mu.Unlock()
	<-frozen
	if slow.Action != Drip || slow.From != "" && slow.From != side {
		_, err := to.Write(s.frame)
		return err
	}
	for i := range s.frame {
		time.Sleep(slow.Delay)
		k.mu.Lock()
		healed := k.slow.Action != Drip
		k.mu.Unlock()
		if healed {
			_, err := to.Write(s.frame[i:])
			return err
		}
		if _, err := to.Write(s.frame[i : i+1]); err != nil {
			return err
		}
	}
	return nil
}

// meets is the order that has waited for this frame, if one has.
func (k *Link) meets(side Side, frame []byte) Order {
	const methodFrame, header = 1, 7
	if len(frame) < header+4 || frame[0] != methodFrame {
		return Order{}
	}
	method := binary.BigEndian.Uint32(frame[header:])
	for i, o := range k.waiting {
		if Methods[o.Method] != method || o.From != side {
			continue
		}
		if o.N--; o.N == 0 {
			k.waiting = append(k.waiting[:i], k.waiting[i+1:]...)
			k.hit++
			return *o
		}
	}
	return Order{}
}

// readFrame reads a frame with its head and end. The first thing that a client
// says is no frame: "AMQP", and four bytes of version.
func readFrame(r io.Reader, first bool) ([]byte, error) {
	const most = 1 << 24 // far beyond any frame-max; a stranger's bytes
	head := make([]byte, 8)
	if first {
		_, err := io.ReadFull(r, head)
		return head, err
	}
	head = head[:7]
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[3:])
	if size > most {
		return nil, fmt.Errorf("frame of %d bytes", size)
	}
	frame := append(head, make([]byte, size+1)...)
	_, err := io.ReadFull(r, frame[len(head):])
	return frame, err
}
