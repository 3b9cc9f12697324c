package main

import (
	"context"
	"fmt"
	"math/big"
	"os"
	"strconv"

	"github.com/go-json-experiment/json"

	"warren.example/messaging/contract"
)

// prefetch of every server but the tutorial's: no cell has more calls in flight.
const prefetch = 2000

// A Contender is one way to do request/reply. Its two halves run in two
// processes and share nothing but the queue's name.
type Contender struct {
	Name, What string
	// Serve answers with handle until ctx ends. It makes what it needs, calls
	// ready once requests may come, and takes away what it made.
	Serve func(ctx context.Context, b broker, queue string, ready func()) error
	Dial  func(ctx context.Context, b broker, queue string, inFlight int) (Client, error)
}

// Client calls. Every contender encodes the request and decodes the reply, as
// every real client must, so that a ratio compares messaging and nothing else.
type Client interface {
	Call(ctx context.Context, r contract.Request) (contract.Reply, error) // by many goroutines at once
	Close(ctx context.Context) error
}

// Names of contenders that the targets are about.
const (
	ours    = "rpc"
	rawSafe = "raw-safe"
)

var contenders = []Contender{
	{ours, "messaging/rpc with its defaults, on the suite's own topology and users", rpcServe, rpcDial},
	{rawSafe, "durable quorum queue, persistent, mandatory, pipelined confirms, ack after the reply's confirm, direct reply-to", safe.serve, safe.dial},
	{"raw-safe-replyq", "the same with an exclusive reply queue", safeReplyQueue.serve, safeReplyQueue.dial},
	{"raw-contract", "and with all the properties of the suite's contract: what rpc adds to this is the library, the rest is the wire", safeContract.serve, safeContract.dial},
	{"raw-unsafe", "exclusive classic queue, transient, no confirms, direct reply-to", unsafe.serve, unsafe.dial},
	{"tutorial", "quorum queue, prefetch 1, one call at a time per channel (kept open), no confirms", tutorialServe, tutorialDial},
}

func contenderNames() (names []string) {
	for _, c := range contenders {
		names = append(names, c.Name)
	}
	return names
}

func contenderByName(name string) (Contender, error) {
	for _, c := range contenders {
		if c.Name == name {
			return c, nil
		}
	}
	return Contender{}, fmt.Errorf("no contender is called %q", name)
}

// broker holds what the lab exports for the users that the contenders need.
type broker struct {
	admin, client, server string // URLs
	pid                   int    // 0 if it is not on this machine
}

func brokerFromEnv() (b broker, err error) {
	for name, to := range map[string]*string{"AMQP_URL": &b.admin, "AMQP_URL_CALC_CLIENT": &b.client, "AMQP_URL_CALC_SERVER": &b.server} {
		if *to = os.Getenv(name); *to == "" {
			return b, fmt.Errorf("%s: not set; scripts/bench starts a broker and sets it", name)
		}
	}
	if pid := os.Getenv("LAB_BROKER_PID"); pid != "" {
		if b.pid, err = strconv.Atoi(pid); err != nil {
			return b, fmt.Errorf("LAB_BROKER_PID=%s: not a number", pid)
		}
	}
	return b, nil
}

// handle is the work that every server does: add two numbers.
func handle(body []byte) ([]byte, error) {
	var r contract.Request
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, fmt.Errorf("decode request: %w", err)
	}
	reply, err := add(r)
	return contract.Encode(reply), err
}

func add(r contract.Request) (contract.Reply, error) {
	sum := new(big.Int)
	for _, o := range r.Operands {
		n, ok := new(big.Int).SetString(o, 10)
		if !ok {
			return contract.Reply{}, fmt.Errorf("operand %q: not a whole number", o)
		}
		sum.Add(sum, n)
	}
	return contract.Reply{Result: sum.String()}, nil
}

func decode(body []byte) (r contract.Reply, err error) {
	if err := json.Unmarshal(body, &r); err != nil {
		return r, fmt.Errorf("decode reply: %w", err)
	}
	return r, nil
}

// request is what worker i asks, and the answer it must get.
func request(i int) (contract.Request, string) {
	a, b := 100000+i, 200000
	return contract.Request{Operation: contract.Add, Operands: []string{fmt.Sprint(a), fmt.Sprint(b)}}, fmt.Sprint(a + b)
}
