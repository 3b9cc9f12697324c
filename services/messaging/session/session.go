// Package session keeps AMQP connections alive and tells the truth about what
// happened on them. It is the only package that dials.
//
// Each connection and everything on it is an epoch. When anything on it
// breaks (the broker restarts, a channel is closed under us, a consumer is
// cancelled, heartbeats stop) the whole epoch ends and a fresh connection with
// fresh channels takes its place. Nothing of an old epoch is ever used again:
// delivery tags and confirm numbers start at 1 each time, and a late ack for
// tag 2 would otherwise settle another message. For the same reason the
// library's own recovery, which re-opens the same Channel, stays off.
//
// Publisher and Consumer have a connection each, because a broker that is
// short of memory stops reading from connections that publish, and acks must
// not wait behind that.
//
// Neither ever gives up. A broker that is away is a state, see Ready, not an
// error; there is no last attempt.
package session

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"

	"warren.example/messaging/event"
	"warren.example/messaging/topology"
)

// What Ready and the errors of Publish wrap.
var (
	ErrClosed     = errors.New("session closed")
	ErrConnecting = errors.New("not connected to the broker")
	ErrBlocked    = errors.New("the broker has blocked publishers")
	ErrPaused     = errors.New("paused by this process")
	ErrCancelled  = errors.New("the broker cancelled the consumer")
	ErrOnlyNacks  = errors.New("the broker nacks everything on this channel")
	ErrTooOld     = errors.New("the broker is too old")
)

// Options are common to publishers and consumers.
type Options struct {
	Config  Config
	Name    string          // shown by the broker as connection_name; role and epoch are appended
	Log     *zap.Logger     // nil: silent
	Events  *event.Recorder // nil: none
	Metrics *Metrics        // nil: none
}

// An epoch is one connection and everything on it.
type epoch struct {
	id   uint64
	conn *amqp.Connection
	raw  *conn
	open atomic.Bool
	ctx  context.Context         // done when the epoch is over
	fail context.CancelCauseFunc // ends it; the first cause stays
}

// watch ends the epoch when what it depends on is closed. The library drops
// notifications that nobody takes, hence a channel of capacity 1 each.
func (e *epoch) watch(closed <-chan *amqp.Error) {
	if err, ok := <-closed; ok {
		e.fail(err)
		return
	}
	e.fail(errOver)
}

// errOver is the cause of an epoch that ended without an error.
var errOver = errors.New("the connection was closed")

// end closes the connection. The socket goes first: closing politely would
// wait for an answer from a peer that may be gone.
func (e *epoch) end(politely bool) {
	e.fail(errOver)
	if politely {
		_ = e.conn.CloseDeadline(time.Now().Add(e.raw.timeout))
	}
	_ = e.raw.Close()
	_ = e.conn.Close()
}

