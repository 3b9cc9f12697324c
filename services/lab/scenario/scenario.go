// Package scenario holds what the lab breaks. A scenario is one file: its
// header says what breaks, what must hold and what the control shows; its body
// has four blocks, ARRANGE, BREAK, OBSERVE and VERDICT, in the words of World.
//
// A control is the same story with one safety taken away. It must break the
// promise: otherwise the fault missed, and the promise that held proves nothing.
package scenario

import (
	"fmt"
	"slices"
	"time"

	"warren.example/lab/substrate"
	"warren.example/messaging/topology"
)

// Scenario is one thing that breaks, and what holds all the same.
type Scenario struct {
	Name    string
	Topic   string // what it teaches, in a word or two
	Broke   string // what breaks; fits a column of the table
	Promise string // what must hold; likewise
	Needs   Needs
	Within  time.Duration // that its promise takes on purpose, beside what every story may take
	Alone   bool          // it breaks what rooms share, the broker or a machine: no other may run meanwhile
	Run     func(*World)

	Controls []Control
}

// Control is the story without one safety.
type Control struct {
	Name   string // what was taken away
	Shows  string // what that costs
	Breaks string // the promise that must break: the name of a check or an invariant
	Change Change // of the topology, or nil
	Run    func(*World)
}

// Change alters the topology of a room before anything is declared.
type Change func(topology.Version, *topology.Topology)

// Needs is what a scenario asks of its substrate.
type Needs struct {
	Nodes      int              // broker nodes, at least
	MinVersion topology.Version // of the broker
	Kubernetes bool             // pods and whoever keeps them running
	Own        bool             // machines of the lab's own: what happens to them, or from outside to what runs on them
}

// Substrates are the places that have it, in the words of --on.
func (n Needs) Substrates() []string {
	all := []string{"local", "kind", "cluster"}
	if n.Kubernetes {
		all = all[1:]
	}
	if n.Own {
		all = all[:len(all)-1]
	}
	return all
}

// Versions are those of the broker that it is true for, as in "3.10+".
func (n Needs) Versions() string {
	v := n.MinVersion
	if v == (topology.Version{}) {
		v = topology.Oldest
	}
	return fmt.Sprintf("%d.%d+", v.Major, v.Minor)
}

// unmet says what the substrate lacks, or "".
func (n Needs) unmet(s substrate.Substrate) string {
	b := s.Broker()
	switch {
	case n.Kubernetes && s.Name() != "kubernetes":
		return "needs Kubernetes: lab run --on kind"
	case n.Own && !s.Ours():
		return "needs machines of the lab's own: lab run --on kind"
	case b.Nodes() < n.Nodes:
		return fmt.Sprintf("needs %d broker nodes, there are %d", n.Nodes, b.Nodes())
	case !b.Version().AtLeast(n.MinVersion.Major, n.MinVersion.Minor):
		return fmt.Sprintf("needs RabbitMQ %d.%d, this is %s", n.MinVersion.Major, n.MinVersion.Minor, b.Version())
	}
	return ""
}

// All lists the scenarios in the order in which they teach best.
func All() []Scenario {
	return []Scenario{
		killedBeforeAck,
		killedAfterReply,
		retrySameKey,
		ackBeforeReply,
		manyAtOnce,
		ackLost,
		doubleAck,
		multipleAck,
		staleAck,
		prefetch,
		consumerCancelled,
		consumerTimeout,
		nackOrReject,
		getOrConsume,
		tornFrame,
		serverFrozen,
		halfOpen,
		slowLink,
		slowDrip,
		dripReply,
		dripToCaller,
		unroutable,
		immediate,
		publishFailures,
		bulkTracked,
		confirmModes,
		missingExchange,
		tooLarge,
		alarms,
		clientKilled,
		directReplyTo,
		forgedReplyTo,
		brokerKilled,
		persistenceMatrix,
		leaderKilled,
		partition,
		noServer,
		deadline,
		lateReply,
		clockSkew,
		typedError,
		invalidMessages,
		poison,
		deathReasons,
		dlxMissing,
		deadQueueAway,
		deadLetterCycle,
		retryLadder,
		delayedRetry,
		auditorKilled,
		replayAfterFix,
		podDeleted,
		rollingUpgrade,
		rollingBroker,
		auditorMoved,
		workerStopped,
	}
}

// Find returns the scenarios of these names, in that order; an unknown name is
// an error that lists the known ones.
func Find(names ...string) ([]Scenario, error) {
	all := All()
	var found []Scenario
	for _, name := range names {
		i := slices.IndexFunc(all, func(s Scenario) bool { return s.Name == name })
		if i < 0 {
			known := make([]string, len(all))
			for i, s := range all {
				known[i] = s.Name
			}
			return nil, fmt.Errorf("scenario %q: unknown; there are %v", name, known)
		}
		found = append(found, all[i])
	}
	return found, nil
}
