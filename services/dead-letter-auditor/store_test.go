package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/goleak"

	"warren.example/messaging/database"
	"warren.example/messaging/database/pgtest"
)

// TestMain lets the test binary be the service: what the integration tests kill
// is a process, by SIGKILL.
func TestMain(m *testing.M) {
	if os.Getenv("AUDITOR_TEST_SERVE") != "" {
		os.Exit(execute(context.Background(), []string{"serve"}, strings.NewReader(""), os.Stdout, os.Stderr))
	}
	goleak.VerifyTestMain(tests{m})
}

// tests is all of them, and what they share is ended before goleak looks.
type tests struct{ *testing.M }

func (t tests) Run() int {
	defer http.DefaultClient.CloseIdleConnections()
	return pgtest.Main(t.M)
}

// engines make the settings of an empty database.
var engines = map[string]func(*testing.T) config{
	"SQLite": func(t *testing.T) config {
		return config{Database: filepath.Join(t.TempDir(), "a folder", "..", "dead?letters#1.db"), UniqueKey: true}
	},
	"PostgreSQL": func(t *testing.T) config {
		db := pgtest.New(t)
		return config{Database: db.URL, DatabasePasswordFile: db.PasswordFile, UniqueKey: true}
	},
}

// TestStore runs each test on each engine, on a database of its own. Further
// stores on it are what further auditors have.
func TestStore(t *testing.T) {
	for engine, settings := range engines {
		for what, test := range map[string]func(*testing.T, *sqlStore, config){
			"one death is one row":              testOneDeathIsOneRow,
			"without unique key two rows":       testWithoutUniqueKeyTwoRows,
			"a row comes back as it was stored": testARowComesBackAsItWasStored,
			"concurrent claims":                 testConcurrentClaims,
			"generations count on":              testGenerationsCountOn,
			"the next death closes the replay":  testTheNextDeathClosesTheReplay,
			"reclaim takes only expired leases": testReclaimTakesOnlyExpiredLeases,
			"what cannot be replayed":           testWhatCannotBeReplayed,
			"discard and trail":                 testDiscardAndTrail,
			"list pages and filters":            testListPagesAndFilters,
			"find by either ID":                 testFindByEitherID,
			"rival claims":                      testRivalClaims,
			"auditors share a database":         testAuditorsShareADatabase,
			"anything can be stored":            testAnythingCanBeStored,
			"a newer schema is refused":         testANewerSchemaIsRefused,
		} {
			t.Run(engine+"/"+what, func(t *testing.T) {
				cfg := settings(t)
				test(t, mustOpen(t, cfg), cfg)
			})
		}
	}
}

