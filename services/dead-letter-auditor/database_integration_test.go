//go:build integration

package main

import (
	"crypto/rand"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/messaging/database"
	"warren.example/messaging/database/pgtest"
	"warren.example/messaging/event"
)

// PostgreSQL breaks, requests die, it is mended: no restart, unready meanwhile,
// each dead letter held, then audited once, and nothing is left in the queue.
func TestHoldsWhilePostgreSQLIsInTrouble(t *testing.T) {
	for fault, begin := range map[string]func(*testing.T, pgtest.Database) (end func()){
		"gone":   func(t *testing.T, _ pgtest.Database) func() { pgtest.Kill(t); return func() { pgtest.Start(t) } },
		"frozen": func(t *testing.T, _ pgtest.Database) func() { pgtest.Freeze(t); return func() { pgtest.Thaw(t) } },
		"locked": lock,
		"full": func(t *testing.T, _ pgtest.Database) func() {
			pgtest.LimitFiles(t)
			return func() { pgtest.Unlimit(t) }
		},
	} {
		t.Run(fault, func(t *testing.T) {
			admin := freshQueues(t)
			db := pgtest.New(t)
			p := start(t, db.URL, "WARREN_DATABASE_PASSWORD_FILE="+db.PasswordFile)
			end := sync.OnceFunc(begin(t, db))
			defer end()
			var ids []string
			for i := range 100 { // of 16 KiB, for a mebibyte to be full
				ids = append(ids, fmt.Sprint("m", i))
			}
			requests(t, ids...)
			p.unready()
			if n := len(p.audited()); n == len(ids) {
				t.Error("everything was audited: the fault missed")
			}
			end()
			p.auditedOnce(ids)
			eventually(t, p.notReady)
			p.stop()
			nothingLeft(t, admin)
			if got := pgtest.SQL(t, db.Name, `SELECT count(*), count(DISTINCT message_id) FROM dead_letters`); got != "100|100" {
				t.Errorf("got %s rows|messages, want 100|100", got)
			}
		})
	}
}

// lock takes the table away from everybody else.
func lock(t *testing.T, d pgtest.Database) (unlock func()) {
	t.Helper()
	db, err := database.Open(d.URL, d.PasswordFile)
	if err != nil {
		t.Fatal(err)
	}
	tx, err := db.Begin()
	if err == nil {
		_, err = tx.Exec(`SET LOCAL idle_in_transaction_session_timeout = 0; LOCK TABLE dead_letters`)
	}
	if err != nil {
		t.Fatal(err)
	}
	return func() { _, _ = tx.Rollback(), db.Close() }
}

// unready waits until it is.
func (p *process) unready() {
	p.t.Helper()
	eventually(p.t, func() string {
		if p.notReady() == "" {
			return "ready"
		}
		return ""
	})
}

// What is held is not settled: killed meanwhile, the auditor has lost nothing.
func TestKilledWhileItHolds(t *testing.T) {
	admin := freshQueues(t)
	db := pgtest.New(t)
	p := start(t, db.URL, "WARREN_DATABASE_PASSWORD_FILE="+db.PasswordFile)
	unlock := sync.OnceFunc(lock(t, db))
	defer unlock()
	ids := []string{"a", "b", "c"}
	requests(t, ids...)
	p.unready()
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.wait()
	unlock()
	p = start(t, db.URL, "WARREN_DATABASE_PASSWORD_FILE="+db.PasswordFile)
	p.auditedOnce(ids)
	p.stop()
	nothingLeft(t, admin)
}

// requests publishes requests that expire at once.
func requests(t *testing.T, ids ...string) {
	t.Helper()
	ch := open(t, "AMQP_URL_CALC_CLIENT")
	body := make([]byte, 16<<10)
	for _, id := range ids {
		rand.Read(body)
		publish(t, ch, id, 50*time.Millisecond, func(p *amqp.Publishing) { p.Body = body })
	}
}

// audited is the ids of the audited events, in order.
func (p *process) audited() (ids []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.events {
		if l.Event == event.Audited {
			ids = append(ids, l.Request)
		}
	}
	return ids
}

