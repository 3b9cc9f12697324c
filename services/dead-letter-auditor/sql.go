package main

import (
	"context"
	"crypto/rand"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strconv"
	"strings"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"warren.example/messaging/database"
)

//go:embed migrations
var migrations embed.FS

// sqlStore is a Store in SQLite or PostgreSQL, with the same queries.
//
// Its transactions are SERIALIZABLE. That is what SQLite's one writer gives,
// and what Claim needs where several auditors share a database: the highest
// generation and "no other death of this message is being replayed" are read
// in rows other than the one that is written. Under READ COMMITTED one claim
// may read, another be made and closed, and the first then spend the same
// generation; no row lock and no unique index would notice. Collisions are rare
// here, a few people and one sweep a second, so trying again costs nothing.
type sqlStore struct {
	db *database.DB
	// uniqueKey false is the lesson: every delivery makes a row, so a kill
	// between commit and ack makes two.
	uniqueKey bool
	now       func() time.Time // replaced by tests
}

// openStore opens a SQLite file, and makes it if there is none, or fails. To
// PostgreSQL it does not connect yet: see Migrate.
func openStore(ctx context.Context, cfg config) (*sqlStore, error) {
	db, err := database.Open(cfg.Database, cfg.DatabasePasswordFile)
	if err != nil {
		return nil, err
	}
	s := &sqlStore{db: db, uniqueKey: cfg.UniqueKey, now: time.Now}
	if !db.Postgres {
		if err := s.Migrate(ctx); err != nil {
			return nil, errors.Join(fmt.Errorf("open %s: %w", cfg.Database, err), db.Close())
		}
	}
	return s, nil
}

func (s *sqlStore) Migrate(ctx context.Context) error {
	err := database.Migrate(ctx, s.db, migrations, func(dialect string, files fs.FS) (*goose.Provider, error) {
		options := []goose.ProviderOption{goose.WithTableName("auditor_schema")}
		if !s.db.Postgres {
			options = append(options, goose.WithExcludeNames([]string{"00002_postgres_id.sql"}))
		}
		return goose.NewProvider(goose.Dialect(dialect), s.db.DB, files, options...)
	})
	return wrap("migrate", err)
}

func (s *sqlStore) Shutdown() error { return s.db.Close() }

// columns in the order of scan.
const columns = `id, message_id, replay, attempt, queue, reason, count, why, code, suspicious, user_id, original_user,
	died_at, deaths, properties, headers, body, body_size, status, generation, outcome, token, lease, seen, first_seen, last_seen`

func scan(row interface{ Scan(...any) error }) (DeadLetter, error) {
	var l DeadLetter
	var deaths, properties, headers string
	var died, lease, first, last int64
	err := row.Scan(&l.ID, &l.MessageID, &l.Replay, &l.Attempt, &l.Queue, &l.Reason, &l.Count, &l.Why, &l.Code, &l.Suspicious, &l.User, &l.OriginalUser,
		&died, &deaths, &properties, &headers, &l.Body, &l.BodySize, &l.Status, &l.Generation, &l.Outcome, &l.Token, &lease, &l.Seen, &first, &last)
	if errors.Is(err, sql.ErrNoRows) {
		return l, ErrNotFound
	} else if err != nil {
		return l, err
	}
	l.Properties, l.Headers = []byte(properties), []byte(headers)
	l.DiedAt, l.Lease, l.FirstSeen, l.LastSeen = fromMillis(died), fromMillis(lease), fromMillis(first), fromMillis(last)
	return l, json.Unmarshal([]byte(deaths), &l.Deaths)
}

