package session

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Config says how to reach the broker. Its tags are for envconfig: a field
// `AMQP session.Config` of a service's settings makes WARREN_AMQP_URL and so on.
type Config struct {
	URL          []string      `default:"amqp://127.0.0.1:5672/calc" desc:"amqp(s)://[user[:password]@]host:port/vhost of each broker node, separated by commas"`
	Username     string        `desc:"broker user, unless the URL names it"`
	PasswordFile string        `split_words:"true" desc:"file with the password, read at every connect so that a new password needs no restart"`
	CAFile       string        `split_words:"true" desc:"PEM file with the authorities that may sign the broker's certificate (amqps)"`
	CertFile     string        `split_words:"true" desc:"PEM file with our client certificate (amqps)"`
	KeyFile      string        `split_words:"true" desc:"PEM file with its key"`
	ServerName   string        `split_words:"true" desc:"name in the broker's certificate, if it is not the URL's host"`
	Heartbeat    time.Duration `default:"10s" desc:"a dead peer is noticed after 1.5 of these by us and after 3 by the broker; 1s to 10m, whole seconds"`
	WriteTimeout time.Duration `split_words:"true" default:"5s" desc:"longest that one socket write may take before the connection counts as dead"`
	OpenTimeout  time.Duration `split_words:"true" default:"10s" desc:"longest that connecting and opening may take"`
	MaxBackoff   time.Duration `split_words:"true" default:"2s" desc:"longest wait between two attempts to connect; five times as long after a refused login"`
}

// Validate refuses settings that cannot work, files that cannot be read among
// them: a service would try with those for ever. It opens no connection, and its
// errors never hold a password.
func (c *Config) Validate() error {
	var errs []error
	if len(c.URL) == 0 {
		errs = append(errs, errors.New("WARREN_AMQP_URL: empty"))
	}
	var first amqp.URI
	for i, raw := range c.URL {
		u, err := parse(raw)
		if err != nil {
			errs = append(errs, fmt.Errorf("WARREN_AMQP_URL: number %d: %w", i+1, err))
			continue
		}
		if i == 0 {
			first = u
		} else if u.Vhost != first.Vhost || u.Username != first.Username || u.Password != first.Password || u.Scheme != first.Scheme {
			errs = append(errs, fmt.Errorf("WARREN_AMQP_URL: number %d (%s): differs from the first in scheme, user, password or vhost", i+1, u.Host))
		}
	}
	broken := len(errs) > 0
	if !broken || c.PasswordFile != "" { // a broken URL may hold one
		if _, err := c.credentials(first); err != nil {
			errs = append(errs, err)
		}
	}
	if broken || first.Scheme == "amqps" {
		if _, err := c.tls(first.Host); err != nil {
			errs = append(errs, err)
		}
	}
	if !broken {
		switch user := c.User(); {
		case user == "":
			errs = append(errs, errors.New("WARREN_AMQP_USERNAME: empty, and WARREN_AMQP_URL names no user"))
		case user == "guest":
			errs = append(errs, errors.New("WARREN_AMQP_USERNAME=guest: every service has a user of its own"))
		case c.Username != "" && first.Username != "" && c.Username != first.Username:
			errs = append(errs, fmt.Errorf("WARREN_AMQP_USERNAME=%s: WARREN_AMQP_URL names %s", c.Username, first.Username))
		}
		if first.Scheme != "amqps" && (c.CAFile != "" || c.CertFile != "" || c.KeyFile != "" || c.ServerName != "") {
			errs = append(errs, errors.New("WARREN_AMQP_CA_FILE, _CERT_FILE, _KEY_FILE, _SERVER_NAME: only for amqps URLs"))
		}
	}
	if (c.CertFile == "") != (c.KeyFile == "") {
		errs = append(errs, errors.New("WARREN_AMQP_CERT_FILE and WARREN_AMQP_KEY_FILE: both or neither"))
	}
	if c.Heartbeat < time.Second || c.Heartbeat > 10*time.Minute || c.Heartbeat%time.Second != 0 {
		errs = append(errs, fmt.Errorf("WARREN_AMQP_HEARTBEAT=%s: want whole seconds from 1s to 10m", c.Heartbeat))
	}
	for name, d := range map[string]time.Duration{"WRITE_TIMEOUT": c.WriteTimeout, "OPEN_TIMEOUT": c.OpenTimeout, "MAX_BACKOFF": c.MaxBackoff} {
		if d < 10*time.Millisecond || d > 10*time.Minute {
			errs = append(errs, fmt.Errorf("WARREN_AMQP_%s=%s: want 10ms to 10m", name, d))
		}
	}
	return errors.Join(errs...)
}

