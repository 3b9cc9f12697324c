package kubernetes

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"testing"
)

// server answers every line with its name, until it dies.
type server struct {
	net.Listener
	mu    sync.Mutex
	conns []net.Conn
}

func serve(t *testing.T, name string) *server {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &server{Listener: l}
	t.Cleanup(s.die)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns = append(s.conns, c)
			s.mu.Unlock()
			go func() {
				for lines := bufio.NewScanner(c); lines.Scan(); {
					fmt.Fprintln(c, name)
				}
			}()
		}
	}()
	return s
}

func (s *server) die() {
	_ = s.Close()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		_ = c.Close()
	}
}

func (s *server) dial() (net.Conn, error) { return net.Dial("tcp", s.Addr().String()) }

// A pod that dies breaks its own connections; the next ones go elsewhere, and
// where there is nobody a connection is closed rather than left open.
func TestForwarder(t *testing.T) {
	first, second := serve(t, "first"), serve(t, "second")
	f, err := forward(func(context.Context) (net.Conn, error) {
		for _, s := range []*server{first, second} {
			if c, err := s.dial(); err == nil {
				return c, nil
			}
		}
		return nil, errors.New("nobody is ready")
	})
	if err != nil {
		t.Fatal(err)
	}
	connect := func() (net.Conn, func() (string, error)) {
		c, err := net.Dial("tcp", f.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		r := bufio.NewReader(c)
		return c, func() (string, error) {
			fmt.Fprintln(c, "who?")
			return r.ReadString('\n')
		}
	}
	_, ask := connect()
	if who, err := ask(); who != "first\n" || err != nil {
		t.Errorf("answered by %q, %v; want first", who, err)
	}
	first.die()
	if who, err := ask(); err == nil {
		t.Errorf("a connection to a dead pod was answered by %q", who)
	}
	open, ask := connect()
	if who, err := ask(); who != "second\n" || err != nil {
		t.Errorf("answered by %q, %v; want second", who, err)
	}
	second.Listener.Close() // it is not ready, and keeps what it has
	if who, err := ask(); who != "second\n" || err != nil {
		t.Errorf("answered by %q, %v; want second still", who, err)
	}
	if _, ask := connect(); true {
		if who, err := ask(); err == nil {
			t.Errorf("answered by %q, want nobody", who)
		}
	}
	f.close()
	if _, err := open.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlived the forwarder")
	}
}
