package session

import (
	"bufio"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// A conn bounds every socket write in time, lets the one goroutine that
// publishes gather a burst of frames into a single write, and reads less often
// while much is in flight.
//
// The bound matters more than it seems: the library writes under a lock that
// its shutdown needs too, so a peer that stops reading would hang Publish,
// Channel and Close for ever.
type conn struct {
	net.Conn // socket, or TLS on it
	socket   net.Conn
	timeout  time.Duration

	reader   *bufio.Reader
	plenty   bool                       // the last read was large: more is waiting
	inFlight atomic.Pointer[func() int] // see moderate; nil: unknown

	last   sync.Once
	ended  chan struct{} // closed at the first failed read
	reason error         // of it

	mu      sync.Mutex
	corked  bool
	buf     []byte
	publish []byte // see substitute; nil: the library's own bytes
	err     error
}

func newConn(transport, socket net.Conn, timeout time.Duration) *conn {
	c := &conn{Conn: transport, socket: socket, timeout: timeout, ended: make(chan struct{})}
	c.reader = bufio.NewReaderSize(source{c}, gather)
	return c
}

// Close closes the socket at once; TLS would first wait for room to say goodbye.
func (c *conn) Close() error { return c.socket.Close() }

func (c *conn) Read(p []byte) (int, error) { return c.reader.Read(p) }

// A crowd is how many messages must be in flight for a pause before each read.
// Whoever waits behind so many others does not feel it, and the pause gathers
// what would have cost a wake-up and a system call each, on both sides: the
// most effective of all measures with 1024 calls in flight, harmful with 8.
const (
	crowd = 16
	pause = 2 * time.Millisecond
)

// moderate makes reads pause while inFlight says that a crowd is waiting.
func (c *conn) moderate(inFlight func() int) { c.inFlight.Store(&inFlight) }

// source is the socket, or TLS on it, as its buffer sees it.
type source struct{ *conn }

func (c source) Read(p []byte) (int, error) {
	if inFlight := c.inFlight.Load(); inFlight != nil && !c.plenty && (*inFlight)() >= crowd {
		time.Sleep(pause)
	}
	n, err := c.Conn.Read(p)
	c.plenty = n >= 16<<10 // the most that TLS gives at once
	if err != nil {
		c.last.Do(func() { c.reason = err; close(c.ended) })
	}
	return n, err
}

// explain replaces err by the TLS alert behind it, if one comes within a moment.
// A refused client certificate shows only after our side of the handshake, as a
// connection that ends.
func (c *conn) explain(err error) error {
	select {
	case <-c.ended:
	case <-time.After(100 * time.Millisecond):
		return err
	}
	var alert *net.OpError
	if errors.As(c.reason, &alert) && alert.Op == "remote error" {
		return alert
	}
	return err
}

// gather is how many bytes a burst may hold back before they are written, and
// how many one read may take.
const gather = 64 << 10

func (c *conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	if !c.corked && c.publish == nil {
		return c.write(p)
	}
	if c.publish == nil {
		c.buf = append(c.buf, p...)
	} else if err := c.substituted(p); err != nil {
		c.err = err
		return 0, err
	}
	if c.corked && len(c.buf) < gather {
		return len(p), nil
	}
	return len(p), c.flush()
}

// substitute makes frames stand for the next basic.publish that the library
// writes, whose own frames are dropped. The library keeps the count, the
// confirms and the state of the channel; encoding the suite's properties cost it
// a quarter of all allocations of a call.
func (c *conn) substitute(frames []byte) {
	c.mu.Lock()
	c.publish = frames
	c.mu.Unlock()
}

// substituted appends p to what is to be written, frame by frame. A heartbeat
// may stand anywhere between the frames of a publish.
func (c *conn) substituted(p []byte) error { // with mu held
	for len(p) > 0 {
		if len(p) < frameOverhead {
			return errTorn
		}
		size := frameOverhead + int(binary.BigEndian.Uint32(p[3:7]))
		if len(p) < size {
			return errTorn
		}
		switch frame := p[:size]; {
		case frame[0] == frameMethod && binary.BigEndian.Uint32(frame[7:]) == basicPublish:
			if binary.BigEndian.Uint16(frame[1:]) != publishChannel {
				return errors.New("the client library published on another channel")
			}
			c.buf = append(c.buf, c.publish...)
		case frame[0] == frameHeader || frame[0] == frameBody:
		default:
			c.buf = append(c.buf, frame...)
		}
		p = p[size:]
	}
	return nil
}

var errTorn = errors.New("the client library wrote part of a frame")

func (c *conn) write(p []byte) (int, error) { // with mu held
	if err := c.Conn.SetWriteDeadline(time.Now().Add(c.timeout)); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	c.err = err
	return n, err
}

func (c *conn) flush() error { // with mu held
	if len(c.buf) == 0 || c.err != nil {
		return c.err
	}
	_, err := c.write(c.buf)
	c.buf = c.buf[:0]
	return err
}

func (c *conn) cork() {
	c.mu.Lock()
	c.corked = true
	c.mu.Unlock()
}

// uncork writes what was gathered. If that fails it closes the socket: the
// library was told long ago that those frames were written.
func (c *conn) uncork() {
	c.mu.Lock()
	c.corked = false
	err := c.flush()
	c.mu.Unlock()
	if err != nil {
		_ = c.Close()
	}
}