// parse reads a broker's URL. The parsers' own errors quote the whole text,
// password included, so none of them is passed on.
func parse(raw string) (amqp.URI, error) {
	const form = "not of the form amqp(s)://[user[:password]@]host:port/vhost"
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Host == "" || u.Scheme != "amqp" && u.Scheme != "amqps":
		return amqp.URI{}, errors.New(form)
	case u.RawQuery != "" || u.Fragment != "":
		return amqp.URI{}, errors.New("no ? and # are allowed; there are settings for what they would say")
	}
	uri, err := amqp.ParseURI(raw)
	if err != nil {
		return amqp.URI{}, errors.New(form)
	}
	if uri.Port < 1 || uri.Port > 65535 {
		return amqp.URI{}, fmt.Errorf("%s: port %d: want 1 to 65535", uri.Host, uri.Port)
	}
	// Where the URL has none of these the library says guest.
	uri.Username = u.User.Username()
	uri.Password, _ = u.User.Password()
	return uri, nil
}

// User is the broker user, as the broker enforces it in user-id.
func (c *Config) User() string {
	if c.Username != "" || len(c.URL) == 0 {
		return c.Username
	}
	u, err := parse(c.URL[0])
	if err != nil {
		return ""
	}
	return u.Username
}

// credentials are read anew for every connection, so that a rotated password
// is picked up without a restart.
func (c *Config) credentials(u amqp.URI) (amqp.Authentication, error) {
	auth := &amqp.PlainAuth{Username: c.User(), Password: u.Password}
	if c.PasswordFile != "" {
		b, err := read("PASSWORD_FILE", c.PasswordFile)
		if err != nil {
			return nil, err
		}
		if auth.Password = strings.TrimRight(string(b), "\r\n"); auth.Password == "" {
			return nil, fmt.Errorf("WARREN_AMQP_PASSWORD_FILE=%s: empty", c.PasswordFile)
		}
	}
	if auth.Password == "" {
		return nil, errors.New("WARREN_AMQP_PASSWORD_FILE: empty, and WARREN_AMQP_URL holds no password")
	}
	return auth, nil
}

// read names the setting that names the file.
func read(setting, path string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if at := (*fs.PathError)(nil); errors.As(err, &at) {
		err = at.Err // without the path
	}
	if err != nil {
		return nil, fmt.Errorf("WARREN_AMQP_%s=%s: %w", setting, path, err)
	}
	return b, nil
}

func (c *Config) tls(host string) (*tls.Config, error) {
	t := &tls.Config{MinVersion: tls.VersionTLS12, ServerName: cmp.Or(c.ServerName, host)}
	var errs []error
	if c.CAFile != "" {
		pem, err := read("CA_FILE", c.CAFile)
		t.RootCAs = x509.NewCertPool()
		if err == nil && !t.RootCAs.AppendCertsFromPEM(pem) {
			err = fmt.Errorf("WARREN_AMQP_CA_FILE=%s: holds no certificate", c.CAFile)
		}
		errs = append(errs, err)
	}
	if c.CertFile != "" && c.KeyFile != "" {
		cert, err1 := read("CERT_FILE", c.CertFile)
		key, err2 := read("KEY_FILE", c.KeyFile)
		if errs = append(errs, err1, err2); err1 == nil && err2 == nil {
			pair, err := tls.X509KeyPair(cert, key)
			if err != nil {
				errs = append(errs, fmt.Errorf("WARREN_AMQP_CERT_FILE=%s, WARREN_AMQP_KEY_FILE=%s: %w", c.CertFile, c.KeyFile, err))
			}
			t.Certificates = []tls.Certificate{pair}
		}
	}
	return t, errors.Join(errs...)
}

// Probe connects once and says why it cannot, at the latest when ctx ends. It
// is for one-shot commands; services connect for ever instead.
func (c *Config) Probe(ctx context.Context) error {
	var why error
	for _, raw := range c.URL {
		e, err := c.dial(ctx, raw, "probe", 0)
		if err == nil {
			// A broker that was stopped just now never answers the goodbye.
			stop := context.AfterFunc(ctx, func() { _ = e.raw.Close() })
			defer stop()
			return e.conn.CloseDeadline(time.Now().Add(c.WriteTimeout))
		}
		if answer := (*amqp.Error)(nil); !errors.As(why, &answer) { // one node's no says more than another's silence
			why = err
		}
	}
	return why
}
