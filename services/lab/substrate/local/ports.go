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
var ports struct {
	sync.Mutex
	taken map[int]bool
}

const lowestPort = 10240

// FreePort finds a port that nothing listens on and nobody was given.
func FreePort() (int, error) {
	ports.Lock()
	defer ports.Unlock()
	if ports.taken == nil {
		ports.taken = map[int]bool{}
	}
	end := ephemeralStart()
	for range 1000 {
		port := lowestPort + rand.IntN(end-lowestPort)
		if ports.taken[port] || checkPort(port) != nil {
			continue
		}
		ports.taken[port] = true
		return port, nil
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

func checkPort(port int) error {
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		return err
	}
	return l.Close()
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
