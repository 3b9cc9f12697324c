package main

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"

	"warren.example/messaging/contract"
	"warren.example/messaging/database"
	"warren.example/messaging/database/pgtest"
)

// TestMain lets the test binary be the server: what the integration tests kill
// is a process.
func TestMain(m *testing.M) {
	if os.Getenv("SERVER_TEST_RUN") != "" {
		main()
		return
	}
	goleak.VerifyTestMain(tests{m})
}

type tests struct{ *testing.M }

func (t tests) Run() int { return pgtest.Main(t.M) }

// engines make the settings of an empty database.
var engines = map[string]func(*testing.T) Config{
	"SQLite": func(t *testing.T) Config {
		return Config{Database: filepath.Join(t.TempDir(), "calculator ?#%.db")}
	},
	"PostgreSQL": func(t *testing.T) Config {
		db := pgtest.New(t)
		return Config{Database: db.URL, DatabasePasswordFile: db.PasswordFile}
	},
}

// TestMemory runs each test on each engine, on a database of its own.
func TestMemory(t *testing.T) {
	for engine, settings := range engines {
		for what, test := range map[string]func(*testing.T, Config){
			"apply":                      testApply,
			"once under concurrency":     testApplyOnceUnderConcurrency,
			"keeps nothing of a failure": testApplyKeepsNothingOfAFailure,
			"fails while it is locked":   testApplyFailsWhileTheDatabaseIsLocked,
			"takes any message-id":       testApplyTakesAnyMessageID,
			"servers start at once":      testServersStartAtOnce,
			"a newer schema is refused":  testANewerSchemaIsRefused,
		} {
			t.Run(engine+"/"+what, func(t *testing.T) { test(t, settings(t)) })
		}
	}
}

