// Package local runs scenarios on this machine: a private RabbitMQ of one or
// three nodes and the services as child processes. It never touches a broker
// that it did not start, beyond a virtual host of its own, and everything it
// makes is gone after Close.
package local

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"sync"

	"warren.example/lab/substrate"
	"warren.example/lab/substrate/vhost"
	"warren.example/messaging/event"
	"warren.example/messaging/topology"
)

// Options says where the broker comes from. The zero value takes what the
// machine has: an installed rabbitmq-server, else a container.
type Options struct {
	Broker        string // auto, process, container or url; empty is auto
	Nodes         int    // 1 or 3; 0 is 1
	AMQPURL       string // somebody else's broker
	ManagementURL string // its management API, as a user who may make vhosts and users
	Image         string // of the container; empty takes one that the engine has
	BinDir        string // the services' programs; empty builds them
	Keep          bool   // leave the run folder with its logs
	Progress      func(step string)
}

// Validate refuses what cannot work before anything is started.
func (o *Options) Validate() error {
	switch o.Broker {
	case "":
		o.Broker = "auto"
	case "auto", "process", "container", "url":
	default:
		return fmt.Errorf("--broker %s: want auto, process, container or url", o.Broker)
	}
	if o.Nodes == 0 {
		o.Nodes = 1
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
	switch {
	case o.Nodes != 1 && o.Nodes != 3:
		return fmt.Errorf("--nodes %d: want 1, or 3 for quorums that survive a node", o.Nodes)
	case o.Broker == "url" && o.AMQPURL == "":
		return errors.New("--broker url: needs --amqp-url")
	case o.AMQPURL == "" && o.ManagementURL != "":
		return errors.New("--management-url: needs --amqp-url")
	case o.AMQPURL != "" && (o.Broker == "process" || o.Broker == "container"):
		return fmt.Errorf("--broker %s: contradicts --amqp-url", o.Broker)
	case o.AMQPURL != "" && o.Nodes != 1:
		return fmt.Errorf("--nodes %d: not with --amqp-url, whose broker has the nodes it has", o.Nodes)
	}
	return nil
}

// Substrate is this machine.
type Substrate struct {
	options  Options
	folder   *folder
	binaries *binaries
	broker   source
	users    map[string]string // broker user → password; nil with one user for all
	seq      int               // of rooms

	mu    sync.Mutex
	rooms map[*Room]bool
}

// source is a broker, ours or not, as rooms need it.
type source interface {
	substrate.Broker
	revive(ctx context.Context) error
	management() vhost.API
	// urls are one for each node.
	urls(user, password, name string) []string
	stop()
}

// New takes a broker, in the order of the package's options, and returns when
// it answers. What it made is gone if it fails.
func New(ctx context.Context, o Options) (_ *Substrate, err error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	f, err := newFolder()
	if err != nil {
		return nil, err
	}
	s := &Substrate{options: o, folder: f, rooms: map[*Room]bool{}, binaries: &binaries{dir: f.join("bin")}}
	if o.BinDir != "" {
		s.binaries = &binaries{dir: o.BinDir, ready: true}
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close(context.WithoutCancel(ctx)))
		}
	}()
	if s.broker, err = s.findBroker(ctx); err != nil {
		return nil, err
	}
	if s.broker.management().URL == "" {
		return s, nil // somebody else's, and one user for all
	}
	return s, s.createUsers(ctx)
}

func (s *Substrate) findBroker(ctx context.Context) (source, error) {
	o := s.options
	if o.AMQPURL != "" {
		return useBroker(ctx, o.AMQPURL, o.ManagementURL)
	}
	launch, err := findLauncher(ctx, o)
	if err != nil {
		return nil, err
	}
	o.Progress(fmt.Sprintf("starting %d node(s): %s", o.Nodes, launch))
	b, err := startBroker(ctx, s.folder, launch, o.Nodes)
	if err != nil {
		return nil, err
	}
	o.Progress(fmt.Sprintf("RabbitMQ %v answers on 127.0.0.1:%d", b.version, b.nodes[0].amqp))
	return b, nil
}