func (s *sqlStore) Audit(ctx context.Context, l DeadLetter) (out DeadLetter, err error) {
	salt := l.Sent
	if !s.uniqueKey {
		salt = rand.Text()
	}
	body := l.Body
	if body == nil {
		body = []byte{} // NULL otherwise
	}
	deaths, err := json.Marshal(l.Deaths)
	if err != nil {
		return out, wrap("audit", err)
	}
	err = s.tx(ctx, func(tx *sql.Tx) error {
		now := millis(s.now())
		out, err = scan(tx.QueryRowContext(ctx, `
			INSERT INTO dead_letters (message_id, replay, attempt, queue, reason, count, salt, why, code, suspicious, user_id, original_user,
				died_at, deaths, properties, headers, body, body_size, status, generation, outcome, token, lease, seen, first_seen, last_seen)
			VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, 0, '', '', 0, 1, $20, $20)
			ON CONFLICT (message_id, replay, attempt, queue, reason, count, salt)
			DO UPDATE SET seen = dead_letters.seen + 1, last_seen = excluded.last_seen
			RETURNING `+columns,
			l.MessageID, l.Replay, l.Attempt, l.Queue, l.Reason, l.Count, salt, l.Why, l.Code, l.Suspicious, l.User, l.OriginalUser,
			millis(l.DiedAt), string(deaths), string(l.Properties), string(l.Headers), body, l.BodySize, Open, now))
		if err != nil || l.Replay == 0 {
			return err
		}
		// The next death closes the row whose replay it is.
		replayed, err := scan(tx.QueryRowContext(ctx, `
			UPDATE dead_letters SET status = $1, outcome = $2, token = '', lease = 0
			WHERE message_id = $3 AND generation = $4 AND status = $5 RETURNING `+columns,
			DiedAgain, fmt.Sprintf("dead letter %d: %s", out.ID, out.Why), l.MessageID, l.Replay, Replaying))
		if errors.Is(err, ErrNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		return s.record(ctx, tx, Entry{Actor: self, Action: "close", Before: Replaying, After: DiedAgain, Detail: replayed.Outcome}, replayed)
	})
	return out, wrap("audit", err)
}

func (s *sqlStore) List(ctx context.Context, f Filter) ([]DeadLetter, error) {
	if clean(f.MessageID, len(f.MessageID)) != f.MessageID {
		return nil, nil // as in Find
	}
	var where clauses
	where.add(f.Status != "", "status = ", f.Status)
	where.add(f.Reason != "", "reason = ", f.Reason)
	where.add(f.MessageID != "", "message_id = ", f.MessageID)
	where.add(f.After > 0, "id < ", f.After)
	query := `SELECT ` + columns + ` FROM dead_letters` + where.String() + ` ORDER BY id DESC LIMIT ` + strconv.Itoa(f.Limit)
	return s.letters(ctx, query, where.args...)
}

func (s *sqlStore) Find(ctx context.Context, id string) ([]DeadLetter, error) {
	if n, err := strconv.ParseInt(id, 10, 64); err == nil {
		if found, err := s.letters(ctx, `SELECT `+columns+` FROM dead_letters WHERE id = $1`, n); len(found) > 0 || err != nil {
			return found, err
		}
	}
	if clean(id, len(id)) != id {
		return nil, ErrNotFound // no row has such an id, and PostgreSQL would refuse the text
	}
	found, err := s.letters(ctx, `SELECT `+columns+` FROM dead_letters WHERE message_id = $1 ORDER BY id DESC`, id)
	if err == nil && len(found) == 0 {
		err = ErrNotFound
	}
	return found, err
}

func (s *sqlStore) letters(ctx context.Context, query string, args ...any) (all []DeadLetter, err error) {
	ctx, cancel := context.WithTimeout(ctx, database.CallTimeout)
	defer cancel()
	rows, err := s.db.QueryContext(ctx, query, args...)
	if err != nil {
		return nil, wrap("read", err)
	}
	defer rows.Close()
	for rows.Next() {
		l, err := scan(rows)
		if err != nil {
			return nil, wrap("read", err)
		}
		all = append(all, l)
	}
	return all, wrap("read", rows.Err())
}

func (s *sqlStore) Count(ctx context.Context, status Status) (n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, database.CallTimeout)
	defer cancel()
	err = s.db.QueryRowContext(ctx, `SELECT count(*) FROM dead_letters WHERE status = $1`, status).Scan(&n)
	return n, wrap("count", err)
}

