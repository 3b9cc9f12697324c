package local

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"

	"warren.example/lab/link"
	"warren.example/lab/substrate"
	"warren.example/lab/substrate/vhost"
	"warren.example/messaging/event"
	"warren.example/messaging/topology"
)

const (
	durable    = true
	autoDelete = true
	exclusive  = true
	noWait     = true
)

// Room is one virtual host and the services in it.
type Room struct {
	s        *Substrate
	vhost    string
	dir      string
	declared *topology.Topology // in a vhost that is not ours to delete

	linesMu sync.Mutex
	lines   func(event.Line)

	mu        sync.Mutex
	processes []*Process
	links     []*link.Link
	closed    bool
}

var notInName = regexp.MustCompile(`[^a-z0-9-]+`)

func newRoom(s *Substrate, seq int, name string, lines func(event.Line)) *Room {
	name = strings.Trim(notInName.ReplaceAllString(strings.ToLower(name), "-"), "-")
	vhost := fmt.Sprintf("warren-%d-%d-%s", os.Getpid(), seq, name)
	const longest = 64 // it is also the name of the run on every event
	if len(vhost) > longest {
		vhost = vhost[:longest]
	}
	return &Room{s: s, vhost: vhost, dir: s.folder.join("rooms", vhost), lines: lines}
}

// open makes the virtual host.
func (r *Room) open(ctx context.Context, change func(*topology.Topology)) error {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return err
	}
	t := topology.For(r.s.broker.Version())
	if change != nil {
		change(&t)
	}
	if r.s.users == nil {
		return r.openGiven(ctx, t)
	}
	err := vhost.Apply(ctx, r.s.broker.management(), r.vhost, t, r.URL)
	if b, ours := r.s.broker.(*Broker); ours {
		b.calm.Declared()
	}
	return err
}

// openGiven declares in a virtual host that the user gave, as the user given.
// It must not hold our queues yet: they would be somebody's.
func (r *Room) openGiven(ctx context.Context, t topology.Topology) error {
	r.s.mu.Lock()
	others := len(r.s.rooms) > 1
	r.s.mu.Unlock()
	if others {
		return fmt.Errorf("a second virtual host at the same time: needs --management-url: %w", substrate.ErrUnsupported)
	}
	conn, err := vhost.Dial(r.AdminURL())
	if err != nil {
		return err
	}
	defer conn.Close()
	for _, q := range t.Queues {
		ch, err := conn.Channel()
		if err != nil {
			return err
		}
		if _, err := ch.QueueDeclarePassive(q.Name, durable, !autoDelete, !exclusive, !noWait, nil); err == nil {
			return fmt.Errorf("queue %s exists already in the virtual host of --amqp-url: give an empty one", q.Name)
		}
	}
	r.declared = &t
	return t.Declare(conn)
}

// URL is for a service: one URL per node, separated by commas.
func (r *Room) URL(user string) string {
	return strings.Join(r.s.broker.urls(user, r.s.users[user], r.vhost), ",")
}

// NodeURLs are those of URL.
func (r *Room) NodeURLs(user string) ([]string, error) {
	urls := strings.Split(r.URL(user), ",")
	if len(urls) != r.s.broker.Nodes() {
		return nil, fmt.Errorf("choose a node of the broker: %w", substrate.ErrUnsupported)
	}
	return urls, nil
}

// AdminURL is of the node that can answer now.
func (r *Room) AdminURL() string {
	if b, ours := r.s.broker.(*Broker); ours {
		return b.url(b.alive(), adminUser, b.password, r.vhost)
	}
	m := r.s.broker.management()
	return r.s.broker.urls(m.User, m.Password, r.vhost)[0]
}

// Queue counts messages; see substrate.QueueState.
func (r *Room) Queue(ctx context.Context, name string) (substrate.QueueState, error) {
	m := r.s.broker.management()
	if m.URL == "" {
		return substrate.QueueState{}, fmt.Errorf("count the messages of queue %s: needs --management-url: %w", name, substrate.ErrUnsupported)
	}
	return m.State(ctx, r.vhost, name, r.AdminURL())
}

// Disturbances are none: nobody else knows of what runs in the room.
func (r *Room) Disturbances() []string { return nil }

// Missed is none: the lab holds the pipes.
func (r *Room) Missed() []string { return nil }

// Start starts a service as a child process.
func (r *Room) Start(ctx context.Context, svc substrate.Service) (substrate.Process, error) {
	program, err := r.s.binaries.path(ctx, svc.Kind)
	if err != nil {
		return nil, err
	}
	p, err := newProcess(r, svc, program)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, fmt.Errorf("start %s: the room is closed", svc.Name)
	}
	if slices.ContainsFunc(r.processes, func(q *Process) bool { return q.Name() == svc.Name && !q.over() }) {
		return nil, fmt.Errorf("start %s: runs already; instance names are unique in a room", svc.Name)
	}
	if err := p.start(); err != nil {
		return nil, err
	}
	r.processes = append(r.processes, p)
	return p, nil
}

// Connect makes a link of this process's own.
func (r *Room) Connect(_ context.Context, user string) (substrate.Link, error) {
	node, _, _ := strings.Cut(r.URL(user), ",")
	u, err := url.Parse(node)
	if err != nil {
		return nil, errors.New("a link: malformed URL of the broker") // url.Parse would quote the password
	}
	k, err := link.Listen("127.0.0.1:0", u.Host)
	if err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.links = append(r.links, k)
	u.Host = k.Addr()
	return linked{k, u.String()}, nil
}

type linked struct {
	*link.Link
	url string
}

func (l linked) URL() string                              { return l.url }
func (l linked) Do(_ context.Context, o link.Order) error { return l.Link.Do(o) }
func (l linked) Hit(context.Context) (int, error)         { return l.Link.Hit(), nil }

// tell passes an event line on, from one goroutine at a time.
func (r *Room) tell(l event.Line) {
	r.linesMu.Lock()
	defer r.linesMu.Unlock()
	if r.lines != nil {
		r.lines(l)
	}
}

// Close ends the room's services and removes its virtual host.
func (r *Room) Close(ctx context.Context) error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	processes, links := r.processes, r.links
	r.mu.Unlock()
	var wait sync.WaitGroup
	for _, p := range processes {
		wait.Go(p.close)
	}
	wait.Wait()
	var errs []error
	for _, k := range links {
		errs = append(errs, k.Close())
	}
	err := errors.Join(append(errs, r.remove(ctx))...)
	r.s.mu.Lock()
	delete(r.s.rooms, r)
	r.s.mu.Unlock()
	return err
}

func (r *Room) remove(ctx context.Context) error {
	if r.declared != nil {
		return r.undeclare()
	}
	if b, ours := r.s.broker.(*Broker); ours && b.alive().child.gone() {
		return nil // no node to ask, and the virtual host goes with the broker
	}
	if r.s.users == nil {
		return nil
	}
	return r.s.broker.management().Remove(ctx, r.vhost)
}

// undeclare takes back what openGiven declared.
func (r *Room) undeclare() error {
	conn, err := vhost.Dial(r.AdminURL())
	if err != nil {
		return err
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	const ifUnused, ifEmpty = true, true
	var errs []error
	for _, q := range r.declared.Queues {
		_, err := ch.QueueDelete(q.Name, !ifUnused, !ifEmpty, !noWait)
		errs = append(errs, err)
	}
	for _, e := range r.declared.Exchanges {
		errs = append(errs, ch.ExchangeDelete(e.Name, !ifUnused, !noWait))
	}
	return errors.Join(errs...)
}