func findLauncher(ctx context.Context, o Options) (launcher, error) {
	var errs []string
	if o.Broker != "container" {
		bin, _, err := FindServer()
		if err == nil {
			return processes{bin}, nil
		}
		errs = append(errs, err.Error())
	}
	if o.Broker != "process" {
		image, err := findImage(ctx, o)
		if err == nil {
			return containers{image: image, run: "warren-" + strings.ToLower(rand.Text()[:8])}, nil
		}
		errs = append(errs, err.Error())
	}
	return nil, fmt.Errorf("no broker: %s (lab doctor says what to install)", strings.Join(errs, "; "))
}

// createUsers makes the suite's users, with passwords of this run. On a broker
// of somebody else's a user of that name is theirs, and left alone.
func (s *Substrate) createUsers(ctx context.Context) error {
	m := s.broker.management()
	if _, foreign := s.broker.(*foreign); foreign {
		for _, u := range topology.Users() {
			switch err := m.Get(ctx, "users/"+vhost.Segment(u.Name), nil); {
			case err == nil:
				return fmt.Errorf("broker user %s exists already and may be in use; remove it, or use another broker", u.Name)
			case vhost.Status(err) != 404:
				return err
			}
		}
	}
	s.users = map[string]string{}
	for _, u := range topology.Users() {
		s.users[u.Name] = rand.Text()
		if err := m.CreateUser(ctx, u, s.users[u.Name]); err != nil {
			return fmt.Errorf("create broker user %s: %w", u.Name, err)
		}
	}
	return nil
}

// Name is "local".
func (s *Substrate) Name() string { return "local" }

// Ours is true: this machine's processes are.
func (s *Substrate) Ours() bool { return true }

// Patience is 1: scenarios' budgets are those of this machine.
func (s *Substrate) Patience() int { return 1 }

// Broker is the RabbitMQ that rooms are in.
func (s *Substrate) Broker() substrate.Broker { return s.broker }

// Folder is where the logs of the run are.
func (s *Substrate) Folder() string { return s.folder.path }

// Program is the path of a service's program, built if need be.
func (s *Substrate) Program(ctx context.Context, kind substrate.Kind) (string, error) {
	return s.binaries.path(ctx, kind)
}

// ManagementURL is the broker's management API, with credentials.
func (s *Substrate) ManagementURL() string {
	m := s.broker.management()
	if m.URL == "" {
		return ""
	}
	scheme, rest, _ := strings.Cut(m.URL, "://")
	return fmt.Sprintf("%s://%s:%s@%s", scheme, m.User, m.Password, rest)
}

// Open makes a room; see substrate.Substrate.
func (s *Substrate) Open(ctx context.Context, name string, change func(*topology.Topology), lines func(event.Line)) (substrate.Room, error) {
	if err := s.broker.revive(ctx); err != nil {
		return nil, fmt.Errorf("revive broker: %w", err)
	}
	s.mu.Lock()
	s.seq++
	r := newRoom(s, s.seq, name, lines)
	s.rooms[r] = true
	s.mu.Unlock()
	if err := r.open(ctx, change); err != nil {
		return nil, errors.Join(fmt.Errorf("room %s: %w", name, err), r.Close(context.WithoutCancel(ctx)))
	}
	return r, nil
}

// Close removes everything that the substrate made. Each step runs even if an
// earlier one failed.
func (s *Substrate) Close(ctx context.Context) error {
	s.mu.Lock()
	rooms := make([]*Room, 0, len(s.rooms))
	for r := range s.rooms {
		rooms = append(rooms, r)
	}
	s.mu.Unlock()
	var errs []error
	for _, r := range rooms { // 1. services and virtual hosts
		errs = append(errs, r.Close(ctx))
	}
	if s.broker != nil { // 2. the broker, or our users on somebody else's
		if _, foreign := s.broker.(*foreign); foreign {
			for name := range s.users {
				errs = append(errs, s.broker.management().Delete(ctx, "users/"+vhost.Segment(name)))
			}
		}
		s.broker.stop()
	}
	if s.options.Keep {
		s.options.Progress("kept " + s.folder.path)
	}
	errs = append(errs, s.folder.remove(s.options.Keep)) // 3. files
	return errors.Join(errs...)
}
