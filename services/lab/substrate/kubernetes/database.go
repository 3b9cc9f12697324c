package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"

	"warren.example/lab/substrate"
)

// database is the URL of the room's own PostgreSQL database for a kind of
// service, made when it is first asked for.
func (r *Room) database(ctx context.Context, kind substrate.Kind, rawURL string) (string, error) {
	short := map[substrate.Kind]string{substrate.CalculatorServer: "server", substrate.DeadLetterAuditor: "auditor"}[kind]
	name := r.name + "-" + short
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.databases[kind] == "" {
		u, err := url.Parse(rawURL)
		if err != nil {
			return "", fmt.Errorf("WARREN_DATABASE of the release: malformed")
		}
		if _, err := r.s.psql(ctx, fmt.Sprintf("CREATE DATABASE %s OWNER %s", quote(name), quote(u.User.Username()))); err != nil {
			return "", fmt.Errorf("make a database for the room: %w", err)
		}
		r.databases[kind] = name
	}
	return withPath(rawURL, name)
}

func (s *Substrate) dropDatabase(ctx context.Context, name string) error {
	// With force: a connection of a pod that died a moment ago may still be there.
	if _, err := s.psql(ctx, fmt.Sprintf("DROP DATABASE IF EXISTS %s WITH (FORCE)", quote(name))); err != nil {
		return fmt.Errorf("drop database %s: %w", name, err)
	}
	return nil
}

// sweepDatabases drops those of rooms, which a killed lab left.
func (s *Substrate) sweepDatabases(ctx context.Context) error {
	names, err := s.psql(ctx, fmt.Sprintf("SELECT datname FROM pg_database WHERE datname ~ '%s'", byRoom))
	if errors.Is(err, substrate.ErrUnsupported) {
		return nil
	}
	errs := []error{err}
	for _, name := range strings.Fields(string(names)) {
		errs = append(errs, s.dropDatabase(ctx, name))
	}
	return errors.Join(errs...)
}

// psql runs a statement as PostgreSQL's superuser, by the socket in its pod, and
// returns the values that it printed.
func (s *Substrate) psql(ctx context.Context, statement string) ([]byte, error) {
	found := s.pods.list(labels.Set{instance: s.Release, component: "postgresql"})
	if len(found) == 0 {
		return nil, fmt.Errorf("release %s has no PostgreSQL of its own: database.mode external: %w", s.Release, substrate.ErrUnsupported)
	}
	pod := found[0].Name
	for {
		var last *corev1.Pod
		if err := s.pods.await(ctx, pod, func(p *corev1.Pod) bool { last = p; return ready(p) }); err != nil {
			return nil, fmt.Errorf("wait for pod %s: %w", pod, err)
		}
		out, err := s.tunnel.exec(ctx, last, nil, "psql", "-qXAt", "-h", "/var/run/postgresql", "-U", "postgres", "-v", "ON_ERROR_STOP=1", "-c", statement)
		if err == nil || failed(err) || ctx.Err() != nil {
			return out, err
		}
		pause(ctx, retryAfter) // it never reached the pod
	}
}

func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }
