// Package substrate is what a scenario stands on: a broker and our services,
// as processes of this machine or as pods. A scenario is written once against
// these interfaces and runs on each.
package substrate

import (
	"context"
	"errors"
	"fmt"
	"io"

	"warren.example/lab/link"
	"warren.example/messaging/event"
	"warren.example/messaging/topology"
)

// ErrUnsupported is returned by a substrate that cannot do what a scenario
// asks; the scenario is then SKIPPED with the reason.
var ErrUnsupported = errors.New("not possible on this substrate")

// Substrate owns a broker. Close removes all that it made.
type Substrate interface {
	Name() string // "local" or "kubernetes"
	Broker() Broker
	// Ours says that it stands on machines of the lab's own, to be stopped and started.
	Ours() bool
	// Patience is how much longer than on this machine things may take before
	// they count as failed.
	Patience() int
	// Open makes room for one scenario or control: a virtual host of its own with
	// users, permissions and topology. Change, if not nil, alters the topology
	// first, which is how a control takes a promise away. Lines receives every
	// event line of every process started in the room, in the order read, and is
	// called from one goroutine at a time.
	Open(ctx context.Context, name string, change func(*topology.Topology), lines func(event.Line)) (Room, error)
	Close(ctx context.Context) error
}

// Room is where one scenario happens.
type Room interface {
	// Start starts a service and returns once its process runs; readiness is
	// awaited with Process.WaitReady.
	Start(ctx context.Context, s Service) (Process, error)
	// URL is the room's AMQP URL for a broker user (contract.UserClient, …).
	URL(user string) string
	// AdminURL is one with every right in the room's virtual host.
	AdminURL() string
	// NodeURLs are for a service that chooses: one for each node of the broker.
	NodeURLs(user string) ([]string, error)
	Queue(ctx context.Context, name string) (QueueState, error)
	// Disturbances tells what befell the room or its broker though no scenario
	// asked for it. After one nothing that went wrong counts against a promise.
	Disturbances() []string
	// Missed tells which lines were lost between a process and the lab.
	Missed() []string
	Close(ctx context.Context) error
}

// QueueState counts messages. Ready is not 0 by mistake; the others are the
// management API's samples, which are seconds old by default: a substrate sets
// its broker's statistics interval low.
type QueueState struct {
	Ready, Unacked, DeadLettering int // DeadLettering: messages_dlx, kept until the dead-letter queue confirms them
	Consumers                     int
}

// Kind names one of the suite's services.
type Kind string

// The services.
const (
	CalculatorServer  Kind = "calculator-server"
	Client            Kind = "client"
	DeadLetterAuditor Kind = "dead-letter-auditor"
)

// Service says what to start.
type Service struct {
	Kind    Kind
	Name    string            // instance name within the room, e.g. "server-0"
	Args    []string          // of the command; nil starts the service itself
	Env     map[string]string // settings without the prefix, e.g. "PREFETCH": "1"
	Restart bool              // start it again, within a second, whenever it dies by itself or by Crash
	Machine string            // one of Machines; "": any
}

// Process is one started service, across its restarts.
type Process interface {
	Name() string
	WaitReady(ctx context.Context) error // /readyz
	// Admin sends a request to the admin port: method, path, optional JSON body;
	// it returns the body of a 2xx answer.
	Admin(ctx context.Context, method, path string, body any) ([]byte, error)
	// HTTP does the same on the service's own API (the auditor's).
	HTTP(ctx context.Context, method, path string, body any) ([]byte, error)
	// Command runs another command of the service's program (the auditor's) beside
	// it, with flags that lead to its API, and returns how that ended.
	Command(ctx context.Context, stdin io.Reader, args ...string) (Exit, error)
	Crash(ctx context.Context) error     // SIGKILL; returns when the process is gone
	Terminate(ctx context.Context) error // SIGTERM and no restart; does not wait
	Pause(ctx context.Context) error     // SIGSTOP
	Resume(ctx context.Context) error    // SIGCONT
	// Wait returns when the process has ended and will not be started again.
	Wait(ctx context.Context) (Exit, error)
	// Restarts counts how often it was started again; Crashes counts the lives
	// that ended by SIGKILL.
	Restarts() int
	Crashes() int
	// Tail is the last log lines, for a report of a failure.
	Tail() []string
}