func (s *sqlStore) Claim(ctx context.Context, id int64, actor string, lease time.Duration) (out DeadLetter, err error) {
	err = s.tx(ctx, func(tx *sql.Tx) error {
		before, err := get(ctx, tx, id)
		if err != nil {
			return err
		}
		switch {
		case before.Suspicious != "":
			return &Conflict{id, before.Status, "it cannot be replayed: " + before.Suspicious}
		case before.Truncated():
			return &Conflict{id, before.Status, fmt.Sprintf("it cannot be replayed: only %d of its %d bytes were kept", len(before.Body), before.BodySize)}
		}
		// Compare and swap: of any number of people one changes the row, and only
		// that one spends the message's next generation. Two deaths of one message
		// are not replayed at the same time.
		out, err = scan(tx.QueryRowContext(ctx, `
			UPDATE dead_letters SET status = $1, token = $2, lease = $3, outcome = '',
				generation = (SELECT 1 + max(CASE WHEN o.generation > o.replay THEN o.generation ELSE o.replay END)
					FROM dead_letters o WHERE o.message_id = dead_letters.message_id)
			WHERE id = $4 AND status IN ($5, $6)
				AND NOT EXISTS (SELECT 1 FROM dead_letters o WHERE o.message_id = dead_letters.message_id AND o.status = $1)
			RETURNING `+columns,
			Replaying, rand.Text(), millis(s.now().Add(lease)), id, Open, ReplayFailed))
		if errors.Is(err, ErrNotFound) {
			if before.Status == Open || before.Status == ReplayFailed {
				return &Conflict{id, before.Status, "another death of the same message is being replayed"}
			}
			return &Conflict{id, before.Status, fmt.Sprintf("only what is %s or %s can be replayed", Open, ReplayFailed)}
		} else if err != nil {
			return err
		}
		return s.record(ctx, tx, Entry{Actor: actor, Action: "replay", Before: before.Status, After: Replaying, Detail: fmt.Sprintf("generation %d", out.Generation)}, out)
	})
	return out, wrap("replay", err)
}

func (s *sqlStore) Reclaim(ctx context.Context, lease time.Duration) (out DeadLetter, err error) {
	err = s.tx(ctx, func(tx *sql.Tx) error {
		now := s.now()
		out, err = scan(tx.QueryRowContext(ctx, `
			UPDATE dead_letters SET token = $1, lease = $2
			WHERE status = $3 AND id = (SELECT min(id) FROM dead_letters WHERE status = $3 AND lease < $4)
			RETURNING `+columns,
			rand.Text(), millis(now.Add(lease)), Replaying, millis(now)))
		if err != nil {
			return err
		}
		return s.record(ctx, tx, Entry{Actor: self, Action: "replay-again", Before: Replaying, After: Replaying,
			Detail: fmt.Sprintf("generation %d, the lease had ended without an answer", out.Generation)}, out)
	})
	return out, wrap("replay again", err)
}

func (s *sqlStore) Close(ctx context.Context, token string, to Status, outcome string) (closed bool, err error) {
	err = s.tx(ctx, func(tx *sql.Tx) error {
		closed = false
		row, err := scan(tx.QueryRowContext(ctx, `
			UPDATE dead_letters SET status = $1, outcome = $2, token = '', lease = 0
			WHERE token = $3 AND status = $4 RETURNING `+columns, to, outcome, token, Replaying))
		if errors.Is(err, ErrNotFound) {
			return nil
		} else if err != nil {
			return err
		}
		closed = true
		return s.record(ctx, tx, Entry{Actor: self, Action: "close", Before: Replaying, After: to, Detail: outcome}, row)
	})
	return closed, wrap("close the replay", err)
}

