// Package topology is the broker's state as data: exchanges, queues, bindings,
// users and what each user may do. One table is the only source; Declare
// applies it to a live broker, and a chart's definitions are rendered from it.
//
// Queue arguments, not policies, carry the topology, so that a queue and its
// rules can never part. Only the user topology declares; a service that finds
// something missing goes unready and waits.
package topology

import (
	"fmt"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/messaging/contract"
)

const (
	durable    = true
	autoDelete = true
	exclusive  = true
	internal   = true
	noWait     = true
)

// Vhost is the virtual host of the suite in every deployment.
const Vhost = "calc"

// Version is a broker's. What a queue may be told depends on it.
type Version struct{ Major, Minor, Patch int }

// Oldest is the oldest broker that the suite knows.
var Oldest = Version{3, 10, 0}

// ParseVersion reads "3.10.8" or "4.3.6"; what follows the three numbers, as
// in "4.3.0-rc.1", is ignored.
func ParseVersion(s string) (Version, error) {
	var v Version
	if n, err := fmt.Sscanf(s, "%d.%d.%d", &v.Major, &v.Minor, &v.Patch); n != 3 {
		return Version{}, fmt.Errorf("broker version %q: %w", s, err)
	}
	return v, nil
}

// VersionOf is the version of the broker at the other end of conn.
func VersionOf(conn *amqp.Connection) (Version, error) {
	s, _ := conn.Properties["version"].(string)
	return ParseVersion(s)
}

// AtLeast says whether v is major.minor or newer.
func (v Version) AtLeast(major, minor int) bool {
	return v.Major > major || v.Major == major && v.Minor >= minor
}

func (v Version) String() string { return fmt.Sprintf("%d.%d.%d", v.Major, v.Minor, v.Patch) }

// Exchange is declared durable, never auto-deleted.
type Exchange struct{ Name, Kind string }

// Queue is declared durable, not exclusive.
type Queue struct {
	Name string
	Args amqp.Table
}

// Binding binds Queue to Exchange.
type Binding struct{ Exchange, Queue, Key string }

// Topology is what Declare declares, in this order.
type Topology struct {
	Exchanges []Exchange
	Queues    []Queue
	Bindings  []Binding
}

// DeliveryLimit is how often a request may fail (reject, crash of its server)
// before it is dead-lettered: with limit N it is delivered N+1 times.
const DeliveryLimit = 5

// MaxRequests bounds the request queue; beyond it publishes are nacked.
const MaxRequests = 50_000

// For is the topology for a broker of version v.
func For(v Version) Topology {
	deadLetters := amqp.Table{"x-queue-type": "quorum"}
	if v.AtLeast(4, 0) {
		// Since 4.0 a quorum queue has a delivery limit of 20 by default, and an
		// auditor's crash loop would drop dead letters. On 3.10 there is none, and
		// -1 would drop a message at its first reject.
		deadLetters["x-delivery-limit"] = int64(-1)
	}
	return Topology{
		Exchanges: []Exchange{
			{contract.ReplyExchange, amqp.ExchangeTopic}, // first: topic permissions need it to exist
			{contract.RequestExchange, amqp.ExchangeDirect},
			{contract.DeadLetterExchange, amqp.ExchangeFanout},
		},
		Queues: []Queue{
			{contract.DeadLetterQueue, deadLetters},
			{contract.RequestQueue, amqp.Table{
				"x-queue-type":           "quorum",
				"x-delivery-limit":       int64(DeliveryLimit),
				"x-dead-letter-exchange": contract.DeadLetterExchange,
				// At least once: the broker keeps a dead letter until calc.dlq has
				// confirmed it. That works with reject-publish only; with drop-head the
				// broker falls back to at-most-once and says so in its log alone.
				"x-dead-letter-strategy": "at-least-once",
				"x-overflow":             "reject-publish",
				"x-max-length":           int64(MaxRequests),
			}},
		},
		Bindings: []Binding{
			{contract.DeadLetterExchange, contract.DeadLetterQueue, ""},
			{contract.RequestExchange, contract.RequestQueue, contract.RequestKey},
		},
	}
}

