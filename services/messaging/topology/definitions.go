package topology

import (
	"bytes"
	"encoding/json"
	"fmt"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/messaging/contract"
)

// Admin is the broker user for people and for the lab. No service uses it.
const Admin = "admin"

// Definitions is the topology for a broker of version v, with its virtual host
// and users, as RabbitMQ imports it on boot. A password is a placeholder,
// @user@: whoever gives the file to a broker fills in the real ones.
//
// A broker that imports definitions makes no default user, so the admin is
// among them.
func Definitions(v Version) ([]byte, error) {
	type user struct {
		Name     string `json:"name"`
		Password string `json:"password"`
		Tags     string `json:"tags"`
	}
	type vhost struct {
		Name      string `json:"name"`
		QueueType string `json:"default_queue_type"`
	}
	type permission struct {
		User      string `json:"user"`
		Vhost     string `json:"vhost"`
		Configure string `json:"configure"`
		Write     string `json:"write"`
		Read      string `json:"read"`
	}
	type topicPermission struct {
		User     string `json:"user"`
		Vhost    string `json:"vhost"`
		Exchange string `json:"exchange"`
		Write    string `json:"write"`
		Read     string `json:"read"`
	}
	type exchange struct {
		Name       string     `json:"name"`
		Vhost      string     `json:"vhost"`
		Type       string     `json:"type"`
		Durable    bool       `json:"durable"`
		AutoDelete bool       `json:"auto_delete"`
		Internal   bool       `json:"internal"`
		Arguments  amqp.Table `json:"arguments"`
	}
	type queue struct {
		Name       string     `json:"name"`
		Vhost      string     `json:"vhost"`
		Durable    bool       `json:"durable"`
		AutoDelete bool       `json:"auto_delete"`
		Arguments  amqp.Table `json:"arguments"`
	}
	type binding struct {
		Source          string     `json:"source"`
		Vhost           string     `json:"vhost"`
		Destination     string     `json:"destination"`
		DestinationType string     `json:"destination_type"`
		RoutingKey      string     `json:"routing_key"`
		Arguments       amqp.Table `json:"arguments"`
	}
	all := struct {
		Vhosts           []vhost           `json:"vhosts"`
		Users            []user            `json:"users"`
		Permissions      []permission      `json:"permissions"`
		TopicPermissions []topicPermission `json:"topic_permissions"`
		Exchanges        []exchange        `json:"exchanges"`
		Queues           []queue           `json:"queues"`
		Bindings         []binding         `json:"bindings"`
	}{Vhosts: []vhost{{Vhost, "quorum"}}}

	admin := User{Name: Admin, Tags: "administrator", Configure: ".*", Write: ".*", Read: ".*"}
	for _, u := range append([]User{admin}, Users()...) {
		all.Users = append(all.Users, user{u.Name, "@" + u.Name + "@", u.Tags})
		all.Permissions = append(all.Permissions, permission{u.Name, Vhost, u.Configure, u.Write, u.Read})
		if u.TopicWrite != "" {
			all.TopicPermissions = append(all.TopicPermissions, topicPermission{u.Name, Vhost, contract.ReplyExchange, u.TopicWrite, u.TopicRead})
		}
	}
	t := For(v)
	for _, e := range t.Exchanges {
		all.Exchanges = append(all.Exchanges, exchange{e.Name, Vhost, e.Kind, durable, !autoDelete, !internal, amqp.Table{}})
	}
	for _, q := range t.Queues {
		all.Queues = append(all.Queues, queue{q.Name, Vhost, durable, !autoDelete, q.Args})
	}
	for _, b := range t.Bindings {
		all.Bindings = append(all.Bindings, binding{b.Exchange, Vhost, b.Queue, "queue", b.Key, amqp.Table{}})
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(all); err != nil {
		return nil, fmt.Errorf("definitions: %w", err)
	}
	return out.Bytes(), nil
}
