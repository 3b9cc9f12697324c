//go:build integration

package vhost

import (
	"errors"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/messaging/contract"
	"warren.example/messaging/topology"
)

// What each broker user may do, and what it is refused, at a live broker in
// the virtual host that `lab broker` exports. A refusal is the broker's code;
// 0 is success.

const (
	allowed = 0
	refusal = amqp.AccessRefused      // 403
	locked  = amqp.ResourceLocked     // 405: somebody's exclusive queue
	forged  = amqp.PreconditionFailed // 406: a user-id that is not one's own
)

type attempt struct {
	what string
	do   func(ch *amqp.Channel) error
	want int
}

func TestLeastPrivilege(t *testing.T) {
	// Refused to everybody who is not named below it.
	everybody := []attempt{
		{"publish to the default exchange", publish("", contract.DeadLetterQueue), refusal},
		{"publish a dead letter", publish(contract.DeadLetterExchange, ""), refusal},
		{"publish to amq.topic", publish("amq.topic", "x"), refusal},
		{"declare a queue elsewhere", declareQueue("elsewhere"), refusal},
		{"delete the request queue's exchange amq.direct", deleteExchange("amq.direct"), refusal},
	}
	noDeclare := []attempt{
		{"declare a queue", declareQueue("calc.other"), refusal},
		{"declare the request queue", declareQueue(contract.RequestQueue), refusal},
		{"declare an exchange", declareExchange("calc.other"), refusal},
		{"delete the request queue", deleteQueue(contract.RequestQueue), refusal},
		{"delete the dead-letter queue", deleteQueue(contract.DeadLetterQueue), refusal},
	}
	users := map[string][]attempt{
		contract.UserTopology: {
			{"declare a queue", declareExclusive("calc.mine"), allowed},
			{"bind a foreign key", bind("calc.mine", "client.calc-client.x"), refusal},
			{"bind #", bind("calc.mine", "#"), refusal},
		},
		contract.UserServer: append(noDeclare, []attempt{
			{"consume requests", consume(contract.RequestQueue), allowed},
			{"publish a reply", publish(contract.ReplyExchange, "client.calc-client.x"), allowed},
			{"publish a reply under another kind of key", publish(contract.ReplyExchange, "server.x"), refusal},
			{"publish a request", publish(contract.RequestExchange, contract.RequestKey), refusal},
			{"consume dead letters", consume(contract.DeadLetterQueue), refusal},
			{"consume a client's replies", consume(contract.ClientReplyQueue + ".victim.1"), refusal},
			{"declare a reply queue", declareExclusive(contract.ClientReplyQueue + ".server.1"), refusal},
			{"bind a foreign key", bind(contract.RequestQueue, "client.calc-client.x"), refusal},
			{"bind #", bind(contract.RequestQueue, "#"), refusal},
		}...),
		contract.UserClient: append(noDeclare, []attempt{
			{"publish a request", publish(contract.RequestExchange, contract.RequestKey), allowed},
			{"publish a request as somebody else", publishAs(contract.UserAuditor), forged},
			{"declare its reply queue", declareExclusive(contract.ClientReplyQueue + ".me.1"), allowed},
			{"bind its own key", bind(contract.ClientReplyQueue+".me.1", "client.calc-client.me"), allowed},
			{"consume its replies", consume(contract.ClientReplyQueue + ".me.1"), allowed},
			{"probe for a server", probe(contract.RequestQueue), allowed},
			{"bind a foreign key", bind(contract.ClientReplyQueue+".me.1", "client.dlq-auditor.x"), refusal},
			{"bind #", bind(contract.ClientReplyQueue+".me.1", "#"), refusal},
			{"bind client.#", bind(contract.ClientReplyQueue+".me.1", "client.#"), refusal},
			{"consume another client's replies", consume(contract.ClientReplyQueue + ".victim.1"), locked},
			{"consume requests", consume(contract.RequestQueue), refusal},
			{"purge requests", purge(contract.RequestQueue), refusal},
			{"consume dead letters", consume(contract.DeadLetterQueue), refusal},
			{"publish a reply", publish(contract.ReplyExchange, "client.calc-client.x"), refusal},
			{"declare an auditor's reply queue", declareExclusive(contract.AuditorReplyQueue + ".me.1"), refusal},
		}...),
		contract.UserAuditor: append(noDeclare, []attempt{
			{"consume dead letters", consume(contract.DeadLetterQueue), allowed},
			{"publish a request", publish(contract.RequestExchange, contract.RequestKey), allowed},
			{"declare its reply queue", declareExclusive(contract.AuditorReplyQueue + ".me.1"), allowed},
			{"bind its own key", bind(contract.AuditorReplyQueue+".me.1", "client.dlq-auditor.me"), allowed},
			{"consume its replies", consume(contract.AuditorReplyQueue + ".me.1"), allowed},
			{"bind a foreign key", bind(contract.AuditorReplyQueue+".me.1", "client.calc-client.x"), refusal},
			{"bind #", bind(contract.AuditorReplyQueue+".me.1", "#"), refusal},
			{"consume requests", consume(contract.RequestQueue), refusal},
			{"consume a client's replies", consume(contract.ClientReplyQueue + ".victim.1"), refusal},
			{"publish a reply", publish(contract.ReplyExchange, "client.calc-client.x"), refusal},
		}...),
		contract.UserMonitor: append(noDeclare, []attempt{
			{"consume requests", consume(contract.RequestQueue), refusal},
			{"consume dead letters", consume(contract.DeadLetterQueue), refusal},
			{"publish a request", publish(contract.RequestExchange, contract.RequestKey), refusal},
			{"publish a reply", publish(contract.ReplyExchange, "client.calc-client.x"), refusal},
			{"bind #", bind(contract.RequestQueue, "#"), refusal},
		}...),
	}

	// Somebody else's reply queue, to be listened at.
	victim := connect(t, "AMQP_URL")
	if err := declareExclusive(contract.ClientReplyQueue + ".victim.1")(channel(t, victim)); err != nil {
		t.Fatal(err)
	}
	for _, u := range topology.Users() {
		attempts, ok := users[u.Name]
		if !ok {
			t.Errorf("user %s: nothing is tried as it", u.Name)
		}
		t.Run(u.Name, func(t *testing.T) {
			conn := connect(t, "AMQP_URL_"+strings.ToUpper(strings.ReplaceAll(u.Name, "-", "_")))
			for _, a := range append(everybody, attempts...) {
				if u.Name == contract.UserTopology && a.what == "publish a dead letter" {
					continue // its write on calc.dlx is what dead-letter arguments need
				}
				ch := channel(t, conn) // a refusal closes it
				if got := code(a.do(ch)); got != a.want {
					t.Errorf("%s: code %d, want %d", a.what, got, a.want)
				}
				_ = ch.Close()
			}
		})
	}
	t.Cleanup(func() {
		for _, q := range []string{contract.RequestQueue, contract.DeadLetterQueue} {
			if err := purge(q)(channel(t, victim)); err != nil {
				t.Errorf("clean up: %v", err)
			}
		}
	})
}