// Declare applies t as the connection's user. Repeating it is safe; a queue that
// exists with other arguments is an error (406) and is left as it is.
//
// The answer to the declaration of a quorum queue comes from its leader, so
// there is nothing to wait for, but 3.10.8 writes the queue's place in its log
// to disk about a second later: killed before that, it was seen to bring the
// queue back without a leader, for ever. No question over AMQP shows that state
// (a passive declare answers 0 messages), so whoever kills brokers must wait.
func (t Topology) Declare(conn *amqp.Connection) error {
	ch, err := conn.Channel()
	if err != nil {
		return fmt.Errorf("open channel: %w", err)
	}
	defer ch.Close()
	for _, e := range t.Exchanges {
		if err := ch.ExchangeDeclare(e.Name, e.Kind, durable, !autoDelete, !internal, !noWait, nil); err != nil {
			return fmt.Errorf("declare exchange %s: %w", e.Name, err)
		}
	}
	for _, q := range t.Queues {
		if _, err := ch.QueueDeclare(q.Name, durable, !autoDelete, !exclusive, !noWait, q.Args); err != nil {
			return fmt.Errorf("declare queue %s: %w", q.Name, err)
		}
	}
	for _, b := range t.Bindings {
		if err := ch.QueueBind(b.Queue, b.Key, b.Exchange, !noWait, nil); err != nil {
			return fmt.Errorf("bind queue %s to %s: %w", b.Queue, b.Exchange, err)
		}
	}
	return nil
}

// User is a broker user with the least that it needs. The expressions are
// anchored regular expressions on names of exchanges and queues.
type User struct {
	Name                   string
	Tags                   string
	Configure, Write, Read string
	// TopicWrite and TopicRead restrict routing keys on calc.reply. Every user
	// has them, because a user without any is unrestricted there.
	TopicWrite, TopicRead string
}

// Users lists who may do what. Permissions guard exchanges, not queues: write
// on the default exchange would reach any queue by name, so nobody has it.
func Users() []User {
	const none = "^$"
	reply := func(prefix string) string { return "^" + quote(prefix) + `\..+$` }
	anyOf := func(names ...string) string {
		parts := make([]string, len(names))
		for i, n := range names {
			parts[i] = strings.TrimSuffix(strings.TrimPrefix(n, "^"), "$")
		}
		return "^(" + strings.Join(parts, "|") + ")$"
	}
	own := func(user string) string { return "^client\\." + user + "\\." }
	clientReply, auditorReply := reply(contract.ClientReplyQueue), reply(contract.AuditorReplyQueue)
	replyX, requestX, requestQ := quote(contract.ReplyExchange), quote(contract.RequestExchange), quote(contract.RequestQueue)
	return []User{
		{Name: contract.UserTopology, Configure: `^calc\..*`, Write: `^calc\..*`, Read: `^calc\..*`, TopicWrite: none, TopicRead: none},
		{Name: contract.UserServer, Configure: none, Write: anyOf(replyX), Read: anyOf(requestQ), TopicWrite: `^client\.`, TopicRead: none},
		// Write on calc.requests allows nothing more than the passive probe for a
		// server, which since 4.3 needs some permission on the queue.
		{Name: contract.UserClient, Configure: clientReply, Write: anyOf(requestX, requestQ, clientReply),
			Read: anyOf(replyX, clientReply), TopicWrite: none, TopicRead: own(contract.UserClient)},
		{Name: contract.UserAuditor, Configure: auditorReply, Write: anyOf(requestX, auditorReply),
			Read: anyOf(quote(contract.DeadLetterQueue), replyX, auditorReply), TopicWrite: none, TopicRead: own(contract.UserAuditor)},
		{Name: contract.UserMonitor, Tags: "monitoring", Configure: none, Write: none, Read: none, TopicWrite: none, TopicRead: none},
	}
}

// quote escapes the one character of our names that a regular expression minds.
func quote(name string) string { return strings.ReplaceAll(name, ".", `\.`) }