// auditedOnce waits for the ids, and checks that none comes twice.
func (p *process) auditedOnce(ids []string) {
	p.t.Helper()
	eventually(p.t, func() string {
		if n := len(p.audited()); n < len(ids) {
			return fmt.Sprintf("%d of %d are audited", n, len(ids))
		}
		return ""
	})
	got, want := p.audited(), slices.Clone(ids)
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		p.t.Errorf("audited %v, want each of %v once", got, want)
	}
}

// The server dies between making a commit and saying so. The dead letter is
// held and tried again, and is the row that it had become.
func TestACommitWithoutAnAnswer(t *testing.T) {
	admin := freshQueues(t)
	db := pgtest.New(t)
	p := start(t, db.URL, "WARREN_DATABASE_PASSWORD_FILE="+db.PasswordFile)
	pgtest.HoldCommits(t)
	request(t, "m", 50*time.Millisecond)
	pgtest.KillAtCommit(t, db)
	pgtest.Start(t)
	p.row("m", func(l DeadLetter) bool { return l.Seen == 2 }) // by that commit, and after it
	p.auditedOnce([]string{"m"})
	eventually(t, p.notReady)
	p.stop()
	nothingLeft(t, admin)
	if got := pgtest.SQL(t, db.Name, `SELECT count(*) FROM dead_letters`); got != "1" {
		t.Errorf("got %s rows, want 1", got)
	}
}

// PostgreSQL comes after the auditor: alive, unready, and it says why.
func TestStartsBeforePostgreSQL(t *testing.T) {
	freshQueues(t)
	db := pgtest.New(t)
	pgtest.Kill(t)
	begin := sync.OnceFunc(func() { pgtest.Start(t) })
	defer begin()
	p := launch(t, db.URL, "WARREN_DATABASE_PASSWORD_FILE="+db.PasswordFile)
	requests(t, "m")
	eventually(t, func() string {
		res, err := http.Get(p.admin + "/livez")
		if err != nil {
			return err.Error()
		}
		defer res.Body.Close()
		if status, why := ask(t, "GET", p.admin+"/readyz", ""); status != http.StatusServiceUnavailable || !strings.Contains(why, "database: ") {
			return fmt.Sprintf("readyz: %d %s", status, why)
		}
		return ""
	})
	if status, _ := ask(t, "GET", p.url+"/api/dead-letters", ""); status != http.StatusServiceUnavailable {
		t.Errorf("list: got %d, want %d", status, http.StatusServiceUnavailable)
	}
	begin()
	p.auditedOnce([]string{"m"})
	eventually(t, p.notReady)
	p.stop()
	if strings.Contains(p.log.String(), "p@ss") {
		t.Error("the log has the password")
	}
}

// Two auditors share the work: each death is audited by one of them, and one of
// two people who ask both at once to replay it is told no.
func TestTwoAuditors(t *testing.T) {
	admin := freshQueues(t)
	db := pgtest.New(t)
	first := start(t, db.URL, "WARREN_DATABASE_PASSWORD_FILE="+db.PasswordFile)
	second := start(t, db.URL, "WARREN_DATABASE_PASSWORD_FILE="+db.PasswordFile)
	var ids []string
	for i := range 30 {
		ids = append(ids, fmt.Sprint("m", i))
	}
	requests(t, ids...)
	eventually(t, func() string {
		all := append(first.audited(), second.audited()...)
		slices.Sort(all)
		if len(all) != len(ids) || len(slices.Compact(all)) != len(ids) {
			return fmt.Sprintf("audited %v", all)
		}
		return ""
	})
	if len(first.audited()) == 0 || len(second.audited()) == 0 {
		t.Errorf("audited %d and %d, want some by each", len(first.audited()), len(second.audited()))
	}
	newServer(t, answer)
	row := first.rows()[0]
	statuses := make(chan int, 2)
	for _, p := range []*process{first, second} {
		go func() {
			status, _ := ask(t, "POST", fmt.Sprintf("%s/api/dead-letters/%d/replay", p.url, row.ID), "", "Warren-Actor: ann")
			statuses <- status
		}()
	}
	if a, b := <-statuses, <-statuses; a+b != http.StatusAccepted+http.StatusConflict {
		t.Errorf("got %d and %d, want 202 and 409", a, b)
	}
	second.row(row.MessageID, func(l DeadLetter) bool { return l.Status == Answered && l.Generation == 1 })
	first.stop()
	second.stop()
	nothingLeft(t, admin)
}
