// Package pgtest runs a PostgreSQL server for the tests of one package, and
// breaks it. Tests of two services import it and nothing else does; it is here
// because a copy that leaves processes behind is found by somebody else.
package pgtest

import (
	"cmp"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A password of all that a URL could stumble over.
const password = `p@ss:/?#%w&r d`

// server is the one of this process, from the first New on.
var server struct {
	bin, dir string
	port     int
	as       *syscall.Credential // PostgreSQL refuses to run as root
	pid      int
	exited   chan struct{}
}

// Main is for TestMain: it runs the tests, and ends the server after them.
func Main(m *testing.M) int {
	defer func() {
		kill()
		_ = os.RemoveAll(server.dir)
	}()
	return m.Run()
}

// Database is an empty one, of a user who owns it and no more.
type Database struct {
	Name         string
	URL          string
	PasswordFile string
}

// New makes a database. The test fails where there is no PostgreSQL.
func New(t testing.TB) Database {
	t.Helper()
	if server.dir == "" {
		if err := install(); err != nil {
			t.Fatal(err)
		}
		Start(t)
		SQL(t, "postgres", `CREATE ROLE warren LOGIN PASSWORD '`+password+`'`)
	}
	d := Database{Name: fmt.Sprintf("test%d", time.Now().UnixNano()), PasswordFile: filepath.Join(t.TempDir(), "password")}
	u := url.URL{Scheme: "postgres", User: url.User("warren"), Host: Addr(), Path: d.Name, RawQuery: "sslmode=disable"}
	d.URL = u.String()
	d.WritePassword(t, password)
	SQL(t, "postgres", `CREATE DATABASE `+d.Name+` OWNER warren`)
	return d
}

// WritePassword writes what the services read.
func (d Database) WritePassword(t testing.TB, password string) {
	t.Helper()
	if err := os.WriteFile(d.PasswordFile, []byte(password+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
}

// RestorePassword undoes a test's change of it.
func RestorePassword(t testing.TB) {
	SQL(t, "postgres", `ALTER ROLE warren PASSWORD '`+password+`'`)
}

// Addr is the server's host and port.
func Addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(server.port)) }

// SQL runs statements as the superuser and returns what they print.
func SQL(t testing.TB, database string, statements ...string) string {
	t.Helper()
	args := []string{"-h", server.dir, "-p", strconv.Itoa(server.port), "-U", "postgres", "-d", database, "-qAtX", "-v", "ON_ERROR_STOP=1"}
	for _, s := range statements {
		args = append(args, "-c", s)
	}
	out, err := command("psql", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("psql: %v: %s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// install finds the programs and makes the server's folder.
func install() error {
	initdb, err := exec.LookPath("initdb")
	if err != nil { // Debian keeps it off the PATH
		found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
		if len(found) == 0 {
			return errors.New("PostgreSQL is missing: sudo apt-get install --no-install-recommends postgresql")
		}
		initdb = slices.MaxFunc(found, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), strings.Compare(a, b)) })
	}
	if initdb, err = filepath.EvalSymlinks(initdb); err != nil {
		return err
	}
	server.bin = filepath.Dir(initdb)
	dir, err := os.MkdirTemp("", "warren-postgres-")
	if err != nil {
		return err
	}
	if os.Geteuid() == 0 {
		u, err := user.Lookup("postgres") // Debian's package makes it
		if err != nil {
			return fmt.Errorf("PostgreSQL does not run as root: %w", err)
		}
		uid, _ := strconv.Atoi(u.Uid)
		gid, _ := strconv.Atoi(u.Gid)
		server.as = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		if err := os.Chown(dir, uid, gid); err != nil {
			return err
		}
	}
	server.dir = dir
	// Small segments of the log, so that LimitFiles can be small.
	out, err := command("initdb", "-D", data(), "-U", "postgres", "--auth-local=trust", "--auth-host=scram-sha-256",
		"--encoding=UTF8", "--locale=C", "--wal-segsize=1", "--no-sync").CombinedOutput()
	if err != nil {
		return fmt.Errorf("initdb: %w: %s", err, out)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0") // a port that is free now, and the server's for all its lives
	if err != nil {
		return err
	}
	defer l.Close()
	server.port = l.Addr().(*net.TCPAddr).Port
	return nil
}

func data() string { return filepath.Join(server.dir, "data") }

func command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(server.bin, name), args...)
	cmd.Dir = server.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: server.as}
	return cmd
}

