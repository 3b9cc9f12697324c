package local

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

	"warren.example/lab/substrate"
	"warren.example/messaging/contract"
	"warren.example/messaging/topology"
)

// management speaks to RabbitMQ's management API. It is a few calls; the usual
// client library takes no context and does not know messages_dlx.
type management struct{ url, user, password string }

// refused is an answer other than 2xx.
type refused struct {
	status int
	text   string
}

func (r *refused) Error() string { return r.text }

func (m management) get(ctx context.Context, path string, into any) error {
	return m.call(ctx, http.MethodGet, path, nil, into)
}

func (m management) put(ctx context.Context, path string, body any) error {
	return m.call(ctx, http.MethodPut, path, body, nil)
}

func (m management) delete(ctx context.Context, path string) error {
	return m.call(ctx, http.MethodDelete, path, nil, nil)
}

func (m management) call(ctx context.Context, method, path string, body, into any) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	payload, err := json.Marshal(body)
	if err != nil {
		return fmt.Errorf("%s /api/%s: %w", method, path, err)
	}
	req, err := http.NewRequestWithContext(ctx, method, strings.TrimSuffix(m.url, "/")+"/api/"+path, bytes.NewReader(payload))
	if err != nil {
		return fmt.Errorf("%s /api/%s: %w", method, path, redact(err, m.url))
	}
	req.Header.Set("Content-Type", "application/json")
	req.SetBasicAuth(m.user, m.password)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("management API: %w", redact(err, m.url))
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

func isStatus(err error, status int) bool {
	var r *refused
	return errors.As(err, &r) && r.status == status
}

func segment(s string) string { return url.PathEscape(s) }

// createUser makes a broker user; users are the broker's, not a vhost's.
func (m management) createUser(ctx context.Context, u topology.User, password string) error {
	return m.put(ctx, "users/"+segment(u.Name), map[string]string{"password": password, "tags": u.Tags})
}

// createVhost makes a virtual host with every right for the admin in it.
func (m management) createVhost(ctx context.Context, vhost string) error {
	if err := m.put(ctx, "vhosts/"+segment(vhost), map[string]string{}); err != nil {
		return err
	}
	return m.permit(ctx, vhost, topology.User{Name: m.user, Configure: ".*", Write: ".*", Read: ".*"})
}

func (m management) permit(ctx context.Context, vhost string, u topology.User) error {
	return m.put(ctx, "permissions/"+segment(vhost)+"/"+segment(u.Name),
		map[string]string{"configure": u.Configure, "write": u.Write, "read": u.Read})
}

func (m management) permitTopics(ctx context.Context, vhost string, u topology.User) error {
	return m.put(ctx, "topic-permissions/"+segment(vhost)+"/"+segment(u.Name),
		map[string]string{"exchange": contract.ReplyExchange, "write": u.TopicWrite, "read": u.TopicRead})
}

// queueInfo is what the lab reads of a queue.
type queueInfo struct {
	Node      string `json:"node"`
	Leader    string `json:"leader"` // of a quorum queue
	Ready     int    `json:"messages_ready"`
	Unacked   int    `json:"messages_unacknowledged"`
	DLX       int    `json:"messages_dlx"`
	Consumers int    `json:"consumers"`
}

func (q queueInfo) state() substrate.QueueState {
	return substrate.QueueState{Ready: q.Ready, Unacked: q.Unacked, DeadLettering: q.DLX, Consumers: q.Consumers}
}

func (m management) queue(ctx context.Context, vhost, name string) (queueInfo, error) {
	var q queueInfo
	return q, m.get(ctx, "queues/"+segment(vhost)+"/"+segment(name), &q)
}

// redact takes credentials out of an error that quotes its URL.
func redact(err error, rawURL string) error {
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
