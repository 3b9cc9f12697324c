package local

import (
	"fmt"
	"net"
	"testing"
)

func TestPortsAreFreeDistinctAndNotEphemeral(t *testing.T) {
	seen := map[int]bool{}
	for range 200 {
		port, err := FreePort()
		if err != nil {
			t.Fatal(err)
		}
		if seen[port] || port < lowestPort || port >= ephemeralStart() {
			t.Fatalf("port %d: want a new one of %d to %d", port, lowestPort, ephemeralStart()-1)
		}
		seen[port] = true
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			t.Fatalf("port %d is not free: %v", port, err)
		}
		l.Close()
	}
}

// What another lab has chosen and does not listen on yet is not chosen again.
func TestReserve(t *testing.T) {
	port, err := FreePort()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reserve(port); err == nil {
		t.Errorf("port %d was reserved twice", port)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := reserve(l.Addr().(*net.TCPAddr).Port); err == nil {
		t.Error("reserved a port that somebody listens on")
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	ticket, err := reserve(l.Addr().(*net.TCPAddr).Port)
	if err != nil {
		t.Fatalf("nobody listens any more: %v", err)
	}
	if err := ticket.Close(); err != nil {
		t.Error(err)
	}
}
