package local

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"warren.example/lab/substrate"
	"warren.example/lab/substrate/vhost"
	"warren.example/messaging/topology"
)

const (
	adminUser = "admin"
	bootTime  = 90 * time.Second // a node needs 6 s; three on a busy machine a minute
)

// Broker is a private RabbitMQ of one or three nodes.
type Broker struct {
	launch   launcher
	nodes    []*node
	epmd     *node  // Erlang's name service, run like a node
	password string // of adminUser
	version  topology.Version

	calm vhost.Calm

	mu sync.Mutex // of the nodes' lives
}

// startBroker starts n nodes and returns when all of them answer and have
// found each other. What it started is ended if it fails.
func startBroker(ctx context.Context, f *folder, launch launcher, n int) (_ *Broker, err error) {
	b := &Broker{launch: launch, password: rand.Text()}
	defer func() {
		if err != nil {
			b.stop()
		}
	}()
	if err := b.prepare(f, n); err != nil {
		return nil, err
	}
	if err := b.startEpmd(ctx, f); err != nil {
		return nil, err
	}
	for _, n := range b.nodes { // all at once: each waits for the others
		if err := b.run(n); err != nil { // nobody else knows b yet
			return nil, err
		}
	}
	for _, n := range b.nodes {
		if b.version, err = b.await(ctx, n); err != nil {
			return nil, err
		}
	}
	if err := vhost.CheckVersion(b.version); err != nil {
		return nil, err
	}
	return b, b.awaitCluster(ctx)
}

// prepare gives every node its folder and ports.
func (b *Broker) prepare(f *folder, n int) error {
	home := f.join("home")
	if err := os.Mkdir(home, 0o700); err != nil {
		return fmt.Errorf("run folder: %w", err)
	}
	// Erlang refuses a cookie that others can read.
	if err := os.WriteFile(filepath.Join(home, ".erlang.cookie"), []byte(rand.Text()), 0o400); err != nil {
		return fmt.Errorf("run folder: %w", err)
	}
	epmd, err := FreePort()
	if err != nil {
		return err
	}
	for i := range n {
		short := fmt.Sprintf("node%d", i)
		node := &node{
			name:  fmt.Sprintf("warren%d-%d@localhost", i, os.Getpid()),
			short: short, dir: f.join(short), home: home, folder: f, epmd: epmd,
		}
		if err := freePorts(&node.amqp, &node.management, &node.distribution); err != nil {
			return err
		}
		b.nodes = append(b.nodes, node)
	}
	for _, n := range b.nodes {
		if err := n.write(b.nodes, b.password); err != nil {
			return err
		}
	}
	return nil
}

