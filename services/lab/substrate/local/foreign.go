package local

import (
	"context"
	"fmt"
	"net/url"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/substrate"
	"warren.example/messaging/topology"
)

// foreign is somebody else's broker. The lab adds virtual hosts and users of
// its own if it is given the management API; without, it works as one user in
// the given virtual host. It never stops or pauses such a broker.
type foreign struct {
	url     string
	api     management
	version topology.Version
}

func useBroker(ctx context.Context, rawURL, managementURL string) (*foreign, error) {
	if _, err := amqp.ParseURI(rawURL); err != nil {
		return nil, fmt.Errorf("--amqp-url: %w", redact(err, rawURL))
	}
	conn, err := dial(rawURL)
	if err != nil {
		return nil, fmt.Errorf("--amqp-url: %w", err)
	}
	defer conn.Close()
	f := &foreign{url: rawURL}
	if f.version, err = topology.VersionOf(conn); err != nil {
		return nil, fmt.Errorf("--amqp-url: %w", err)
	}
	if !f.version.AtLeast(topology.Oldest.Major, topology.Oldest.Minor) {
		return nil, tooOld(f.version)
	}
	if managementURL == "" {
		return f, nil
	}
	u, err := url.Parse(managementURL)
	if err != nil || u.User == nil || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, fmt.Errorf("--management-url: want http(s)://user:password@host:port")
	}
	password, _ := u.User.Password()
	f.api = management{user: u.User.Username(), password: password}
	u.User = nil
	f.api.url = u.String()
	var me struct{ Tags any }
	if err := f.api.get(ctx, "whoami", &me); err != nil {
		return nil, fmt.Errorf("--management-url: %w", err)
	}
	if !strings.Contains(fmt.Sprint(me.Tags), "administrator") {
		return nil, fmt.Errorf("--management-url: user %s has no tag administrator: cannot make virtual hosts and users", f.api.user)
	}
	return f, nil
}

func (f *foreign) Version() topology.Version { return f.version }
func (f *foreign) Nodes() int                { return 1 } // as far as it concerns us

func (f *foreign) management() management       { return f.api }
func (f *foreign) revive(context.Context) error { return nil }
func (f *foreign) stop()                        {}

func (f *foreign) urls(user, password, vhost string) []string {
	if f.api.url == "" {
		return []string{f.url}
	}
	u, err := url.Parse(f.url)
	if err != nil { // parsed before
		return nil
	}
	return []string{amqpURL(u.Scheme, u.Host, user, password, vhost)}
}

func unsupported(what string) error {
	return fmt.Errorf("%s: the broker is not the lab's own: %w", what, substrate.ErrUnsupported)
}

// What follows would disturb others.

func (f *foreign) Crash(context.Context, int) error  { return unsupported("crash the broker") }
func (f *foreign) Start(context.Context, int) error  { return unsupported("start the broker") }
func (f *foreign) Pause(context.Context, int) error  { return unsupported("pause the broker") }
func (f *foreign) Resume(context.Context, int) error { return unsupported("resume the broker") }
func (f *foreign) Leader(context.Context, substrate.Room, string) (int, error) {
	return 0, unsupported("find a queue's leader")
}
func (f *foreign) Command(context.Context, int, ...string) ([]byte, error) {
	return nil, unsupported("run rabbitmqctl")
}
