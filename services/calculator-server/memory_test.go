package main

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"warren.example/messaging/contract"
)

func open(t *testing.T, path string) Memory {
	t.Helper()
	m, err := openSQLite(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}

func adding(n string) func(string) (string, error) {
	return func(value string) (string, error) { return calculate(contract.Add, []string{n, value}) }
}

func recall(value string) (string, error) { return value, nil }

func key(user, id, body string) Key {
	return Key{User: user, ID: id, Body: sha256.Sum256([]byte(body))}
}

// The rows run in order on one database, opened anew for each as after a kill.
func TestApply(t *testing.T) {
	path := filepath.Join(t.TempDir(), "calculator ?#%.db")
	for _, tc := range []struct {
		what          string
		key           Key
		change        func(string) (string, error)
		want          string // a result or a code
		wantDuplicate bool
	}{
		{"a fresh memory is 0", key("ann", "1", "recall"), recall, "0", false},
		{"first addition", key("ann", "2", "add 5"), adding("5"), "5", false},
		{"the same again", key("ann", "2", "add 5"), adding("5"), "5", true},
		{"another", key("ann", "3", "add 0.5"), adding("0.5"), "5.5", false},
		{"an old one again has its old reply", key("ann", "2", "add 5"), adding("5"), "5", true},
		{"same id, other body", key("ann", "2", "add 6"), adding("6"), "ID_CONFLICT", true},
		{"same id, other user", key("bob", "2", "add 6"), adding("6"), "6", false},
		{"a refusal is a reply", key("ann", "4", "add x"), adding("x"), "INVALID_ARGUMENT", false},
		{"… and kept", key("ann", "4", "add x"), adding("1"), "INVALID_ARGUMENT", true},
		{"the lesson: no key", key("ann", "", "add 1"), adding("1"), "6.5", false},
		{"… runs twice", key("ann", "", "add 1"), adding("1"), "7.5", false},
		{"nothing else changed it", key("ann", "5", "recall"), recall, "7.5", false},
	} {
		t.Run(tc.what, func(t *testing.T) {
			m := open(t, path)
			reply, duplicate, err := m.Apply(t.Context(), tc.key, tc.change)
			if err != nil {
				t.Fatal(err)
			}
			got := reply.Result
			if reply.Error != nil {
				got = string(reply.Error.Code)
			}
			if got != tc.want || duplicate != tc.wantDuplicate {
				t.Errorf("got %s, duplicate %t; want %s, %t", got, duplicate, tc.want, tc.wantDuplicate)
			}
		})
	}
}

// Two servers of one machine get the same requests at once, as after a
// redelivery from a server that was only slow.
func TestApplyOnceUnderConcurrency(t *testing.T) {
	path := filepath.Join(t.TempDir(), "calculator.db")
	servers := []Memory{open(t, path), open(t, path)}
	const requests = 50
	var wg sync.WaitGroup
	for i := range requests {
		for _, m := range servers {
			wg.Go(func() {
				k := key("ann", string(rune('A'+i)), "add 1")
				for { // the database is locked: held and tried again
					if _, _, err := m.Apply(t.Context(), k, adding("1")); err == nil {
						return
					} else if !strings.Contains(err.Error(), "locked") {
						t.Error(err)
						return
					}
				}
			})
		}
	}
	wg.Wait()
	reply, _, err := servers[0].Apply(t.Context(), key("ann", "sum", "recall"), recall)
	if err != nil || reply.Result != "50" {
		t.Errorf("memory is %q (%v), want %d", reply.Result, err, requests)
	}
}

// A change that fails for our own reasons leaves no key behind.
func TestApplyKeepsNothingOfAFailure(t *testing.T) {
	m := open(t, filepath.Join(t.TempDir(), "calculator.db"))
	away := errors.New("away")
	if _, _, err := m.Apply(t.Context(), key("ann", "1", "b"), func(string) (string, error) { return "", away }); !errors.Is(err, away) {
		t.Fatalf("got %v, want %v", err, away)
	}
	reply, duplicate, err := m.Apply(t.Context(), key("ann", "1", "b"), adding("1"))
	if err != nil || duplicate || reply.Result != "1" {
		t.Errorf("got %v, duplicate %t, %v; want 1, false", reply, duplicate, err)
	}
}

func TestApplyFailsWhileTheDatabaseIsLocked(t *testing.T) {
	path := filepath.Join(t.TempDir(), "calculator.db")
	m := open(t, path)
	unlock := lock(t, path)
	if _, _, err := m.Apply(t.Context(), key("ann", "1", "b"), adding("1")); err == nil {
		t.Error("applied to a locked database")
	}
	unlock()
	if reply, duplicate, err := m.Apply(t.Context(), key("ann", "1", "b"), adding("1")); err != nil || duplicate || reply.Result != "1" {
		t.Errorf("got %v, duplicate %t, %v; want 1, false", reply, duplicate, err)
	}
}

// lock takes the database away from everybody else.
func lock(t *testing.T, path string) (unlock func()) {
	t.Helper()
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := db.Conn(context.WithoutCancel(t.Context()))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.ExecContext(t.Context(), "PRAGMA busy_timeout = 10000; BEGIN IMMEDIATE"); err != nil {
		t.Fatal(err)
	}
	unlock = sync.OnceFunc(func() { _ = conn.Close(); _ = db.Close() })
	t.Cleanup(unlock)
	return unlock
}

func TestOpenSQLiteNamesAFolderThatIsMissing(t *testing.T) {
	if _, err := openSQLite(t.Context(), filepath.Join(t.TempDir(), "missing", "calculator.db")); err == nil {
		t.Error("opened a database in a folder that does not exist")
	}
}