func open(t *testing.T, cfg Config) Memory {
	t.Helper()
	m, err := openMemory(t.Context(), cfg)
	if err == nil {
		t.Cleanup(func() { _ = m.Close() })
		err = m.Migrate(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
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
func testApply(t *testing.T, cfg Config) {
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
			m := open(t, cfg)
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

// Two servers get the same requests at once, as after a redelivery from a
// server that was only slow.
func testApplyOnceUnderConcurrency(t *testing.T, cfg Config) {
	servers := []Memory{open(t, cfg), open(t, cfg)}
	const requests = 20 // each is a sync of SQLite's file, one after the other, and a call takes 5 s at most
	var wg sync.WaitGroup
	for i := range requests {
		for _, m := range servers {
			wg.Go(func() {
				k := key("ann", string(rune('A'+i)), "add 1")
				if _, _, err := m.Apply(t.Context(), k, adding("1")); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	reply, _, err := servers[0].Apply(t.Context(), key("ann", "sum", "recall"), recall)
	if err != nil || reply.Result != strconv.Itoa(requests) {
		t.Errorf("memory is %q (%v), want %d", reply.Result, err, requests)
	}
}

// A change that fails for our own reasons leaves no key behind.
func testApplyKeepsNothingOfAFailure(t *testing.T, cfg Config) {
	m := open(t, cfg)
	away := errors.New("away")
	if _, _, err := m.Apply(t.Context(), key("ann", "1", "b"), func(string) (string, error) { return "", away }); !errors.Is(err, away) {
		t.Fatalf("got %v, want %v", err, away)
	}
	reply, duplicate, err := m.Apply(t.Context(), key("ann", "1", "b"), adding("1"))
	if err != nil || duplicate || reply.Result != "1" {
		t.Errorf("got %v, duplicate %t, %v; want 1, false", reply, duplicate, err)
	}
}

func testApplyFailsWhileTheDatabaseIsLocked(t *testing.T, cfg Config) {
	m := open(t, cfg)
	unlock := lock(t, cfg)
	if _, _, err := m.Apply(t.Context(), key("ann", "1", "b"), adding("1")); err == nil {
		t.Error("applied to a locked database")
	}
	unlock()
	if reply, duplicate, err := m.Apply(t.Context(), key("ann", "1", "b"), adding("1")); err != nil || duplicate || reply.Result != "1" {
		t.Errorf("got %v, duplicate %t, %v; want 1, false", reply, duplicate, err)
	}
}

// lock takes the database away from everybody else.
func lock(t *testing.T, cfg Config) (unlock func()) {
	t.Helper()
	db, err := database.Open(cfg.Database, cfg.DatabasePasswordFile)
	if err != nil {
		t.Fatal(err)
	}
	tx, err := db.BeginTx(context.WithoutCancel(t.Context()), nil)
	if err == nil && db.Postgres {
		_, err = tx.Exec(`SET LOCAL idle_in_transaction_session_timeout = 0; LOCK TABLE memory, replies`)
	}
	if err != nil {
		t.Fatal(err)
	}
	unlock = sync.OnceFunc(func() { _, _ = tx.Rollback(), db.Close() })
	t.Cleanup(unlock)
	return unlock
}

// What PostgreSQL does not take as text is a key like any other: the delivery
// would be held for ever.
func testApplyTakesAnyMessageID(t *testing.T, cfg Config) {
	m := open(t, cfg)
	for _, id := range []string{"\xff", "\x00", "a\x00b", "'\"\\$1"} {
		for _, again := range []bool{false, true} {
			if _, duplicate, err := m.Apply(t.Context(), key("ann", id, "add 1"), adding("1")); err != nil || duplicate != again {
				t.Errorf("%q: got duplicate %t, %v; want %t", id, duplicate, err, again)
			}
		}
	}
	if reply, _, err := m.Apply(t.Context(), key("ann", "sum", "recall"), recall); err != nil || reply.Result != "4" {
		t.Errorf("memory is %q (%v), want 4", reply.Result, err)
	}
}

func testServersStartAtOnce(t *testing.T, cfg Config) {
	var wg sync.WaitGroup
	for range 16 {
		wg.Go(func() {
			m, err := openMemory(t.Context(), cfg)
			if err == nil {
				err = errors.Join(m.Migrate(t.Context()), m.Close())
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

func testANewerSchemaIsRefused(t *testing.T, cfg Config) {
	m := open(t, cfg).(*sqlMemory)
	if _, err := m.db.Exec(`INSERT INTO calculator_schema (version_id, is_applied) VALUES (9, $1)`, true); err != nil {
		t.Fatal(err)
	}
	if err := m.Migrate(t.Context()); err == nil || !strings.Contains(err.Error(), "schema version 9, this program knows 1") {
		t.Errorf("got %v, want the two versions", err)
	}
}

// A file that was made before there were migrations.
func TestAFileOfTheFirstSchema(t *testing.T) {
	path := filepath.Join(t.TempDir(), "calculator.db")
	schema, err := os.ReadFile("testdata/schema-1.sql")
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	old := key("ann", "1", "add 5")
	_, err = db.Exec(string(schema)+`INSERT INTO memory VALUES ('ann', '5'); INSERT INTO replies VALUES ('ann', '1', ?, '{"result":"5"}', '')`, old.Body[:])
	if err := errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	m := open(t, Config{Database: path})
	if reply, duplicate, err := m.Apply(t.Context(), old, adding("5")); err != nil || !duplicate || reply.Result != "5" {
		t.Errorf("the old key: got %v, duplicate %t, %v; want 5, true", reply, duplicate, err)
	}
	if reply, duplicate, err := m.Apply(t.Context(), key("ann", "2", "add 1"), adding("1")); err != nil || duplicate || reply.Result != "6" {
		t.Errorf("a new key: got %v, duplicate %t, %v; want 6, false", reply, duplicate, err)
	}
}

func TestOpenMemoryNamesAFolderThatIsMissing(t *testing.T) {
	if _, err := openMemory(t.Context(), Config{Database: filepath.Join(t.TempDir(), "missing", "calculator.db")}); err == nil {
		t.Error("opened a database in a folder that does not exist")
	}
}
