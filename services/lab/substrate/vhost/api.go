package vhost

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/substrate"
	"warren.example/messaging/contract"
	"warren.example/messaging/topology"
)

// API is RabbitMQ's management API. It is a few calls; the usual client library
// takes no context and does not know messages_dlx.
type API struct {
	URL, User, Password string
	Client              *http.Client // nil: the default one
}

// ParseAPI takes http(s)://user:password@host:port.
func ParseAPI(rawURL string) (API, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.User == nil || (u.Scheme != "http" && u.Scheme != "https") {
		return API{}, errors.New("want http(s)://user:password@host:port")
	}
	a := API{User: u.User.Username()}
	a.Password, _ = u.User.Password()
	u.User = nil
	a.URL = u.String()
	return a, nil
}

// refused is an answer other than 2xx.
type refused struct {
	status int
	text   string
}

func (r *refused) Error() string { return r.text }

// Status is the HTTP status of a refused request, 0 of any other error.
func Status(err error) int {
	var r *refused
	if errors.As(err, &r) {
		return r.status
	}
	return 0
}

// Get asks for a path under /api/.
func (a API) Get(ctx context.Context, path string, into any) error {
	return a.call(ctx, http.MethodGet, path, nil, into)
}

// Put writes to a path under /api/.
func (a API) Put(ctx context.Context, path string, body any) error {
	return a.call(ctx, http.MethodPut, path, body, nil)
}

// Delete removes a path under /api/.
func (a API) Delete(ctx context.Context, path string) error {
	return a.call(ctx, http.MethodDelete, path, nil, nil)
}

func (a API) call(ctx context.Context, method, path string, body, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	payload, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("%s /api/%s: %w", method, path, err)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(a.URL, "/")+"/api/"+path, bytes.NewReader(payload))
	if err != nil {
		return fmt.Errorf("%s /api/%s: %w", method, path, Redact(err, a.URL))
	}
	req.Header.Set("Content-Type", "application/json")
	req.SetBasicAuth(a.User, a.Password)
	client := a.Client
	if client == nil {
		client = http.DefaultClient
	}
	res, err := client.Do(req)
	if err != nil {
		return fmt.Errorf("management API: %w", Redact(err, a.URL))
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err != nil {
		return fmt.Errorf("%s /api/%s: %w", method, path, err)
	}
	if res.StatusCode/100 != 2 {
		return &refused{res.StatusCode, fmt.Sprintf("%s /api/%s: %s: %s", method, path, res.Status, bytes.TrimSpace(answer))}
	}
	if into == nil {
		return nil
	}
	if err := json.Unmarshal(answer, into); err != nil {
		return fmt.Errorf("%s /api/%s: %w", method, path, err)
	}
	return nil
}

// Segment escapes a name for a path: a virtual host may hold slashes.
func Segment(s string) string { return url.PathEscape(s) }

// CheckAdministrator refuses a user who cannot make virtual hosts and users.
func (a API) CheckAdministrator(ctx context.Context) error {
	var me struct{ Tags any }
	if err := a.Get(ctx, "whoami", &me); err != nil {
		return err
	}
	if !strings.Contains(fmt.Sprint(me.Tags), "administrator") {
		return fmt.Errorf("user %s has no tag administrator: cannot make virtual hosts and users", a.User)
	}
	return nil
}

// Version is the broker's.
func (a API) Version(ctx context.Context) (topology.Version, error) {
	var o struct {
		Version string `json:"rabbitmq_version"`
	}
	if err := a.Get(ctx, "overview", &o); err != nil {
		return topology.Version{}, err
	}
	return topology.ParseVersion(o.Version)
}

// Running is how many nodes of the cluster run.
func (a API) Running(ctx context.Context) (int, error) {
	var members []struct{ Running bool }
	err := a.Get(ctx, "nodes", &members)
	n := 0
	for _, m := range members {
		if m.Running {
			n++
		}
	}
	return n, err
}

// CreateUser makes a broker user, or gives one that exists a new password;
// users are the broker's, not a vhost's.
func (a API) CreateUser(ctx context.Context, u topology.User, password string) error {
	return a.Put(ctx, "users/"+Segment(u.Name), map[string]string{"password": password, "tags": u.Tags})
}

