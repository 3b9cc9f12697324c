// Package vhost prepares a broker for the suite: a virtual host with users,
// permissions and topology, over the management API and AMQP. Every substrate's
// rooms are made by it, and so is the virtual host of a deployment.
package vhost

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/messaging/contract"
	"warren.example/messaging/topology"
)

const (
	durable    = true
	autoDelete = true
	exclusive  = true
	noWait     = true
)

// URL is an AMQP URL; it escapes what needs it.
func URL(scheme, host, user, password, vhost string) string {
	u := url.URL{Scheme: scheme, User: url.UserPassword(user, password), Host: host, Path: "/" + vhost, RawPath: "/" + url.PathEscape(vhost)}
	return u.String()
}

// Apply makes a virtual host with permissions for the suite's users and with a
// topology, and shows that it keeps the users apart. Repeating it is safe.
// The users exist; urlOf is any URL of the virtual host for one of them.
//
// The order is the broker's: topic permissions are refused by 4.3 while
// calc.reply does not exist, and a user without any is unrestricted on it.
func Apply(ctx context.Context, a API, name string, t topology.Topology, urlOf func(user string) string) error {
	if err := a.Create(ctx, name); err != nil { // 1. a world of its own
		return err
	}
	for _, u := range topology.Users() { // 2. who may do what in it
		if err := a.permit(ctx, name, u); err != nil {
			return err
		}
	}
	if err := declareAs(t, urlOf(contract.UserTopology)); err != nil { // 3. exchanges and queues
		return err
	}
	for _, u := range topology.Users() { // 4. who may use which key on calc.reply
		if err := a.permitTopics(ctx, name, u); err != nil {
			return err
		}
	}
	return CheckBinds(urlOf) // 5. and it holds
}

func declareAs(t topology.Topology, url string) error {
	conn, err := Dial(url)
	if err != nil {
		return err
	}
	defer conn.Close()
	return t.Declare(conn)
}

// Declare declares the suite's topology as the user of the URL.
func Declare(url string) (topology.Version, error) {
	conn, err := Dial(url)
	if err != nil {
		return topology.Version{}, err
	}
	defer conn.Close()
	v, err := topology.VersionOf(conn)
	if err == nil {
		err = CheckVersion(v)
	}
	if err != nil {
		return v, err
	}
	return v, topology.For(v).Declare(conn)
}

// ErrTooOld is a broker whose quorum queues cannot do what the suite promises.
var ErrTooOld = errors.New("too old")

// CheckVersion is ErrTooOld, with the version, or nil.
func CheckVersion(v topology.Version) error {
	if v.AtLeast(topology.Oldest.Major, topology.Oldest.Minor) {
		return nil
	}
	return fmt.Errorf("RabbitMQ %v: %w, need %d.%d or newer", v, ErrTooOld, topology.Oldest.Major, topology.Oldest.Minor)
}

// Dial logs in, with a name that tells the lab from the services. Of several
// URLs, separated by commas, it takes the first.
func Dial(rawURL string) (*amqp.Connection, error) {
	rawURL, _, _ = strings.Cut(rawURL, ",")
	uri, err := amqp.ParseURI(rawURL)
	if err != nil {
		return nil, Redact(err, rawURL)
	}
	if u, err := url.Parse(rawURL); err != nil || u.User.Username() == "" {
		// The client library would log in as guest.
		return nil, fmt.Errorf("broker %s:%d: no user in the URL", uri.Host, uri.Port)
	}
	conn, err := amqp.DialConfig(rawURL, amqp.Config{
		Properties: amqp.Table{"connection_name": "lab"},
		Dial:       amqp.DefaultDial(10 * time.Second),
	})
	if err != nil {
		return nil, fmt.Errorf("broker %s:%d: %w", uri.Host, uri.Port, Redact(err, rawURL))
	}
	return conn, nil
}

// CheckBinds makes sure that no user can listen to another's replies: for each
// user that can bind at all, a foreign key and '#' must be refused with 403.
func CheckBinds(urlOf func(user string) string) error {
	for user, queue := range map[string]string{
		contract.UserClient:   contract.ClientReplyQueue + ".check.1",
		contract.UserAuditor:  contract.AuditorReplyQueue + ".check.1",
		contract.UserTopology: "calc.check",
	} {
		conn, err := Dial(urlOf(user))
		if err != nil {
			return err
		}
		for _, key := range []string{"client.somebody-else.x", "#"} {
			if err = refusesBind(conn, queue, key); err != nil {
				break
			}
		}
		_ = conn.Close() // its exclusive queue goes with it
		if err != nil {
			return fmt.Errorf("user %s: %w", user, err)
		}
	}
	return nil
}

func refusesBind(conn *amqp.Connection, queue, key string) error {
	ch, err := conn.Channel()
	if err != nil {
		return err
	}
	defer ch.Close()
	if _, err := ch.QueueDeclare(queue, !durable, autoDelete, exclusive, !noWait, nil); err != nil {
		return fmt.Errorf("declare queue %s: %w", queue, err)
	}
	var refused *amqp.Error
	switch err := ch.QueueBind(queue, key, contract.ReplyExchange, !noWait, nil); {
	case err == nil:
		return fmt.Errorf("bind %s to %s with key %s: allowed, must be refused with 403: replies can be overheard", queue, contract.ReplyExchange, key)
	case errors.As(err, &refused) && refused.Code == amqp.AccessRefused:
		return nil
	default:
		return fmt.Errorf("bind %s to %s with key %s: %w, want 403", queue, contract.ReplyExchange, key, err)
	}
}

// Calm is how long after declaring queues no node may crash. A node that dies
// within a second of it forgets the name of a quorum queue, which is then
// without a leader for ever (Raft's table of names is saved once a second; seen
// on 3.10.8 and, with the table read from disk, on 4.3.6 too).
type Calm struct {
	mu    sync.Mutex
	until time.Time
}

// Declared begins it anew.
func (c *Calm) Declared() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.until = time.Now().Add(2 * time.Second)
}

// Wait returns when it is over.
func (c *Calm) Wait(ctx context.Context) error {
	c.mu.Lock()
	until := c.until
	c.mu.Unlock()
	select {
	case <-time.After(time.Until(until)):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
