package local

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"sync"
)

// ports hands out loopback ports and remembers them: a port stays its owner's
// across restarts.
//
// They lie below the kernel's range for outgoing connections. Inside it a
// client that keeps dialling a dead broker's port can be given that very port
// as its own, connect to itself, and keep the broker from coming back.
//
// Between the choice of a TCP port and the moment in which its owner listens on it
// lie seconds, in which another lab on this machine must not choose it, too. Nothing
// speaks UDP here: whoever holds the UDP port of that number has the right to it.
var ports struct {
	sync.Mutex
	taken map[int]net.PacketConn
}

const lowestPort = 10240

// FreePort finds a port that nothing listens on and nobody was given.
func FreePort() (int, error) {
	ports.Lock()
	defer ports.Unlock()
	if ports.taken == nil {
		ports.taken = map[int]net.PacketConn{}
	}
	end := ephemeralStart()
	for range 1000 {
		port := lowestPort + rand.IntN(end-lowestPort)
		if ticket, err := reserve(port); err == nil {
			ports.taken[port] = ticket
			return port, nil
		}
	}
	return 0, fmt.Errorf("no free port on 127.0.0.1 between %d and %d", lowestPort, end-1)
}

// freePorts fills several variables at once.
func freePorts(into ...*int) error {
	var errs error
	for _, p := range into {
		port, err := FreePort()
		*p, errs = port, errors.Join(errs, err)
	}
	return errs
}

// reserve keeps a port that nothing listens on from all labs until the ticket is
// closed, or this process ends.
func reserve(port int) (ticket net.PacketConn, err error) {
	address := fmt.Sprintf("127.0.0.1:%d", port)
	if ticket, err = net.ListenPacket("udp", address); err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, errors.Join(err, ticket.Close())
	}
	return ticket, l.Close()
}

func ephemeralStart() int {
	const usual = 32768
	var low, high int
	b, err := os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
	if err != nil {
		return usual
	}
	if n, _ := fmt.Sscan(string(b), &low, &high); n != 2 || low <= lowestPort {
		return usual
	}
	return low
}