// Create makes a virtual host with every right for the API's user in it. A busy
// cluster of 4.3.6 answered 500 when one of its nodes was to start a virtual host
// that it had not heard of yet (no_such_vhost); then it is made anew.
func (a API) Create(ctx context.Context, vhost string) error {
	const tries = 3
	for try := 1; ; try++ {
		err := a.Put(ctx, "vhosts/"+Segment(vhost), map[string]string{})
		if err == nil {
			break
		}
		if Status(err) != http.StatusInternalServerError || try == tries {
			return err
		}
		if err := a.Remove(ctx, vhost); err != nil {
			return err
		}
	}
	return a.permit(ctx, vhost, topology.User{Name: a.User, Configure: ".*", Write: ".*", Read: ".*"})
}

// Remove deletes a virtual host with all that is in it. One that is not there
// is no error.
func (a API) Remove(ctx context.Context, vhost string) error {
	if err := a.Delete(ctx, "vhosts/"+Segment(vhost)); err != nil && Status(err) != http.StatusNotFound {
		return fmt.Errorf("delete virtual host %s: %w", vhost, err)
	}
	return nil
}

func (a API) permit(ctx context.Context, vhost string, u topology.User) error {
	return a.Put(ctx, "permissions/"+Segment(vhost)+"/"+Segment(u.Name),
		map[string]string{"configure": u.Configure, "write": u.Write, "read": u.Read})
}

func (a API) permitTopics(ctx context.Context, vhost string, u topology.User) error {
	return a.Put(ctx, "topic-permissions/"+Segment(vhost)+"/"+Segment(u.Name),
		map[string]string{"exchange": contract.ReplyExchange, "write": u.TopicWrite, "read": u.TopicRead})
}

// QueueInfo is what the lab reads of a queue.
type QueueInfo struct {
	Name      string `json:"name"`
	Type      string `json:"type"`
	Node      string `json:"node"`
	Leader    string `json:"leader"` // of a quorum queue
	Ready     int    `json:"messages_ready"`
	Unacked   int    `json:"messages_unacknowledged"`
	DLX       int    `json:"messages_dlx"`
	Consumers int    `json:"consumers"`
}

// State counts a queue's messages for a scenario. What seems to be empty is asked
// itself, on any of the nodes that urls name: the API's counts were up to 1.5 s
// old on 3.10.8 and 4.3.6, however often they are taken, because it samples them once a
// second, and by those what has just come back into a queue was never there.
func (a API) State(ctx context.Context, vhost, name, urls string) (substrate.QueueState, error) {
	q, err := a.Queue(ctx, vhost, name)
	if err == nil && q.Ready == 0 {
		q.Ready, err = readyNow(urls, name)
	}
	return substrate.QueueState{Ready: q.Ready, Unacked: q.Unacked, DeadLettering: q.DLX, Consumers: q.Consumers}, err
}

func readyNow(urls, queue string) (ready int, err error) {
	for url := range strings.SplitSeq(urls, ",") { // a node may be away
		var conn *amqp.Connection
		if conn, err = Dial(url); err != nil {
			continue
		}
		defer conn.Close()
		ch, err := conn.Channel()
		if err != nil {
			return 0, err
		}
		q, err := ch.QueueDeclarePassive(queue, durable, !autoDelete, !exclusive, !noWait, nil)
		return q.Messages, err
	}
	return 0, err
}

// LedBy is the node that leads the queue; a classic queue has one node only.
func (q QueueInfo) LedBy() string {
	if q.Leader == "" {
		return q.Node
	}
	return q.Leader
}

// Queue is one queue.
func (a API) Queue(ctx context.Context, vhost, name string) (QueueInfo, error) {
	var q QueueInfo
	return q, a.Get(ctx, "queues/"+Segment(vhost)+"/"+Segment(name), &q)
}

// Queues is all queues of a virtual host.
func (a API) Queues(ctx context.Context, vhost string) ([]QueueInfo, error) {
	var all []QueueInfo
	return all, a.Get(ctx, "queues/"+Segment(vhost), &all)
}

// Redact takes credentials out of an error that quotes its URL.
func Redact(err error, rawURL string) error {
	if err == nil {
		return nil
	}
	text := err.Error()
	if u, parseErr := url.Parse(rawURL); parseErr != nil {
		// The URL itself is what is wrong; nothing of it is safe to show.
		return errors.New("malformed URL")
	} else if password, ok := u.User.Password(); ok && password != "" {
		if !strings.Contains(text, password) && !strings.Contains(text, url.QueryEscape(password)) {
			return err
		}
		text = strings.NewReplacer(password, "[redacted]", url.QueryEscape(password), "[redacted]", url.PathEscape(password), "[redacted]").Replace(text)
		return errors.New(text)
	}
	return err
}