// startEpmd starts Erlang's name service as a child of ours. A node would
// otherwise start one as a daemon that outlives it.
func (b *Broker) startEpmd(ctx context.Context, f *folder) error {
	first := b.nodes[0]
	where := *first // of the first node, but with a life and a name of its own
	where.short, where.dir, where.lives = "epmd", first.home, 0
	cmd, death := b.launch.command(&where, "epmd", "-address", "127.0.0.1", "-port", strconv.Itoa(first.epmd))
	c, err := spawn(f, cmd, death)
	if err != nil {
		return err
	}
	where.child, b.epmd = c, &where
	for {
		conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", first.epmd))
		if err == nil {
			return conn.Close()
		}
		select {
		case <-c.done:
			return fmt.Errorf("epmd on 127.0.0.1:%d ended: %v", first.epmd, c.err)
		case <-ctx.Done():
			return fmt.Errorf("wait for epmd on 127.0.0.1:%d: %w", first.epmd, ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// run starts a node's process; the caller holds the lock.
func (b *Broker) run(n *node) error {
	out, err := os.OpenFile(filepath.Join(n.dir, "log", "out.log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("node folder: %w", err)
	}
	defer out.Close()
	n.logged = n.logSize()
	cmd, death := b.launch.command(n, "rabbitmq-server")
	cmd.Stdout, cmd.Stderr = out, out
	n.child, err = spawn(n.folder, cmd, death)
	n.paused = false
	return err
}

// await returns when a node speaks AMQP, its management API answers and it says
// that it has started. The last matters in a cluster: 3.10.8 listens a moment
// earlier, and a node in that moment misses the news of a new virtual host,
// which then hangs for ever.
func (b *Broker) await(ctx context.Context, n *node) (topology.Version, error) {
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	life := b.life(n)
	for {
		version, err := b.ask(ctx, n)
		if err == nil {
			err = n.started()
		}
		if err == nil {
			return version, nil
		}
		select {
		case <-life.done:
			return version, fmt.Errorf("%s: %s ended while starting: %s", b.launch, n.name, n.lastWords())
		case <-ctx.Done():
			return version, fmt.Errorf("%s: wait for %s on 127.0.0.1:%d: %w; last: %v", b.launch, n.name, n.amqp, ctx.Err(), err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// ask logs in to a node once by either protocol.
func (b *Broker) ask(ctx context.Context, n *node) (topology.Version, error) {
	conn, err := vhost.Dial(b.url(n, adminUser, b.password, "/"))
	if err != nil {
		return topology.Version{}, err
	}
	defer conn.Close()
	version, err := topology.VersionOf(conn)
	if err != nil {
		return version, err
	}
	return version, b.managementOf(n).Get(ctx, "whoami", nil)
}

func (b *Broker) life(n *node) *child {
	b.mu.Lock()
	defer b.mu.Unlock()
	return n.child
}

// awaitCluster returns when the nodes run as one.
func (b *Broker) awaitCluster(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	for {
		running, err := b.managementOf(b.nodes[0]).Running(ctx)
		if err == nil && running == len(b.nodes) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for %d nodes to form a cluster: %d run: %w", len(b.nodes), running, errors.Join(ctx.Err(), err))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

// stop ends everything at once: the data goes with it.
func (b *Broker) stop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range b.nodes {
		if n.child != nil {
			b.kill(n)
		}
	}
	if b.epmd != nil {
		b.kill(b.epmd)
	}
}

// kill ends a node by SIGKILL of its VM and returns when it is gone.
func (b *Broker) kill(n *node) {
	if err := b.launch.signal(n, syscall.SIGKILL); err == nil {
		select {
		case <-n.child.done:
		case <-time.After(20 * time.Second):
		}
	}
	n.child.kill() // and the VM's helpers
}

// Version is that of the nodes.
func (b *Broker) Version() topology.Version { return b.version }

// Nodes is how many there are, dead ones included.
func (b *Broker) Nodes() int { return len(b.nodes) }

func (b *Broker) node(i int) (*node, error) {
	if i < 0 || i >= len(b.nodes) {
		return nil, fmt.Errorf("node %d: the broker has %d, counted from 0", i, len(b.nodes))
	}
	return b.nodes[i], nil
}

// Crash ends a node's Erlang VM by SIGKILL and returns when it is gone.
func (b *Broker) Crash(ctx context.Context, node int) error {
	n, err := b.node(node)
	if err != nil {
		return err
	}
	if err := b.calm.Wait(ctx); err != nil {
		return fmt.Errorf("crash node %d: %w", node, err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.kill(n)
	return nil
}

// CrashAll ends every node's VM at once. They are stopped first: between the
// first SIGKILL and the last, which may take seconds on a busy engine, clients
// would move to a node that lives and be served there.
func (b *Broker) CrashAll(ctx context.Context) error {
	if err := b.calm.Wait(ctx); err != nil {
		return fmt.Errorf("crash all nodes: %w", err)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	err := b.each(func(n *node) error { return b.launch.signal(n, syscall.SIGSTOP) })
	_ = b.each(func(n *node) error { b.kill(n); return nil })
	return err
}

// each does it to all nodes at once.
func (b *Broker) each(do func(*node) error) error {
	var all errgroup.Group
	for _, n := range b.nodes {
		all.Go(func() error { return do(n) })
	}
	return all.Wait()
}

// StartAll starts every node that is dead, all at once since each waits for the
// others, and returns when all answer as one cluster.
func (b *Broker) StartAll(ctx context.Context) error {
	if err := b.each(func(n *node) error { return b.bring(ctx, n) }); err != nil {
		return err
	}
	return b.awaitCluster(ctx)
}

// Start starts a node that was crashed, on its data and its ports, and
// returns when it answers. A node that runs is left alone.
func (b *Broker) Start(ctx context.Context, node int) error {
	n, err := b.node(node)
	if err != nil {
		return err
	}
	return b.bring(ctx, n)
}

// bring is the service manager of a node that has run before: what ends while it
// starts is started again, twice at most. A node of 3.10.8 was seen to, when three
// came back from a crash at once.
func (b *Broker) bring(ctx context.Context, n *node) error {
	for again := 2; ; again-- {
		if err := b.runAgain(n); err != nil {
			return err
		}
		_, err := b.await(ctx, n)
		if err == nil || again == 0 || !b.life(n).gone() {
			return err
		}
	}
}

func (b *Broker) runAgain(n *node) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !n.child.gone() {
		return nil
	}
	return b.run(n)
}

// Pause stops a node's VM by SIGSTOP: its sockets stay open and silent.
func (b *Broker) Pause(ctx context.Context, node int) error {
	n, err := b.suspend(node, syscall.SIGSTOP)
	if err != nil {
		return err
	}
	return stopped(ctx, b.launch.pid(n))
}

// Resume lets it go on.
func (b *Broker) Resume(_ context.Context, node int) error {
	_, err := b.suspend(node, syscall.SIGCONT)
	return err
}

func (b *Broker) suspend(node int, s syscall.Signal) (*node, error) {
	n, err := b.node(node)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	n.paused = s == syscall.SIGSTOP
	return n, b.launch.signal(n, s)
}

// revive undoes what a room before may have left: dead and paused nodes.
func (b *Broker) revive(ctx context.Context) error {
	for i := range b.nodes {
		if err := b.Resume(ctx, i); err != nil {
			return err
		}
	}
	return b.StartAll(ctx)
}

// Leader is the node that leads a queue.
func (b *Broker) Leader(ctx context.Context, r substrate.Room, queue string) (int, error) {
	room, ok := r.(*Room)
	if !ok {
		return 0, fmt.Errorf("room %T: not of this substrate", r)
	}
	q, err := b.management().Queue(ctx, room.vhost, queue)
	if err != nil {
		return 0, err
	}
	i := slices.IndexFunc(b.nodes, func(n *node) bool { return n.name == q.LedBy() })
	if i < 0 {
		return 0, fmt.Errorf("leader of queue %s: node %q is none of ours", queue, q.LedBy())
	}
	return i, nil
}

// Command runs rabbitmqctl on a node and returns what it printed.
func (b *Broker) Command(ctx context.Context, node int, args ...string) ([]byte, error) {
	n, err := b.node(node)
	if err != nil {
		return nil, err
	}
	out, err := b.launch.ctl(ctx, n, "rabbitmqctl", append([]string{"--node", n.name}, args...)...).CombinedOutput()
	if err != nil {
		return out, fmt.Errorf("rabbitmqctl %v: %s", args, oneLine(string(out), err))
	}
	return out, nil
}

// PID is that of a node's Erlang VM on this machine, 0 if it cannot be seen.
func (b *Broker) PID(node int) int {
	n, err := b.node(node)
	if err != nil {
		return 0
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if n.child.gone() {
		return 0
	}
	return b.launch.pid(n)
}

// alive is the first node that can answer, or the first of all.
func (b *Broker) alive() *node {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, n := range b.nodes {
		if n.child != nil && !n.child.gone() && !n.paused {
			return n
		}
	}
	return b.nodes[0]
}

func (b *Broker) management() vhost.API { return b.managementOf(b.alive()) }

func (b *Broker) managementOf(n *node) vhost.API {
	return vhost.API{URL: fmt.Sprintf("http://127.0.0.1:%d", n.management), User: adminUser, Password: b.password}
}

func (b *Broker) url(n *node, user, password, name string) string {
	return vhost.URL("amqp", fmt.Sprintf("127.0.0.1:%d", n.amqp), user, password, name)
}

func (b *Broker) urls(user, password, name string) []string {
	var all []string
	for _, n := range b.nodes {
		all = append(all, b.url(n, user, password, name))
	}
	return all
}

// Kind is process or container.
func (b *Broker) Kind() string {
	if _, ok := b.launch.(containers); ok {
		return "container"
	}
	return "process"
}
