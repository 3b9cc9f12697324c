//go:build integration

package main

import (
	"net/url"
	"path"
	"strings"
	"sync"
	"testing"

	"warren.example/messaging/contract"
	"warren.example/messaging/database/pgtest"
	"warren.example/messaging/event"
)

// environment is a database's settings as start takes them.
func environment(cfg Config) []string {
	return []string{"DATABASE=" + cfg.Database, "DATABASE_PASSWORD_FILE=" + cfg.DatabasePasswordFile}
}

// PostgreSQL breaks with a memory-add on its way, and is mended: no restart, the
// server unready meanwhile, and the one delivery held, executed once, and answered.
func TestHoldsWhilePostgreSQLIsInTrouble(t *testing.T) {
	for fault, begin := range map[string]func(*testing.T, Config) (end func()){
		"gone":   func(t *testing.T, _ Config) func() { pgtest.Kill(t); return func() { pgtest.Start(t) } },
		"frozen": func(t *testing.T, _ Config) func() { pgtest.Freeze(t); return func() { pgtest.Thaw(t) } },
		"locked": lock,
		"full":   fill,
	} {
		t.Run(fault, func(t *testing.T) {
			broker(t)
			cfg := engines["PostgreSQL"](t)
			p := start(t, environment(cfg)...)
			eventually(t, "ready", p.ready)
			c := caller(t)
			end := sync.OnceFunc(begin(t, cfg))
			defer end()
			var calls sync.WaitGroup
			calls.Go(func() {
				if got := call(t, c, "held", contract.MemoryAdd, "5"); got != "5" {
					t.Errorf("memory-add 5 = %s, want 5", got)
				}
			})
			eventually(t, "unready", func() bool { return !p.ready() })
			if why := p.get("/readyz"); !strings.Contains(why, "memory: ") {
				t.Errorf("/readyz says %q, want the memory named", why)
			}
			end()
			calls.Wait()
			eventually(t, "ready again", p.ready)
			if got := call(t, c, "recall", contract.MemoryRecall); got != "5" {
				t.Errorf("memory is %s, want 5", got)
			}
			p.heldOnce("held", event.Computed)
		})
	}
}

// fill makes the disk full, and the last page of the table with it.
func fill(t *testing.T, cfg Config) (end func()) {
	database, err := url.Parse(cfg.Database)
	if err != nil {
		t.Fatal(err)
	}
	pgtest.LimitFiles(t)
	pgtest.SQL(t, path.Base(database.Path), `DO $$ BEGIN
		FOR i IN 1..100000 LOOP
			BEGIN
				INSERT INTO replies ("user", id, body, created) VALUES ('', i, '', '');
			EXCEPTION WHEN OTHERS THEN
				RETURN;
			END;
		END LOOP;
		RAISE 'the disk is not full';
	END $$`)
	return func() { pgtest.Unlimit(t) }
}

// The server dies between making a commit and saying so. Nobody knows whether
// the number was changed; the delivery is held, tried again, and found under its key.
func TestACommitWithoutAnAnswer(t *testing.T) {
	broker(t)
	db := pgtest.New(t)
	p := start(t, environment(Config{Database: db.URL, DatabasePasswordFile: db.PasswordFile})...)
	eventually(t, "ready", p.ready)
	c := caller(t)
	pgtest.HoldCommits(t)
	var calls sync.WaitGroup
	calls.Go(func() {
		if got := call(t, c, "unknown", contract.MemoryAdd, "5"); got != "5" {
			t.Errorf("memory-add 5 = %s, want 5", got)
		}
	})
	pgtest.KillAtCommit(t, db)
	pgtest.Start(t)
	calls.Wait()
	if got := call(t, c, "recall", contract.MemoryRecall); got != "5" {
		t.Errorf("memory is %s, want 5", got)
	}
	p.heldOnce("unknown", event.Deduplicated)
}

// heldOnce checks that the request was delivered once, never settled before it
// was acked, and had its answer in that way.
func (p *process) heldOnce(request string, how event.Kind) {
	p.t.Helper()
	eventually(p.t, "acked", p.has(request, event.Acked))
	want := strings.Replace(whole, string(event.Computed), string(how), 1)
	var got []string
	for _, k := range p.events(request) {
		got = append(got, string(k))
	}
	if strings.Join(got, " ") != want {
		p.t.Errorf("events %v, want %s", got, want)
	}
}

// PostgreSQL comes after the server: unready, alive, and it takes no delivery
// that it could only hold.
func TestStartsBeforePostgreSQL(t *testing.T) {
	broker(t)
	cfg := engines["PostgreSQL"](t)
	pgtest.Kill(t)
	begin := sync.OnceFunc(func() { pgtest.Start(t) })
	defer begin()
	p := start(t, environment(cfg)...)
	eventually(t, "unready for want of the memory", func() bool { return !p.ready() && p.alive() && strings.Contains(p.get("/readyz"), "memory: ") })
	c := caller(t)
	var calls sync.WaitGroup
	calls.Go(func() {
		if got := call(t, c, "early", contract.MemoryAdd, "5"); got != "5" {
			t.Errorf("memory-add 5 = %s, want 5", got)
		}
	})
	if got := p.events("early"); len(got) != 0 {
		t.Errorf("events %v, want none yet", got)
	}
	begin()
	calls.Wait()
	eventually(t, "ready", p.ready)
	p.terminate()
	if state := p.exit(); state.ExitCode() != 0 {
		t.Errorf("ended with %s, want 0", state)
	}
	if strings.Contains(p.log.String(), "p@ss") {
		t.Error("the log has the password")
	}
}