// dial opens one connection. Nothing of it is in use yet, so a context that
// ends closes the socket and with it whatever the handshake waits for.
func (c *Config) dial(ctx context.Context, rawURL, name string, id uint64) (*epoch, error) {
	uri, err := parse(rawURL)
	if err != nil {
		return nil, err
	}
	auth, err := c.credentials(uri)
	if err != nil {
		return nil, err
	}
	cfg := amqp.Config{
		SASL:       []amqp.Authentication{auth},
		Vhost:      uri.Vhost,
		Heartbeat:  c.Heartbeat,
		Properties: amqp.NewConnectionProperties(),
	}
	cfg.Properties.SetClientConnectionName(name)
	var settings *tls.Config
	if uri.Scheme == "amqps" {
		if settings, err = c.tls(uri.Host); err != nil {
			return nil, err
		}
	}
	var raw *conn
	stop := func() bool { return true }
	cfg.Dial = func(network, addr string) (net.Conn, error) {
		// An address without a machine behind it must leave time for the next: a
		// Service of Kubernetes has them until it knows that a node is lost.
		d := net.Dialer{Timeout: c.OpenTimeout / 3}
		tcp, err := d.DialContext(ctx, network, addr)
		if err != nil {
			return nil, err
		}
		stop = context.AfterFunc(ctx, func() { _ = tcp.Close() })
		// A peer that accepts and says nothing (a stopped broker does that) must
		// not hold the handshake; the library clears this once it is open.
		transport, err := tcp, tcp.SetDeadline(time.Now().Add(c.OpenTimeout))
		if settings != nil && err == nil {
			client := tls.Client(tcp, settings)
			transport, err = client, client.HandshakeContext(ctx)
		}
		if err != nil {
			_ = tcp.Close()
			return nil, err
		}
		raw = newConn(transport, tcp, c.WriteTimeout)
		return raw, nil
	}
	target := amqp.URI{Scheme: "amqp", Host: uri.Host, Port: uri.Port, Vhost: uri.Vhost, Username: "-", Password: "-"}
	connection, err := amqp.DialConfig(target.String(), cfg)
	stop()
	if err != nil {
		if raw != nil {
			err = raw.explain(err)
			_ = raw.Close()
		}
		return nil, fmt.Errorf("connect to %s:%d as %s: %w", uri.Host, uri.Port, c.User(), err)
	}
	e := &epoch{id: id, conn: connection, raw: raw}
	e.ctx, e.fail = context.WithCancelCause(context.WithoutCancel(ctx))
	if err := known(topology.VersionOf(connection)); err != nil {
		const politely = true
		e.end(politely)
		return nil, fmt.Errorf("connect to %s:%d: %w", uri.Host, uri.Port, err)
	}
	return e, nil
}

// known refuses a broker whose quorum queues cannot do what is promised here.
func known(v topology.Version, err error) error {
	oldest := topology.Oldest
	if err == nil && !v.AtLeast(oldest.Major, oldest.Minor) {
		err = fmt.Errorf("RabbitMQ %s: %w, need %d.%d or newer", v, ErrTooOld, oldest.Major, oldest.Minor)
	}
	return err
}

// A link is one connection that is replaced whenever it ends.
type link struct {
	Options
	role string // publish or consume

	closing context.Context // done once Close was called: open nothing new, end politely
	close   context.CancelFunc
	hard    context.Context // done once Close ran out of patience
	abort   context.CancelFunc
	done    chan struct{} // closed when nothing is left to do

	mu      sync.Mutex
	why     error         // why it is not ready; nil: it is
	changed chan struct{} // closed and replaced whenever why changes
	current *epoch        // the one that is open; nil: none
}

func newLink(o Options, role string) *link {
	if o.Log == nil {
		o.Log = zap.NewNop()
	}
	o.Log = o.Log.With(zap.String("session", role))
	l := &link{Options: o, role: role, done: make(chan struct{}), why: ErrConnecting, changed: make(chan struct{})}
	l.closing, l.close = context.WithCancel(context.Background())
	l.hard, l.abort = context.WithCancel(context.Background())
	return l
}

// supervise runs one epoch after the other until Close. Serve opens what it
// needs on the epoch, calls opened, and returns when the epoch is over; nil
// means that it was closed on purpose. Between two epochs idle passes the time
// until wake fires or the link is closing.
func (l *link) supervise(serve func(*epoch) error, idle func(wake <-chan time.Time)) {
	hosts := rand.Perm(len(l.Config.URL)) // clients spread over the nodes
	var id uint64
	failures, quiet := 0, false
	for l.closing.Err() == nil {
		host := l.Config.URL[hosts[failures%len(hosts)]]
		e, err := l.Config.dial(l.closing, host, fmt.Sprintf("%s %s/%d", l.Name, l.role, id+1), id+1)
		if err == nil {
			id++
			began := time.Now()
			err = l.run(e, serve)
			quiet = quiet && !e.open.Load()
			if time.Since(began) > 2*l.Config.MaxBackoff {
				failures = 0 // it was stable
			}
		}
		if l.closing.Err() != nil {
			break
		}
		failures++
		l.set(fmt.Errorf("%w: %w", ErrConnecting, err))
		wait := backoff(failures, l.Config.MaxBackoff, err)
		if !quiet { // one line per change of state, however long it lasts
			l.Log.Warn("session lost", zap.Uint64("epoch", id), zap.Error(err), zap.Duration("retry_in", wait))
			quiet = true
		}
		timer := time.NewTimer(wait)
		idle(timer.C)
		timer.Stop()
	}
	l.set(ErrClosed)
}