// Exit is how a process ended.
type Exit struct {
	Code   int    // -1 if killed by a signal
	Killed bool   // by SIGKILL
	Stdout []byte // non-event lines of standard output: what a one-shot command printed
}

// Broker is the RabbitMQ under a substrate.
type Broker interface {
	Version() topology.Version
	Nodes() int
	// Crash ends a node's Erlang VM by SIGKILL and returns when it is gone. Where
	// somebody watches over nodes it comes back by itself.
	Crash(ctx context.Context, node int) error
	// Start returns when a crashed node answers again.
	Start(ctx context.Context, node int) error
	// CrashAll does it to every node at once; the broker stays away until StartAll.
	CrashAll(ctx context.Context) error
	StartAll(ctx context.Context) error
	Pause(ctx context.Context, node int) error
	Resume(ctx context.Context, node int) error
	// Leader finds the node that leads a queue.
	Leader(ctx context.Context, r Room, queue string) (int, error)
	// Command runs rabbitmqctl on a node, for what has no other interface.
	Command(ctx context.Context, node int, args ...string) ([]byte, error)
}

// What follows only some substrates can do. The functions return
// ErrUnsupported for the others.

// Workload is a service in several pods that somebody keeps running, as in
// production; each pod is an instance.
type Workload interface {
	// Pods are those that serve, oldest first. Terminate deletes a pod, as
	// Kubernetes does when it moves one; another takes its place.
	Pods() []Process
	// WaitReady returns when all replicas are ready and nobody else is left.
	WaitReady(ctx context.Context) error
	Scale(ctx context.Context, replicas int) error
	// Upgrade changes settings by an upgrade of the release and returns when the
	// last pod of the old kind is gone.
	Upgrade(ctx context.Context, env map[string]string) error
	// DeleteByForce does not wait for the pod's end; it is sent SIGTERM all the same.
	DeleteByForce(ctx context.Context, pod Process) error
	// Move empties the pod's machine of it, and returns when another serves
	// elsewhere in its place.
	Move(ctx context.Context, pod Process) error
	// Machine is where a pod runs.
	Machine(pod Process) string
}

// Machines are what pods and broker nodes run on.
type Machines interface {
	// Workers are those that can be stopped.
	Workers(ctx context.Context) ([]string, error)
	// BrokerMachine is where a broker node runs.
	BrokerMachine(node int) string
	// StopMachine is a power cut; it returns when the cluster has noticed.
	StopMachine(ctx context.Context, name string) error
	StartMachine(ctx context.Context, name string) error
}

// Link is the network between services and the broker, where it can be broken.
type Link interface {
	// URL is a service's AMQP_URL; the link leads to one node of the broker.
	URL() string
	Do(ctx context.Context, o link.Order) error
	// Hit is how many orders have met the frame that they waited for.
	Hit(ctx context.Context) (int, error)
}

// Connect makes a link in a room, for services of a broker user.
func Connect(ctx context.Context, r Room, user string) (Link, error) {
	c, ok := r.(interface {
		Connect(ctx context.Context, user string) (Link, error)
	})
	if !ok {
		return nil, fmt.Errorf("a link for %s: %w", user, ErrUnsupported)
	}
	return c.Connect(ctx, user)
}

// Deploy starts a service as a workload in a room.
func Deploy(ctx context.Context, r Room, s Service, replicas int) (Workload, error) {
	d, ok := r.(interface {
		Deploy(ctx context.Context, s Service, replicas int) (Workload, error)
	})
	if !ok {
		return nil, fmt.Errorf("deploy %s: %w", s.Name, ErrUnsupported)
	}
	return d.Deploy(ctx, s, replicas)
}

// Roll restarts a broker's nodes one after the other, as for a new version, and
// returns when the last is back.
func Roll(ctx context.Context, b Broker) error {
	r, ok := b.(interface {
		Roll(ctx context.Context) error
	})
	if !ok {
		return fmt.Errorf("roll the broker: %w", ErrUnsupported)
	}
	return r.Roll(ctx)
}

// MachinesOf are a substrate's.
func MachinesOf(s Substrate) (Machines, error) {
	m, ok := s.(Machines)
	if !ok {
		return nil, fmt.Errorf("stop a machine: %w", ErrUnsupported)
	}
	return m, nil
}
