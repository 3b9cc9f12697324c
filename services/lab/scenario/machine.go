package scenario

import (
	"context"
	"errors"
	"slices"
	"time"

	"warren.example/lab/substrate"
)

// bootWithin bounds the stop of a machine, which a cluster notices late, and its
// start; on one machine, see the other budgets.
const bootWithin = 45 * time.Second

// Machine is a worker node of the cluster.
type Machine struct {
	w      *World
	all    substrate.Machines
	name   string
	serves []*Servant
}

// Workers are the machines that can be stopped; there are at least two.
func (w *World) Workers() []*Machine {
	all, err := substrate.MachinesOf(w.under)
	w.must(err, "find the workers")
	names, err := all.Workers(w.ctx)
	if err == nil && len(names) < 2 {
		err = errors.New("one of two is to go on")
	}
	w.must(err, "find the workers %v", names)
	var workers []*Machine
	for _, name := range names {
		workers = append(workers, &Machine{w: w, all: all, name: name})
	}
	return workers
}

// BrokerNodes is how many nodes of the broker are on it.
func (m *Machine) BrokerNodes() (n int) {
	for node := range m.w.broker.Nodes() {
		if m.all.BrokerMachine(node) == m.name {
			n++
		}
	}
	return n
}

// Serve is World's, on this machine.
func (m *Machine) Serve(s Settings) *Servant {
	servant := m.w.serve(substrate.CalculatorServer, "server", s, m.name)
	m.serves = append(m.serves, servant)
	return servant
}

// Audit likewise.
func (m *Machine) Audit(s Settings) *Servant {
	servant := m.w.serve(substrate.DeadLetterAuditor, "auditor", s, m.name)
	m.serves = append(m.serves, servant)
	return servant
}

// Load is World's, on this machine.
func (m *Machine) Load(args ...string) *Client {
	return m.w.client(append([]string{"load"}, args...), nil, m.name)
}

// Stop cuts the power, and returns when the cluster has noticed. Whatever
// happens then, it is on again when the scenario is over.
func (m *Machine) Stop() {
	m.w.breaks("a machine")
	m.w.tell("stopping " + m.name)
	for _, s := range m.serves {
		s.Doomed(1)
	}
	m.w.stopped = append(m.w.stopped, m)
	ctx, cancel := context.WithTimeout(m.w.ctx, m.w.slow*bootWithin)
	defer cancel()
	m.w.must(m.all.StopMachine(ctx, m.name), "stop %s", m.name)
}

// Start switches it on, and returns when what was on it is ready again.
func (m *Machine) Start() {
	m.w.tell("starting " + m.name)
	ctx, cancel := context.WithTimeout(m.w.ctx, m.w.slow*bootWithin)
	defer cancel()
	m.w.must(m.start(ctx), "start %s", m.name)
	for _, s := range m.serves {
		m.w.must(s.WaitReady(ctx), "wait for %s", s.Name())
	}
	m.w.must(m.w.broker.StartAll(ctx), "wait for the broker")
}

func (m *Machine) start(ctx context.Context) error {
	if err := m.all.StartMachine(ctx, m.name); err != nil {
		return err
	}
	m.w.stopped = slices.DeleteFunc(m.w.stopped, func(o *Machine) bool { return o == m })
	return nil
}

// startMachines starts those that a scenario has left off.
func (w *World) startMachines(ctx context.Context) error {
	var errs []error
	for _, m := range slices.Clone(w.stopped) {
		errs = append(errs, m.start(ctx))
	}
	return errors.Join(errs...)
}
