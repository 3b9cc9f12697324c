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
