package main

import (
	"crypto/subtle"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"warren.example/messaging/database"
	"warren.example/messaging/service"
)

// config is the service's settings, each a variable that begins with WARREN_.
type config struct {
	service.Settings

	Database             string `default:"dead-letters.db" desc:"SQLite file, made if there is none; or postgres://user@host:port/database?sslmode=… for several auditors"`
	DatabasePasswordFile string `split_words:"true" desc:"file with PostgreSQL's password, read at every connect"`
	UniqueKey            bool   `split_words:"true" default:"true" desc:"false is a lesson: a death that is delivered twice makes two rows"`
	Prefetch             int    `default:"32" desc:"most dead letters in hand, 1 to 2000"`

	HTTPAddr      string        `split_words:"true" default:"127.0.0.1:8080" desc:"host:port of the HTTP API"`
	HTTPTokenFile string        `split_words:"true" desc:"file with the bearer token of the HTTP API; required unless the address is loopback"`
	ReplayTimeout time.Duration `split_words:"true" default:"30s" desc:"deadline of a replayed request, 1s to 1h"`
	ReplayLease   time.Duration `split_words:"true" default:"1m" desc:"a replay without an answer is published again after that; at least 5s more than the timeout"`

	AdminAddr string `split_words:"true" default:"127.0.0.1:9102" desc:"host:port of /livez, /readyz and /metrics; empty: none"`
}

// Validate refuses what cannot work, all of it at once.
func (c *config) Validate() error {
	errs := []error{c.Settings.Validate()}
	refuse := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Database == "" {
		refuse("WARREN_DATABASE: empty")
	} else if err := database.Check(c.Database, c.DatabasePasswordFile); err != nil {
		errs = append(errs, err)
	}
	if c.Prefetch < 1 || c.Prefetch > 2000 {
		refuse("WARREN_PREFETCH=%d: want 1 to 2000; 0 would mean unlimited to the broker", c.Prefetch)
	}
	if loopback, err := isLoopback(c.HTTPAddr); err != nil {
		refuse("WARREN_HTTP_ADDR=%s: %w", c.HTTPAddr, err)
	} else if !loopback && c.HTTPTokenFile == "" {
		refuse("WARREN_HTTP_TOKEN_FILE: required, because WARREN_HTTP_ADDR=%s can be reached from other machines", c.HTTPAddr)
	}
	if c.HTTPTokenFile != "" {
		if _, err := readToken(c.HTTPTokenFile); err != nil {
			refuse("WARREN_HTTP_TOKEN_FILE=%s: %w", c.HTTPTokenFile, err)
		}
	}
	if c.ReplayTimeout < time.Second || c.ReplayTimeout > time.Hour {
		refuse("WARREN_REPLAY_TIMEOUT=%s: want 1s to 1h", c.ReplayTimeout)
	}
	if c.ReplayLease < c.ReplayTimeout+5*time.Second {
		refuse("WARREN_REPLAY_LEASE=%s: want at least 5s more than WARREN_REPLAY_TIMEOUT=%s, or it ends while an answer may come", c.ReplayLease, c.ReplayTimeout)
	}
	if c.AdminAddr != "" {
		if _, _, err := splitAddr(c.AdminAddr); err != nil {
			refuse("WARREN_ADMIN_ADDR=%s: %w", c.AdminAddr, err)
		}
	}
	if c.Faults && c.AdminAddr == "" {
		refuse("WARREN_FAULTS=true: needs WARREN_ADMIN_ADDR")
	}
	return errors.Join(errs...)
}

// spelling is the settings without what the service demands of them: the
// commands need none.
type spelling config

// Validate refuses nothing more than Load has.
func (*spelling) Validate() error { return nil }

func splitAddr(addr string) (host string, port int, err error) {
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, errors.New("want host:port")
	}
	port, err = strconv.Atoi(p)
	if err != nil || port < 0 || port > 65535 {
		return "", 0, fmt.Errorf("port %q: want 0 to 65535", p)
	}
	return host, port, nil
}

// isLoopback says whether only this machine can reach addr. No host at all
// means every interface.
func isLoopback(addr string) (bool, error) {
	host, _, err := splitAddr(addr)
	return loopbackHost(host), err
}

func loopbackHost(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// token is a secret that cannot print.
type token string

func (token) String() string   { return "[redacted]" }
func (token) GoString() string { return "[redacted]" }

// is compares in constant time.
func (t token) is(s string) bool { return subtle.ConstantTimeCompare([]byte(t), []byte(s)) == 1 }

func readToken(path string) (token, error) {
	b, err := os.ReadFile(filepath.Clean(path))
	if err != nil {
		var cause *os.PathError
		if errors.As(err, &cause) {
			err = cause.Err // the name is in the caller's message
		}
		return "", err
	}
	t := strings.TrimSpace(string(b))
	if len(t) < 16 {
		return "", fmt.Errorf("holds %d characters, want at least 16", len(t))
	}
	return token(t), nil
}