// The management API opens for the monitor alone, and only to read.
func TestManagementIsForTheMonitor(t *testing.T) {
	api, err := url.Parse(os.Getenv("AMQP_MANAGEMENT_URL"))
	if err != nil || api.Host == "" {
		t.Fatal("AMQP_MANAGEMENT_URL is not set: run under `lab broker`")
	}
	api.User = nil
	for _, u := range topology.Users() {
		m := API{URL: api.String(), User: u.Name, Password: passwordOf(t, u.Name)}
		want := http.StatusUnauthorized
		if u.Name == contract.UserMonitor {
			want = 0
		}
		if got := status(m.Get(t.Context(), "overview", nil)); got != want {
			t.Errorf("%s reads the overview: status %d, want %d", u.Name, got, want)
		}
		if got := status(m.Put(t.Context(), "vhosts/mine", map[string]string{})); got != http.StatusUnauthorized {
			t.Errorf("%s makes a virtual host: status %d, want %d", u.Name, got, http.StatusUnauthorized)
		}
	}
}

func TestNobodyIsGuest(t *testing.T) {
	u, err := url.Parse(env(t, "AMQP_URL"))
	if err != nil {
		t.Fatal(err)
	}
	u.User = url.UserPassword("guest", "guest")
	if _, err := Dial(u.String()); err == nil {
		t.Error("guest logs in, want refused")
	}
}

