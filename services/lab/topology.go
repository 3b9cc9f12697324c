package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"warren.example/lab/substrate/vhost"
	"warren.example/messaging/topology"
)

func topologyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "topology",
		Short: "The broker's exchanges, queues and bindings",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return usageError("topology: want apply") },
	}
	var amqpURL string
	var wait time.Duration
	var u userSource
	apply := &cobra.Command{
		Use:   "apply",
		Short: "Declare them; repeating it is safe",
		Long: `Declare exchanges, queues and bindings as the user of the given URL, normally
'topology': no service may declare. A queue that exists with other arguments is
an error and is left as it is.

With --management-url, --admin and --users it first makes the URL's virtual host
and the suite's users with their permissions; the URL then names no user.

WARREN_AMQP_CA_FILE, _CERT_FILE, _KEY_FILE and _SERVER_NAME are the services' settings.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if amqpURL == "" {
				amqpURL = os.Getenv("WARREN_AMQP_URL")
			}
			if amqpURL == "" {
				return usageError("topology apply: --amqp-url or WARREN_AMQP_URL: missing")
			}
			if wait < 0 {
				return usageError("topology apply: --wait %s: 0s or more", wait)
			}
			if given := (u.management != "") || (u.admin != "") || (u.users != ""); given && (u.management == "" || u.admin == "" || u.users == "") {
				return usageError("topology apply: --management-url, --admin and --users: all or none")
			}
			var version topology.Version
			err := retry(cmd.Context(), wait, func(why error) {
				fmt.Fprintln(cmd.ErrOrStderr(), "waiting:", oneLine(why))
			}, func(ctx context.Context) (err error) {
				version, err = declare(ctx, amqpURL, u)
				return err
			})
			if err != nil {
				return setupError(err)
			}
			fmt.Fprintf(cmd.OutOrStdout(), "topology declared on RabbitMQ %v\n", version)
			return nil
		},
	}
	f := apply.Flags()
	f.StringVar(&amqpURL, "amqp-url", "", "broker, amqp://topology:password@host:port/vhost; default: WARREN_AMQP_URL, which other users of the machine cannot see")
	f.DurationVar(&wait, "wait", 0, "try again for so long, while a broker starts")
	f.StringVar(&u.management, "management-url", "", "the broker's management API, http://host:port")
	f.StringVar(&u.admin, "admin", "", "folder with the files username and password, of an administrator")
	f.StringVar(&u.users, "users", "", "folder with a file for each broker user, which holds its password")
	cmd.AddCommand(apply)
	return cmd
}

// userSource says where the users' passwords are and who may make users.
type userSource struct{ management, admin, users string }

// declare does all of it once. The hosts of one broker: any will do.
func declare(ctx context.Context, amqpURL string, from userSource) (topology.Version, error) {
	var errs []error
	for raw := range strings.SplitSeq(amqpURL, ",") {
		u, err := url.Parse(raw)
		if err != nil {
			return topology.Version{}, errors.New("the broker's URL: malformed") // the parser would quote the password
		}
		if q := tlsQuery(); len(q) > 0 {
			u.RawQuery = q.Encode()
		}
		var v topology.Version
		if from.users == "" {
			v, err = vhost.Declare(u.String())
		} else {
			v, err = from.deploy(ctx, u)
		}
		if err == nil {
			return v, nil
		}
		errs = append(errs, err)
	}
	return topology.Version{}, errors.Join(errs...)
}

// deploy makes the users, then the virtual host.
func (from userSource) deploy(ctx context.Context, broker *url.URL) (topology.Version, error) {
	var v topology.Version
	api := vhost.API{URL: from.management}
	for file, into := range map[string]*string{"username": &api.User, "password": &api.Password} {
		text, err := readWord(from.admin, file)
		if err != nil {
			return v, fmt.Errorf("--admin: %w", err)
		}
		*into = text
	}
	v, err := api.Version(ctx)
	if err == nil {
		err = vhost.CheckVersion(v)
	}
	if err != nil {
		return v, err
	}
	passwords := map[string]string{}
	for _, u := range topology.Users() {
		password, err := readWord(from.users, u.Name)
		if err != nil {
			return v, fmt.Errorf("--users: %w", err)
		}
		if err := api.CreateUser(ctx, u, password); err != nil {
			return v, err
		}
		passwords[u.Name] = password
	}
	return v, vhost.Apply(ctx, api, strings.TrimPrefix(broker.Path, "/"), topology.For(v), func(user string) string {
		as := *broker
		as.User = url.UserPassword(user, passwords[user])
		return as.String()
	})
}

func readWord(dir, name string) (string, error) {
	b, err := os.ReadFile(filepath.Join(dir, name))
	text := strings.TrimSpace(string(b))
	if err == nil && text == "" {
		err = fmt.Errorf("%s: empty", filepath.Join(dir, name))
	}
	return text, err
}

// tlsQuery is the services' TLS settings in the words of the client library's URLs.
func tlsQuery() url.Values {
	q := url.Values{}
	for parameter, variable := range map[string]string{"cacertfile": "CA_FILE", "certfile": "CERT_FILE", "keyfile": "KEY_FILE", "server_name_indication": "SERVER_NAME"} {
		if v := os.Getenv("WARREN_AMQP_" + variable); v != "" {
			q.Set(parameter, v)
		}
	}
	return q
}

// retry calls try until it succeeds or the time is over, and tells a reason
// once.
func retry(ctx context.Context, limit time.Duration, tell func(error), try func(context.Context) error) error {
	deadline := time.Now().Add(limit)
	told := ""
	for {
		err := try(ctx)
		if err == nil || !time.Now().Before(deadline) || ctx.Err() != nil {
			return err
		}
		if err.Error() != told {
			told = err.Error()
			tell(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}
