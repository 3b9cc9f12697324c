package main

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// newStore is a real database in a folder of the test's own.
func newStore(t *testing.T) *sqlite {
	t.Helper()
	s, err := openSQLite(t.Context(), filepath.Join(t.TempDir(), "a folder", "..", "dead?letters#1.db"), true)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Shutdown(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// newLetter is a death of the message id.
func newLetter(id string, change ...func(*DeadLetter)) DeadLetter {
	l := DeadLetter{MessageID: id, Attempt: 1, Queue: "calc.requests", Reason: Expired, Count: 1, Why: "expired in calc.requests",
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

func TestOneDeathIsOneRow(t *testing.T) {
	s := newStore(t)
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
	} {
		if row := mustAudit(t, s, newLetter("m", change)); row.Seen != 1 {
			t.Errorf("another %s: counted as a second sighting of row %d", name, row.ID)
		}
	}
}

// The lesson: without the unique key the same death makes a second row.
func TestWithoutUniqueKeyTwoRows(t *testing.T) {
	s := newStore(t)
	s.uniqueKey = false
	first, again := mustAudit(t, s, newLetter("m")), mustAudit(t, s, newLetter("m"))
	if first.ID == again.ID || again.Seen != 1 {
		t.Errorf("got rows %d and %d, want two", first.ID, again.ID)
	}
}

func TestARowComesBackAsItWasStored(t *testing.T) {
	s := newStore(t)
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
func TestConcurrentClaims(t *testing.T) {
	s := newStore(t)
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

func TestGenerationsCountOn(t *testing.T) {
	s := newStore(t)
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

func TestTheNextDeathClosesTheReplay(t *testing.T) {
	s := newStore(t)
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

func TestReclaimTakesOnlyExpiredLeases(t *testing.T) {
	s := newStore(t)
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

func TestWhatCannotBeReplayed(t *testing.T) {
	s := newStore(t)
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

func TestDiscardAndTrail(t *testing.T) {
	s := newStore(t)
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

func TestListPagesAndFilters(t *testing.T) {
	s := newStore(t)
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
func TestFindByEitherID(t *testing.T) {
	s := newStore(t)
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

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "x.db")
	for range 2 {
		s, err := openSQLite(t.Context(), path, true)
		if err != nil {
			t.Fatal(err)
		}
		mustAudit(t, s, newLetter("m"))
		var mode, sync string
		if err := errors.Join(s.db.QueryRow(`PRAGMA journal_mode`).Scan(&mode), s.db.QueryRow(`PRAGMA synchronous`).Scan(&sync)); err != nil || mode != "wal" || sync != "2" {
			t.Errorf("got journal %s, synchronous %s, %v; want wal and 2 (FULL)", mode, sync, err)
		}
		if err := s.Shutdown(); err != nil {
			t.Fatal(err)
		}
	}
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var rows, seen int
	if err := db.QueryRow(`SELECT count(*), max(seen) FROM dead_letters`).Scan(&rows, &seen); err != nil || rows != 1 || seen != 2 {
		t.Errorf("got %d rows seen %d, %v; want 1 seen 2", rows, seen, err)
	}
	if _, err := db.Exec(`PRAGMA user_version = 9`); err != nil {
		t.Fatal(err)
	}
	if _, err := openSQLite(t.Context(), path, true); err == nil {
		t.Error("a schema of a newer program was opened")
	}
}

func TestOpenNamesWhatCannotBeOpened(t *testing.T) {
	path := filepath.Join(t.TempDir(), "missing", "x.db")
	_, err := openSQLite(t.Context(), path, true)
	if err == nil {
		t.Fatal("opened")
	}
	t.Log(err)
	if _, statErr := os.Stat(filepath.Dir(path)); statErr == nil {
		t.Error("a folder was made")
	}
}
