package local

import (
	"context"
	"fmt"
	"net/url"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/substrate"
	"warren.example/lab/substrate/vhost"
	"warren.example/messaging/topology"
)

// foreign is somebody else's broker. The lab adds virtual hosts and users of
// its own if it is given the management API; without, it works as one user in
// the given virtual host. It never stops or pauses such a broker.
type foreign struct {
	url     string
	api     vhost.API
	version topology.Version
}

func useBroker(ctx context.Context, rawURL, managementURL string) (*foreign, error) {
	if _, err := amqp.ParseURI(rawURL); err != nil {
		return nil, fmt.Errorf("--amqp-url: %w", vhost.Redact(err, rawURL))
	}
	conn, err := vhost.Dial(rawURL)
	if err != nil {
		return nil, fmt.Errorf("--amqp-url: %w", err)
	}
	defer conn.Close()
	f := &foreign{url: rawURL}
	if f.version, err = topology.VersionOf(conn); err != nil {
		return nil, fmt.Errorf("--amqp-url: %w", err)
	}
	if err := vhost.CheckVersion(f.version); err != nil {
		return nil, err
	}
	if managementURL == "" {
		return f, nil
	}
	if f.api, err = vhost.ParseAPI(managementURL); err == nil {
		err = f.api.CheckAdministrator(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("--management-url: %w", err)
	}
	return f, nil
}

func (f *foreign) Version() topology.Version { return f.version }
func (f *foreign) Nodes() int                { return 1 } // as far as it concerns us

func (f *foreign) management() vhost.API        { return f.api }
func (f *foreign) revive(context.Context) error { return nil }
func (f *foreign) stop()                        {}

func (f *foreign) urls(user, password, name string) []string {
	if f.api.URL == "" {
		return []string{f.url}
	}
	u, err := url.Parse(f.url)
	if err != nil { // parsed before
		return nil
	}
	return []string{vhost.URL(u.Scheme, u.Host, user, password, name)}
}

func unsupported(what string) error {
	return fmt.Errorf("%s: the broker is not the lab's own: %w", what, substrate.ErrUnsupported)
}

// What follows would disturb others.

func (f *foreign) Crash(context.Context, int) error  { return unsupported("crash the broker") }
func (f *foreign) Start(context.Context, int) error  { return unsupported("start the broker") }
func (f *foreign) CrashAll(context.Context) error    { return unsupported("crash the broker") }
func (f *foreign) StartAll(context.Context) error    { return unsupported("start the broker") }
func (f *foreign) Pause(context.Context, int) error  { return unsupported("pause the broker") }
func (f *foreign) Resume(context.Context, int) error { return unsupported("resume the broker") }
func (f *foreign) Leader(context.Context, substrate.Room, string) (int, error) {
	return 0, unsupported("find a queue's leader")
}
func (f *foreign) Command(context.Context, int, ...string) ([]byte, error) {
	return nil, unsupported("run rabbitmqctl")
}