func (l *link) run(e *epoch, serve func(*epoch) error) error {
	end := e.fail
	e.fail = func(err error) { // not ready first: whoever learns of the end finds it so
		if e.ctx.Err() == nil {
			l.setFor(e, fmt.Errorf("%w: %w", ErrConnecting, err))
		}
		end(err)
	}
	go e.watch(e.conn.NotifyClose(make(chan *amqp.Error, 1)))
	stopAbort := context.AfterFunc(l.hard, func() { _ = e.raw.Close() })
	// Opening is made of calls that the library does not bound in time.
	opening := time.AfterFunc(l.Config.OpenTimeout, func() {
		if !e.open.Load() {
			e.fail(fmt.Errorf("opening took longer than %s", l.Config.OpenTimeout))
			_ = e.raw.Close()
		}
	})
	err := serve(e)
	opening.Stop()
	if cause := context.Cause(e.ctx); err != nil && cause != nil && e.open.Load() {
		err = cause // the reason that came first, not what followed from it
	}
	l.mu.Lock()
	l.current = nil
	l.mu.Unlock()
	if e.open.Load() {
		l.Metrics.opened(l.role, false)
	}
	e.end(err == nil)
	stopAbort() // not before: a farewell to a broker that is stopped must be cut short, too
	return err
}

// opened says that nothing is left to open. Why is nil if the epoch does its
// work from now on.
func (l *link) opened(e *epoch, why error) {
	defer l.setFor(e, why)
	if e.open.Swap(true) {
		return // before, and it was paused in between
	}
	l.mu.Lock()
	l.current = e
	l.mu.Unlock()
	l.Metrics.opened(l.role, true)
	version, _ := e.conn.Properties["version"].(string)
	l.Log.Info("session opened", zap.Uint64("epoch", e.id), zap.Stringer("broker", e.conn.RemoteAddr()), zap.String("version", version))
}

// set says why the link is not ready; nil: it is.
func (l *link) set(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.why = why
	close(l.changed)
	l.changed = make(chan struct{})
}

// setFor is set, unless e is over by now: a late word about an old connection
// must not be taken for one about the new.
func (l *link) setFor(e *epoch, why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.current == e {
		l.why = why
		close(l.changed)
		l.changed = make(chan struct{})
	}
}

// epoch is the one that is open, or nil.
func (l *link) epoch() *epoch {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.current
}

// Ready returns nil if work can be done now, or why not. It is for readiness
// probes and for callers that would rather fail than wait.
func (l *link) Ready() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.why
}

// WaitReady returns nil as soon as Ready does. The error says what it was
// waiting for when ctx ended, or ErrClosed.
func (l *link) WaitReady(ctx context.Context) error {
	for {
		l.mu.Lock()
		why, changed := l.why, l.changed
		l.mu.Unlock()
		if why == nil || errors.Is(why, ErrClosed) {
			return why
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ctx.Err(), why)
		}
	}
}

// Close ends the session politely. If ctx ends first it cuts the connection:
// what was unconfirmed is then Unknown, what was unsettled is requeued by the
// broker.
func (l *link) Close(ctx context.Context) error {
	l.close()
	select {
	case <-l.done:
		return nil
	case <-ctx.Done():
		l.abort()
		<-l.done
		return fmt.Errorf("close %s: %w", l.role, ctx.Err())
	}
}

// backoff grows from 50 ms to the most, halved at random so that clients of a
// restarted broker do not come back in step. A refused login waits longer, and a
// broker that is too old: somebody has to do something about it first.
func backoff(failures int, most time.Duration, err error) time.Duration {
	const least = 50 * time.Millisecond
	d := min(least<<min(failures-1, 16), most)
	var refused *amqp.Error
	if errors.As(err, &refused) && (refused.Code == amqp.AccessRefused || refused.Code == amqp.NotAllowed) || errors.Is(err, ErrTooOld) {
		d = 5 * most
	}
	return d/2 + rand.N(d/2+1)
}