// Start starts the server, again after Kill.
func Start(t testing.TB) {
	t.Helper()
	cmd := command("postgres", "-D", data(), "-p", strconv.Itoa(server.port), "-c", "listen_addresses=127.0.0.1",
		"-c", "unix_socket_directories="+server.dir, "-c", "fsync=off") // what SIGKILL leaves is in the page cache, and no power fails here
	log, err := os.OpenFile(filepath.Join(server.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT // ends it at once, with its children
	started, exited := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread() // the death that Pdeathsig means is the starting thread's
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
			close(exited)
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	server.pid, server.exited = cmd.Process.Pid, exited
	until(t, "the server takes connections", func() bool {
		select {
		case <-exited:
			log, _ := os.ReadFile(log.Name())
			t.Fatalf("PostgreSQL has ended:\n%s", log)
		default:
		}
		lines, _ := os.ReadFile(filepath.Join(data(), "postmaster.pid")) // the last of eight lines is its state
		return strings.HasPrefix(string(lines), strconv.Itoa(server.pid)+"\n") && strings.HasSuffix(strings.TrimSpace(string(lines)), "ready")
	})
}

// Kill is SIGKILL to all of the server, until Start.
func Kill(t testing.TB) {
	t.Helper()
	killed := kill()
	until(t, "the server's processes are gone", func() bool {
		return !slices.ContainsFunc(killed, func(pid int) bool { return syscall.Kill(pid, 0) == nil && !zombie(pid) })
	})
}

func kill() []int {
	if server.pid == 0 {
		return nil
	}
	all := stop()
	for _, pid := range all {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	<-server.exited
	server.pid = 0
	return all
}

// Freeze stops the server as it stands, until Thaw: connections are taken by
// the kernel, and nobody answers.
func Freeze(testing.TB) { stop() }

// Thaw ends Freeze.
func Thaw(testing.TB) {
	for _, pid := range processes() {
		_ = syscall.Kill(pid, syscall.SIGCONT)
	}
}

// stop stops the postmaster first, so that it starts nothing more.
func stop() []int {
	_ = syscall.Kill(server.pid, syscall.SIGSTOP)
	all := processes()
	for _, pid := range all {
		_ = syscall.Kill(pid, syscall.SIGSTOP)
	}
	return all
}

// processes is the postmaster and its children.
func processes() []int {
	all := []int{server.pid}
	children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", server.pid, server.pid))
	for _, child := range strings.Fields(string(children)) {
		if pid, err := strconv.Atoi(child); err == nil {
			all = append(all, pid)
		}
	}
	return all
}

func zombie(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

// HoldCommits lets commits happen and keeps their answers back: each waits for
// a standby that does not exist. KillAtCommit ends it.
func HoldCommits(t testing.TB) {
	SQL(t, "postgres", `ALTER SYSTEM SET synchronous_standby_names = 'nobody'`, `SELECT pg_reload_conf()`)
}

// KillAtCommit is Kill once a commit in d is made and not yet answered.
func KillAtCommit(t testing.TB, d Database) {
	t.Helper()
	until(t, "a commit waits for its answer", func() bool {
		return SQL(t, "postgres", `SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = '`+d.Name+`'`) != "0"
	})
	Kill(t)
	if err := os.Truncate(filepath.Join(data(), "postgresql.auto.conf"), 0); err != nil { // what ALTER SYSTEM wrote
		t.Fatal(err)
	}
}

// LimitFiles makes the disk as good as full: no session can make a file of the
// database larger than a mebibyte. PostgreSQL says "could not extend file".
// Unlimit ends it.
func LimitFiles(t testing.TB) { limit(t, "1048576") }

// Unlimit ends LimitFiles.
func Unlimit(t testing.TB) { limit(t, "unlimited") }

func limit(t testing.TB, bytes string) {
	t.Helper()
	sessions := strings.Fields(SQL(t, "postgres", `SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()`))
	for _, pid := range append(sessions, strconv.Itoa(server.pid)) { // new sessions are the postmaster's children
		cmd := exec.Command("prlimit", "--pid", pid, "--fsize="+bytes+":")
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: server.as}
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("prlimit: %v: %s", err, out)
		}
	}
}

func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !ok(); {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 seconds: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