func (s *sqlStore) Discard(ctx context.Context, id int64, actor, reason string) (out DeadLetter, err error) {
	err = s.tx(ctx, func(tx *sql.Tx) error {
		before, err := get(ctx, tx, id)
		if err != nil {
			return err
		}
		out, err = scan(tx.QueryRowContext(ctx, `
			UPDATE dead_letters SET status = $1, outcome = $2 WHERE id = $3 AND status IN ($4, $5) RETURNING `+columns,
			Discarded, reason, id, Open, ReplayFailed))
		if errors.Is(err, ErrNotFound) {
			return &Conflict{id, before.Status, fmt.Sprintf("only what is %s or %s can be discarded", Open, ReplayFailed)}
		} else if err != nil {
			return err
		}
		return s.record(ctx, tx, Entry{Actor: actor, Action: "discard", Before: before.Status, After: Discarded, Detail: reason}, out)
	})
	return out, wrap("discard", err)
}

func (s *sqlStore) Trail(ctx context.Context, f TrailFilter) (all []Entry, err error) {
	ctx, cancel := context.WithTimeout(ctx, database.CallTimeout)
	defer cancel()
	var where clauses
	where.add(f.Row > 0, "dead_letter = ", f.Row)
	where.add(f.After > 0, "id < ", f.After)
	rows, err := s.db.QueryContext(ctx, `SELECT id, at, actor, action, dead_letter, message_id, before, after, detail FROM trail`+
		where.String()+` ORDER BY id DESC LIMIT `+strconv.Itoa(f.Limit), where.args...)
	if err != nil {
		return nil, wrap("read the trail", err)
	}
	defer rows.Close()
	for rows.Next() {
		var e Entry
		var at int64
		if err := rows.Scan(&e.ID, &at, &e.Actor, &e.Action, &e.Row, &e.MessageID, &e.Before, &e.After, &e.Detail); err != nil {
			return nil, wrap("read the trail", err)
		}
		e.At = fromMillis(at)
		all = append(all, e)
	}
	return all, wrap("read the trail", rows.Err())
}

// record writes to the trail, in the transaction of what it tells.
func (s *sqlStore) record(ctx context.Context, tx *sql.Tx, e Entry, row DeadLetter) error {
	_, err := tx.ExecContext(ctx, `
		INSERT INTO trail (at, actor, action, dead_letter, message_id, before, after, detail) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
		millis(s.now()), e.Actor, e.Action, row.ID, row.MessageID, e.Before, e.After, e.Detail)
	return err
}

func get(ctx context.Context, tx *sql.Tx, id int64) (DeadLetter, error) {
	return scan(tx.QueryRowContext(ctx, `SELECT `+columns+` FROM dead_letters WHERE id = $1`, id))
}

func (s *sqlStore) tx(ctx context.Context, do func(*sql.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, database.CallTimeout)
	defer cancel()
	return s.db.Tx(ctx, sql.LevelSerializable, do)
}

// clauses collects the conditions of a query.
type clauses struct {
	parts []string
	args  []any
}

func (c *clauses) add(wanted bool, condition string, arg any) {
	if wanted {
		c.args = append(c.args, arg)
		c.parts = append(c.parts, condition+"$"+strconv.Itoa(len(c.args)))
	}
}

func (c *clauses) String() string {
	if len(c.parts) == 0 {
		return ""
	}
	return " WHERE " + strings.Join(c.parts, " AND ")
}

// wrap says what failed. The answers of the interface pass as they are.
func wrap(what string, err error) error {
	var conflict *Conflict
	if err == nil || errors.Is(err, ErrNotFound) || errors.As(err, &conflict) {
		return err
	}
	return fmt.Errorf("database: %s: %w", what, err)
}

func millis(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}

func fromMillis(ms int64) time.Time {
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}