func publish(exchange, key string) func(*amqp.Channel) error { return publishWith(exchange, key, "") }

func publishAs(user string) func(*amqp.Channel) error {
	return publishWith(contract.RequestExchange, contract.RequestKey, user)
}

// publishWith waits for the confirm, or for the broker to close the channel.
func publishWith(exchange, key, user string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error {
		if err := ch.Confirm(!noWait); err != nil {
			return err
		}
		closed := ch.NotifyClose(make(chan *amqp.Error, 1))
		confirm, err := ch.PublishWithDeferredConfirm(exchange, key, false, false, amqp.Publishing{UserId: user})
		if err != nil {
			return err
		}
		select {
		case err := <-closed:
			return err
		case <-confirm.Done():
		case <-time.After(10 * time.Second):
			return errors.New("neither confirmed nor refused")
		}
		select { // a closing channel resolves its confirms, too
		case err := <-closed:
			return err
		default:
		}
		if !confirm.Acked() {
			return <-closed
		}
		return nil
	}
}

func declareQueue(name string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error {
		_, err := ch.QueueDeclare(name, durable, !autoDelete, !exclusive, !noWait, nil)
		return err
	}
}

func declareExclusive(name string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error {
		_, err := ch.QueueDeclare(name, !durable, !autoDelete, exclusive, !noWait, nil)
		return err
	}
}

func declareExchange(name string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error {
		return ch.ExchangeDeclare(name, amqp.ExchangeDirect, durable, !autoDelete, false, !noWait, nil)
	}
}

func probe(queue string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error {
		_, err := ch.QueueDeclarePassive(queue, durable, !autoDelete, !exclusive, !noWait, nil)
		return err
	}
}

func bind(queue, key string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error { return ch.QueueBind(queue, key, contract.ReplyExchange, !noWait, nil) }
}

func consume(queue string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error {
		_, err := ch.Consume(queue, "", false, !exclusive, false, !noWait, nil)
		return err
	}
}

func purge(queue string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error {
		_, err := ch.QueuePurge(queue, !noWait)
		return err
	}
}

func deleteQueue(name string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error {
		_, err := ch.QueueDelete(name, false, false, !noWait)
		return err
	}
}

func deleteExchange(name string) func(*amqp.Channel) error {
	return func(ch *amqp.Channel) error { return ch.ExchangeDelete(name, false, !noWait) }
}

// code is the broker's, 0 without an error, -1 for an error of another kind.
func code(err error) int {
	var e *amqp.Error
	switch {
	case err == nil:
		return 0
	case errors.As(err, &e) && e != nil:
		return e.Code
	}
	return -1
}

// status is 0 without an error, -1 for an error of another kind.
func status(err error) int {
	if err == nil {
		return 0
	}
	if n := Status(err); n > 0 {
		return n
	}
	return -1
}

func env(t *testing.T, name string) string {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		t.Fatalf("%s is not set: run under `lab broker`", name)
	}
	url, _, _ := strings.Cut(v, ",")
	return url
}

func connect(t *testing.T, name string) *amqp.Connection {
	t.Helper()
	conn, err := Dial(env(t, name))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func channel(t *testing.T, conn *amqp.Connection) *amqp.Channel {
	t.Helper()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

func passwordOf(t *testing.T, user string) string {
	t.Helper()
	u, err := url.Parse(env(t, "AMQP_URL_"+strings.ToUpper(strings.ReplaceAll(user, "-", "_"))))
	if err != nil {
		t.Fatal(err)
	}
	password, _ := u.User.Password()
	return password
}
