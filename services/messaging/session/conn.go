package session

import (
	"net"
	"sync"
	"time"
)

// A conn bounds every socket write in time, and lets the one goroutine that
// publishes gather a burst of frames into a single write.
//
// The bound matters more than it seems: the library writes under a lock that
// its shutdown needs too, so a peer that stops reading would hang Publish,
// Channel and Close for ever.
type conn struct {
	net.Conn
	timeout time.Duration

	mu     sync.Mutex
	corked bool
	buf    []byte
	err    error
}

// gather is how many bytes a burst may hold back before they are written.
const gather = 64 << 10

func (c *conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	if !c.corked {
		return c.write(p)
	}
	c.buf = append(c.buf, p...)
	if len(c.buf) < gather {
		return len(p), nil
	}
	return len(p), c.flush()
}

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