// mustOpen opens a database as the service does.
func mustOpen(t *testing.T, cfg config) *sqlStore {
	t.Helper()
	s, err := openStore(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	if err := s.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

// newStore is for tests of what does not depend on the engine.
func newStore(t *testing.T) *sqlStore { return mustOpen(t, engines["SQLite"](t)) }

// newLetter is a death of the message id.
func newLetter(id string, change ...func(*DeadLetter)) DeadLetter {
	l := DeadLetter{MessageID: id, Attempt: 1, Queue: "calc.requests", Reason: Expired, Count: 1, Sent: "as it was", Why: "expired in calc.requests",
		User: "calc-client", Properties: []byte(`{}`), Headers: []byte(`{}`), Body: []byte(`{"operation":"memory-recall"}`), Status: Open}
	l.BodySize = len(l.Body)
	for _, c := range change {
		c(&l)
	}
	return l
}

func mustAudit(t *testing.T, s Store, l DeadLetter) DeadLetter {
	t.Helper()
	row, err := s.Audit(t.Context(), l)
	if err != nil {
		t.Fatal(err)
	}
	return row
}

// mustFind returns the one row with that id.
func mustFind(t *testing.T, s Store, id int64) DeadLetter {
	t.Helper()
	rows, err := s.Find(t.Context(), fmt.Sprint(id))
	if err != nil || len(rows) != 1 {
		t.Fatalf("find %d: %d rows, %v", id, len(rows), err)
	}
	return rows[0]
}

func testOneDeathIsOneRow(t *testing.T, s *sqlStore, _ config) {
	first := mustAudit(t, s, newLetter("m"))
	again := mustAudit(t, s, newLetter("m", func(l *DeadLetter) { l.Why = "another sentence" }))
	if again.ID != first.ID || again.Seen != 2 || again.Why != first.Why {
		t.Errorf("second sighting: got row %d seen %d %q, want row %d seen 2 %q", again.ID, again.Seen, again.Why, first.ID, first.Why)
	}
	for name, change := range map[string]func(*DeadLetter){
		"message": func(l *DeadLetter) { l.MessageID = "n" },
		"replay":  func(l *DeadLetter) { l.Replay = 1 },
		"attempt": func(l *DeadLetter) { l.Attempt = 2 },
		"queue":   func(l *DeadLetter) { l.Queue = "other" },
		"reason":  func(l *DeadLetter) { l.Reason = Rejected },
		"count":   func(l *DeadLetter) { l.Count = 2 },
		"publish": func(l *DeadLetter) { l.Sent = "otherwise" },
	} {
		if row := mustAudit(t, s, newLetter("m", change)); row.Seen != 1 {
			t.Errorf("another %s: counted as a second sighting of row %d", name, row.ID)
		}
	}
}

// The lesson: without the unique key the same death makes a second row.
func testWithoutUniqueKeyTwoRows(t *testing.T, s *sqlStore, _ config) {
	s.uniqueKey = false
	first, again := mustAudit(t, s, newLetter("m")), mustAudit(t, s, newLetter("m"))
	if first.ID == again.ID || again.Seen != 1 {
		t.Errorf("got rows %d and %d, want two", first.ID, again.ID)
	}
}

func testARowComesBackAsItWasStored(t *testing.T, s *sqlStore, _ config) {
	want := readLetter(readCapture(t, "rejected-4.3").delivery())
	row := mustAudit(t, s, want)
	got := mustFind(t, s, row.ID)
	want.ID, want.Seen, want.FirstSeen, want.LastSeen = row.ID, 1, got.FirstSeen, got.LastSeen
	if a, b := toJSON(t, got), toJSON(t, want); a != b {
		t.Errorf("got  %s\nwant %s", a, b)
	}
	if got.FirstSeen.IsZero() {
		t.Error("first seen: never")
	}
}

// Two people press replay at once: one wins, and one generation is spent.
func testConcurrentClaims(t *testing.T, s *sqlStore, _ config) {
	for round := range 10 {
		row := mustAudit(t, s, newLetter(fmt.Sprint("m", round)))
		var won, lost int
		var mu sync.Mutex
		var people sync.WaitGroup
		for person := range 4 {
			people.Go(func() {
				got, err := s.Claim(context.Background(), row.ID, fmt.Sprint("p", person), time.Minute)
				mu.Lock()
				defer mu.Unlock()
				var conflict *Conflict
				switch {
				case err == nil && got.Generation == 1 && got.Status == Replaying:
					won++
				case errors.As(err, &conflict):
					lost++
				default:
					t.Errorf("claim: got generation %d %s, %v", got.Generation, got.Status, err)
				}
			})
		}
		people.Wait()
		if won != 1 || lost != 3 {
			t.Fatalf("round %d: %d won and %d lost, want 1 and 3", round, won, lost)
		}
	}
}

func testGenerationsCountOn(t *testing.T, s *sqlStore, _ config) {
	first := mustAudit(t, s, newLetter("m"))
	for want := 1; want <= 3; want++ {
		row, err := s.Claim(t.Context(), first.ID, "p", time.Minute)
		if err != nil || row.Generation != want {
			t.Fatalf("claim: got generation %d, %v; want %d", row.Generation, err, want)
		}
		if closed, err := s.Close(t.Context(), row.Token, ReplayFailed, "no server"); err != nil || !closed {
			t.Fatalf("close: %v %v", closed, err)
		}
	}
	// Another death of the message, by an attempt of the original, comes late.
	late := mustAudit(t, s, newLetter("m", func(l *DeadLetter) { l.Attempt = 2 }))
	if row, err := s.Claim(t.Context(), late.ID, "p", time.Minute); err != nil || row.Generation != 4 {
		t.Errorf("claim of another death: got generation %d, %v; want 4", row.Generation, err)
	}
	var conflict *Conflict
	if _, err := s.Claim(t.Context(), first.ID, "p", time.Minute); !errors.As(err, &conflict) {
		t.Errorf("two deaths of one message at once: got %v, want a conflict", err)
	}
}

func testTheNextDeathClosesTheReplay(t *testing.T, s *sqlStore, _ config) {
	first := mustAudit(t, s, newLetter("m"))
	claimed, err := s.Claim(t.Context(), first.ID, "p", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	mustAudit(t, s, newLetter("m", func(l *DeadLetter) { l.Attempt = 2 })) // of the original: closes nothing
	if got := mustFind(t, s, first.ID); got.Status != Replaying {
		t.Fatalf("after a death of the original: got %s, want %s", got.Status, Replaying)
	}
	second := mustAudit(t, s, newLetter("m", func(l *DeadLetter) { l.Replay = 1 }))
	if got := mustFind(t, s, first.ID); got.Status != DiedAgain || got.Outcome != fmt.Sprintf("dead letter %d: expired in calc.requests", second.ID) {
		t.Errorf("after the death of generation 1: got %s %q", got.Status, got.Outcome)
	}
	if closed, err := s.Close(t.Context(), claimed.Token, Answered, "3"); closed || err != nil {
		t.Errorf("an answer after that: got closed %v, %v; want false", closed, err)
	}
	if row, err := s.Claim(t.Context(), second.ID, "p", time.Minute); err != nil || row.Generation != 2 {
		t.Errorf("replay of the replay: got generation %d, %v; want 2", row.Generation, err)
	}
}

func testReclaimTakesOnlyExpiredLeases(t *testing.T, s *sqlStore, _ config) {
	now := time.Now()
	s.now = func() time.Time { return now }
	row := mustAudit(t, s, newLetter("m"))
	claimed, err := s.Claim(t.Context(), row.ID, "p", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.Reclaim(t.Context(), time.Minute); !errors.Is(err, ErrNotFound) {
		t.Fatalf("within the lease: got %v, want ErrNotFound", err)
	}
	now = now.Add(time.Minute + time.Millisecond)
	again, err := s.Reclaim(t.Context(), time.Minute)
	if err != nil || again.ID != row.ID || again.Generation != claimed.Generation || again.Token == claimed.Token {
		t.Fatalf("after the lease: got row %d generation %d, %v; want row %d generation %d and a new token", again.ID, again.Generation, err, row.ID, claimed.Generation)
	}
	if _, err := s.Reclaim(t.Context(), time.Minute); !errors.Is(err, ErrNotFound) {
		t.Errorf("twice: got %v, want ErrNotFound", err)
	}
	if closed, _ := s.Close(t.Context(), claimed.Token, ReplayFailed, "late"); closed {
		t.Error("whoever lost the lease closed the row")
	}
}

func testWhatCannotBeReplayed(t *testing.T, s *sqlStore, _ config) {
	for name, change := range map[string]func(*DeadLetter){
		"suspicious": func(l *DeadLetter) { l.Suspicious = "no readable message-id" },
		"truncated":  func(l *DeadLetter) { l.BodySize = 1 << 20 },
	} {
		row := mustAudit(t, s, newLetter(name, change))
		var conflict *Conflict
		if _, err := s.Claim(t.Context(), row.ID, "p", time.Minute); !errors.As(err, &conflict) {
			t.Errorf("%s: got %v, want a conflict", name, err)
		}
	}
	if _, err := s.Claim(t.Context(), 99, "p", time.Minute); !errors.Is(err, ErrNotFound) {
		t.Errorf("missing: got %v, want ErrNotFound", err)
	}
}

func testDiscardAndTrail(t *testing.T, s *sqlStore, _ config) {
	row := mustAudit(t, s, newLetter("m"))
	claimed, err := s.Claim(t.Context(), row.ID, "ann", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	var conflict *Conflict
	if _, err := s.Discard(t.Context(), row.ID, "bob", "old"); !errors.As(err, &conflict) {
		t.Errorf("discard while it is replayed: got %v, want a conflict", err)
	}
	if _, err := s.Close(t.Context(), claimed.Token, ReplayFailed, "no server"); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Discard(t.Context(), row.ID, "bob", "old"); err != nil || got.Status != Discarded || got.Outcome != "old" {
		t.Errorf("discard: got %s %q, %v", got.Status, got.Outcome, err)
	}
	entries, err := s.Trail(t.Context(), TrailFilter{Row: row.ID, Limit: 10})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, e := range slices.Backward(entries) {
		got = append(got, fmt.Sprintf("%s %s %d %s->%s %s", e.Actor, e.Action, e.Row, e.Before, e.After, e.Detail))
	}
	want := []string{
		"ann replay 1 open->replaying generation 1",
		"dead-letter-auditor close 1 replaying->replay-failed no server",
		"bob discard 1 replay-failed->discarded old",
	}
	if !slices.Equal(got, want) {
		t.Errorf("trail\ngot  %q\nwant %q", got, want)
	}
}

func testListPagesAndFilters(t *testing.T, s *sqlStore, _ config) {
	for i := range 5 {
		mustAudit(t, s, newLetter(fmt.Sprint("m", i), func(l *DeadLetter) {
			if i%2 == 1 {
				l.Reason = Rejected
			}
		}))
	}
	ids := func(f Filter) (ids []int64) {
		rows, err := s.List(t.Context(), f)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			ids = append(ids, r.ID)
		}
		return ids
	}
	for _, c := range []struct {
		f    Filter
		want []int64
	}{
		{Filter{Limit: 2}, []int64{5, 4}},
		{Filter{Limit: 2, After: 4}, []int64{3, 2}},
		{Filter{Limit: 9, Reason: Rejected}, []int64{4, 2}},
		{Filter{Limit: 9, Reason: Rejected, Status: Open, After: 4}, []int64{2}},
		{Filter{Limit: 9, Status: Answered}, nil},
		{Filter{Limit: 9, MessageID: "m2"}, []int64{3}},
		{Filter{Limit: 9, MessageID: "3"}, nil}, // the number of a row is no message-id
		{Filter{Limit: 9, MessageID: "m2\x00"}, nil},
	} {
		if got := ids(c.f); !slices.Equal(got, c.want) {
			t.Errorf("%+v: got %v, want %v", c.f, got, c.want)
		}
	}
	if n, err := s.Count(t.Context(), Open); n != 5 || err != nil {
		t.Errorf("count: got %d, %v; want 5", n, err)
	}
}

// A message-id of digits only is found too, unless a row has that number.
func testFindByEitherID(t *testing.T, s *sqlStore, _ config) {
	mustAudit(t, s, newLetter("m"))
	mustAudit(t, s, newLetter("m", func(l *DeadLetter) { l.Attempt = 2 }))
	mustAudit(t, s, newLetter("4711"))
	for id, want := range map[string]int{"2": 1, "m": 2, "4711": 1} {
		if rows, err := s.Find(t.Context(), id); err != nil || len(rows) != want {
			t.Errorf("find %s: got %d rows, %v; want %d", id, len(rows), err, want)
		}
	}
	if _, err := s.Find(t.Context(), "none"); !errors.Is(err, ErrNotFound) {
		t.Errorf("find none: got %v, want ErrNotFound", err)
	}
}

// Two auditors are asked to replay two deaths of one message, again and again.
// No generation is ever spent twice, and none is skipped. They are not asked so
// often that SQLite, whose lock is not fair, could keep one of them waiting for
// as long as a call may take.
func testRivalClaims(t *testing.T, s *sqlStore, cfg config) {
	rivals := []*sqlStore{s, mustOpen(t, cfg)}
	var mu sync.Mutex
	var spent []int
	var wg sync.WaitGroup
	for i, s := range rivals {
		row := mustAudit(t, s, newLetter("m", func(l *DeadLetter) { l.Attempt = 1 + i }))
		for range 2 {
			wg.Go(func() {
				for range 10 {
					got, err := s.Claim(t.Context(), row.ID, "p", time.Minute)
					var conflict *Conflict
					if errors.As(err, &conflict) {
						continue
					} else if err != nil {
						t.Error(err)
						return
					}
					mu.Lock()
					spent = append(spent, got.Generation)
					mu.Unlock()
					if closed, err := s.Close(t.Context(), got.Token, ReplayFailed, "no server"); !closed || err != nil {
						t.Errorf("close: got %v, %v; want true", closed, err)
					}
				}
			})
		}
	}
	wg.Wait()
	slices.Sort(spent)
	for i, generation := range spent {
		if generation != 1+i {
			t.Fatalf("generations spent: got %v, want each once", spent)
		}
	}
	if len(spent) == 0 {
		t.Error("nobody ever won")
	}
}

func testAuditorsShareADatabase(t *testing.T, s *sqlStore, cfg config) {
	auditors := []*sqlStore{s, mustOpen(t, cfg), mustOpen(t, cfg), mustOpen(t, cfg)}
	together := func(do func(*sqlStore) error) (errs []error) {
		var mu sync.Mutex
		var wg sync.WaitGroup
		for _, s := range auditors {
			wg.Go(func() {
				err := do(s)
				mu.Lock()
				defer mu.Unlock()
				errs = append(errs, err)
			})
		}
		wg.Wait()
		return errs
	}
	const deaths = 20
	if err := errors.Join(together(func(s *sqlStore) error {
		for i := range deaths {
			if _, err := s.Audit(t.Context(), newLetter(fmt.Sprint("m", i))); err != nil {
				return err
			}
		}
		return nil
	})...); err != nil {
		t.Fatal(err)
	}
	rows, err := s.List(t.Context(), Filter{Limit: 100})
	if err != nil || len(rows) != deaths {
		t.Fatalf("got %d rows, %v; want %d", len(rows), err, deaths)
	}
	for _, row := range rows {
		if row.Seen != len(auditors) {
			t.Errorf("row %d: seen %d times, want %d", row.ID, row.Seen, len(auditors))
		}
	}

	row := rows[0]
	if _, err := s.Claim(t.Context(), row.ID, "p", -time.Second); err != nil {
		t.Fatal(err)
	}
	won := 0
	for _, err := range together(func(s *sqlStore) error { _, err := s.Reclaim(t.Context(), time.Minute); return err }) {
		if err == nil {
			won++
		} else if !errors.Is(err, ErrNotFound) {
			t.Error(err)
		}
	}
	if won != 1 {
		t.Errorf("an ended lease was taken over %d times, want once", won)
	}
	// The answer and the next death come at once: one of them closes the row.
	token := mustFind(t, s, row.ID).Token
	if err := errors.Join(together(func(s *sqlStore) error {
		_, err := s.Close(t.Context(), token, Answered, "3")
		if err == nil {
			_, err = s.Audit(t.Context(), newLetter(row.MessageID, func(l *DeadLetter) { l.Replay = 1 }))
		}
		return err
	})...); err != nil {
		t.Fatal(err)
	}
	entries, err := s.Trail(t.Context(), TrailFilter{Row: row.ID, Limit: 10})
	if err != nil || len(entries) != 3 { // replay, replay-again, close
		t.Errorf("trail: got %+v, %v; want three entries", entries, err)
	}
}

// A stranger's message must not be one that the database refuses: it would be
// held for ever, and all others behind it.
func testAnythingCanBeStored(t *testing.T, s *sqlStore, _ config) {
	const rubbish = "\x00\xff\u202e'\"\\"
	for _, id := range []string{rubbish, "m"} {
		want := readLetter(&amqp.Delivery{MessageId: id, UserId: "dlq-auditor", ReplyTo: rubbish, Type: rubbish, ContentType: rubbish, AppId: rubbish,
			Body: []byte(rubbish), Headers: amqp.Table{rubbish: rubbish, "calc-attempt": int64(math.MaxInt64), "calc-replay": int64(math.MaxInt64), "calc-original-user": rubbish,
				"x-death": []any{amqp.Table{"reason": rubbish, "queue": rubbish, "exchange": rubbish, "count": int64(math.MaxInt64), "routing-keys": []any{rubbish}}}}})
		row := mustAudit(t, s, want)
		if got := mustFind(t, s, row.ID); string(got.Body) != rubbish || got.Count != math.MaxInt64 {
			t.Errorf("got body %q, count %d; want what was sent", got.Body, got.Count)
		}
	}
	for _, id := range []string{"\x00", "\xff", strings.Repeat("9", 40)} {
		if _, err := s.Find(t.Context(), id); !errors.Is(err, ErrNotFound) {
			t.Errorf("find %q: got %v, want ErrNotFound", id, err)
		}
	}
}

func testANewerSchemaIsRefused(t *testing.T, s *sqlStore, _ config) {
	if _, err := s.db.ExecContext(t.Context(), `INSERT INTO auditor_schema (version_id, is_applied) VALUES (9, $1)`, true); err != nil {
		t.Fatal(err)
	}
	if err := s.Migrate(t.Context()); err == nil || !strings.Contains(err.Error(), "schema version 9, this program knows ") {
		t.Errorf("got %v, want the two versions", err)
	}
}

func TestReplicasStartAtOnce(t *testing.T) {
	for engine, settings := range engines {
		t.Run(engine, func(t *testing.T) {
			cfg := settings(t)
			var wg sync.WaitGroup
			for range 16 {
				wg.Go(func() {
					s, err := openStore(t.Context(), cfg)
					if err == nil {
						err = errors.Join(s.Migrate(t.Context()), s.Shutdown())
					}
					if err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			s := mustOpen(t, cfg)
			var versions, different int
			if err := s.db.QueryRow(`SELECT count(*), count(DISTINCT version_id) FROM auditor_schema`).Scan(&versions, &different); err != nil || versions != different {
				t.Errorf("got %d migrations, %d different, %v; want each once", versions, different, err)
			}
		})
	}
}

// The password is read for every new connection: a rotated one needs no restart.
func TestARotatedPassword(t *testing.T) {
	db := pgtest.New(t)
	s := mustOpen(t, config{Database: db.URL, DatabasePasswordFile: db.PasswordFile, UniqueKey: true})
	t.Cleanup(func() { pgtest.RestorePassword(t) })
	pgtest.SQL(t, db.Name, `ALTER ROLE warren PASSWORD 'n3w s3cret'`, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'warren'`)
	_, err := s.Count(t.Context(), Open)
	for err == nil || !strings.Contains(err.Error(), "28P01") { // first comes the end of the old connection
		if _, err = s.Count(t.Context(), Open); t.Context().Err() != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(err.Error(), "p@ss") {
		t.Errorf("the password prints: %v", err)
	}
	db.WritePassword(t, "n3w s3cret")
	if _, err := s.Count(t.Context(), Open); err != nil {
		t.Errorf("with the new password: %v", err)
	}
}

// A server that takes connections and says nothing, and one that is gone: each
// call ends with an error, and the first call after it works.
func TestNoCallHangs(t *testing.T) {
	db := pgtest.New(t)
	cfg := config{Database: db.URL, DatabasePasswordFile: db.PasswordFile, UniqueKey: true}
	s := mustOpen(t, cfg)
	fresh, err := openStore(t.Context(), cfg) // has no connection yet
	if err != nil {
		t.Fatal(err)
	}
	defer fresh.Shutdown()
	row := mustAudit(t, s, newLetter("m"))
	for name, fault := range map[string]struct{ begin, end func(testing.TB) }{
		"frozen": {pgtest.Freeze, pgtest.Thaw},
		"gone":   {pgtest.Kill, pgtest.Start},
	} {
		fault.begin(t)
		end := sync.OnceFunc(func() { fault.end(t) })
		t.Cleanup(end)
		ctx, cancel := context.WithTimeout(t.Context(), 5*database.CallTimeout)
		defer cancel()
		var wg sync.WaitGroup
		for call, do := range map[string]func(context.Context) error{
			"audit":   func(ctx context.Context) error { _, err := s.Audit(ctx, newLetter("n")); return err },
			"count":   func(ctx context.Context) error { _, err := s.Count(ctx, Open); return err },
			"list":    func(ctx context.Context) error { _, err := s.List(ctx, Filter{Limit: 1}); return err },
			"claim":   func(ctx context.Context) error { _, err := s.Claim(ctx, row.ID, "p", time.Minute); return err },
			"trail":   func(ctx context.Context) error { _, err := s.Trail(ctx, TrailFilter{Limit: 1}); return err },
			"connect": func(ctx context.Context) error { _, err := fresh.Count(ctx, Open); return err },
		} {
			wg.Go(func() {
				if err := do(ctx); err == nil || ctx.Err() != nil {
					t.Errorf("%s: %s: got %v, want an error before the test's own deadline", name, call, err)
				}
			})
		}
		wg.Wait()
		end()
		if got := mustFind(t, s, row.ID); got.Status != Open {
			t.Errorf("%s: row 1 is %s, want %s", name, got.Status, Open)
		}
	}
}

// A full disk is an error, and over when there is room again.
func TestDiskFull(t *testing.T) {
	db := pgtest.New(t)
	for engine, c := range map[string]struct {
		cfg       config
		fill      func(*testing.T, *sqlStore)
		empty     func(*testing.T, *sqlStore)
		wantError string
	}{
		"SQLite": {engines["SQLite"](t), func(t *testing.T, s *sqlStore) {
			s.db.SetMaxOpenConns(1) // the pragma is the connection's
			if _, err := s.db.Exec(`PRAGMA max_page_count = 40`); err != nil {
				t.Fatal(err)
			}
		}, func(_ *testing.T, s *sqlStore) { _, _ = s.db.Exec(`PRAGMA max_page_count = 1000000`) }, "database or disk is full"},
		"PostgreSQL": {config{Database: db.URL, DatabasePasswordFile: db.PasswordFile, UniqueKey: true},
			func(t *testing.T, _ *sqlStore) { pgtest.LimitFiles(t) }, func(t *testing.T, _ *sqlStore) { pgtest.Unlimit(t) }, "could not extend file"},
	} {
		t.Run(engine, func(t *testing.T) {
			s := mustOpen(t, c.cfg)
			c.fill(t, s)
			var err error
			stored := 0
			for ; err == nil && stored < 200; stored++ {
				_, err = s.Audit(t.Context(), newLetter(fmt.Sprint("m", stored), incompressible))
			}
			if err == nil || !strings.Contains(err.Error(), c.wantError) {
				t.Fatalf("after %d rows: got %v, want %q", stored, err, c.wantError)
			}
			c.empty(t, s)
			mustAudit(t, s, newLetter(fmt.Sprint("m", stored), incompressible))
			if n, err := s.Count(t.Context(), Open); err != nil || n != stored {
				t.Errorf("got %d rows, %v; want %d", n, err, stored)
			}
		})
	}
}

func incompressible(l *DeadLetter) {
	l.Body = make([]byte, 16<<10)
	rand.Read(l.Body)
	l.BodySize = len(l.Body)
}

func TestReopen(t *testing.T) {
	cfg := engines["SQLite"](t)
	for seen := 1; seen <= 2; seen++ {
		s := mustOpen(t, cfg)
		if row := mustAudit(t, s, newLetter("m")); row.Seen != seen || row.ID != 1 {
			t.Errorf("got row %d seen %d, want 1 seen %d", row.ID, row.Seen, seen)
		}
		var mode, sync string
		if err := errors.Join(s.db.QueryRow(`PRAGMA journal_mode`).Scan(&mode), s.db.QueryRow(`PRAGMA synchronous`).Scan(&sync)); err != nil || mode != "wal" || sync != "2" {
			t.Errorf("got journal %s, synchronous %s, %v; want wal and 2 (FULL)", mode, sync, err)
		}
	}
}

// A file that was made before there were migrations.
func TestAFileOfTheFirstSchema(t *testing.T) {
	cfg := engines["SQLite"](t)
	schema, err := os.ReadFile("testdata/schema-1.sql")
	if err != nil {
		t.Fatal(err)
	}
	db, err := sql.Open("sqlite", "file:"+strings.NewReplacer("?", "%3f", "#", "%23").Replace(cfg.Database))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := db.Exec(string(schema) + `
		INSERT INTO dead_letters VALUES (7, 'm', 0, 1, 'calc.requests', 'expired', 1, '', 'expired in calc.requests', '', '', 'calc-client', '',
			1700000000000, 'null', '{}', '{}', x'7b7d', 2, 'replay-failed', 3, 'no server', '', 0, 1, 1700000000000, 1700000000000);
		INSERT INTO trail VALUES (4, 1700000000000, 'ann', 'replay', 7, 'm', 'open', 'replaying', 'generation 3');
		PRAGMA user_version = 1`); err != nil {
		t.Fatal(err)
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	s := mustOpen(t, cfg)
	if row := mustFind(t, s, 7); row.MessageID != "m" || row.Seen != 1 || string(row.Body) != "{}" {
		t.Errorf("got row 7 of %s, seen %d, %s; want the old row as it was", row.MessageID, row.Seen, row.Body)
	}
	if row, err := s.Claim(t.Context(), 7, "bob", time.Minute); err != nil || row.Generation != 4 {
		t.Errorf("claim: got generation %d, %v; want 4", row.Generation, err)
	}
	// What was published is not known of the old row, so it hides nothing.
	for _, id := range []string{"m", "n"} {
		if row := mustAudit(t, s, newLetter(id)); row.ID <= 7 || row.Seen != 1 {
			t.Errorf("a new row: got %d seen %d, want one after 7, seen 1", row.ID, row.Seen)
		}
	}
	if entries, err := s.Trail(t.Context(), TrailFilter{Limit: 10}); err != nil || len(entries) != 2 || entries[1].Actor != "ann" {
		t.Errorf("trail: got %+v, %v; want ann's entry and one more", entries, err)
	}
}

func TestOpenNamesWhatCannotBeOpened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing", "x.db")
	_, err := openStore(t.Context(), config{Database: path})
	if err == nil || !strings.Contains(err.Error(), path) {
		t.Fatalf("got %v, want an error that names %s", err, path)
	}
	if _, statErr := os.Stat(filepath.Dir(path)); statErr == nil {
		t.Error("a folder was made")
	}
}
