package main

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"
	"unicode/utf8"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx"
	"github.com/pressly/goose/v3"
	_ "modernc.org/sqlite" // the driver "sqlite"

	"warren.example/messaging/contract"
	"warren.example/messaging/database"
)

// Memory is the calculator's memory, one number for each user. It is the one
// thing here that is not idempotent: an addition that runs twice is wrong.
type Memory interface {
	// Migrate makes what the memory is kept in, or brings it up to date. Apply
	// works after it.
	Migrate(ctx context.Context) error
	// Apply changes the user's number and returns the reply, once for each key. A
	// second Apply under the same key changes nothing and returns the reply of
	// the first, and true; with another body it is refused with ID_CONFLICT.
	//
	// What change refuses with a *contract.Error is a reply like any other, and
	// kept. Every other error means that the database is away, and comes within
	// database.CallTimeout. Whether the change was made is not known: try again
	// with the same key.
	Apply(ctx context.Context, key Key, change func(value string) (string, error)) (reply contract.Reply, duplicate bool, err error)
	Close() error
}

// Key is an idempotency key: who asked, under which id, for what. Without an ID
// Apply changes the number every time.
type Key struct {
	User, ID string
	Body     [sha256.Size]byte
}

// id is the ID as any database takes it. The broker lets a client choose any
// bytes, and PostgreSQL refuses some of them as text, for ever. What stands for
// those is longer than any message-id, so it is nobody else's.
func (k Key) id() string {
	if utf8.ValidString(k.ID) && !strings.Contains(k.ID, "\x00") {
		return k.ID
	}
	return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(k.ID)))
}

func isMemory(op contract.Operation) bool {
	return op == contract.MemoryAdd || op == contract.MemoryRecall
}

//go:embed migrations
var migrations embed.FS

// sqlMemory keeps the memory in a SQLite file, which several servers of one
// machine may share, or in PostgreSQL, with the same queries. Keys are never
// deleted, because a dead letter may be replayed at any time until somebody
// discards it; a key takes about 200 bytes.
type sqlMemory struct{ db *database.DB }

// openMemory opens or makes a SQLite file; a folder that does not exist or
// cannot be written is an error here, at start. To PostgreSQL it does not
// connect yet: see Migrate.
func openMemory(ctx context.Context, cfg Config) (Memory, error) {
	db, err := database.Open(cfg.Database, cfg.DatabasePasswordFile)
	if err != nil {
		return nil, err
	}
	m := &sqlMemory{db}
	if !db.Postgres {
		db.SetMaxOpenConns(1) // SQLite has one writer; others would only find it busy
		if err := m.Migrate(ctx); err != nil {
			return nil, errors.Join(err, db.Close())
		}
	}
	return m, nil
}

func (m *sqlMemory) Migrate(ctx context.Context) error {
	return database.Migrate(ctx, m.db, migrations, func(dialect string, files fs.FS) (*goose.Provider, error) {
		return goose.NewProvider(goose.Dialect(dialect), m.db.DB, files, goose.WithTableName("calculator_schema"))
	})
}

func (m *sqlMemory) Close() error { return m.db.Close() }

// Apply is one transaction: the key, the number and the reply come to be
// together or not at all, so that no kill can part them.
//
// READ COMMITTED is enough, and nothing is ever undone because many add to one
// number at once: whoever comes second under a key waits at the insert for the
// first, and the number's row is locked before it is read.
func (m *sqlMemory) Apply(ctx context.Context, key Key, change func(string) (string, error)) (reply contract.Reply, duplicate bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, database.CallTimeout)
	defer cancel()
	err = m.db.Tx(ctx, sql.LevelReadCommitted, func(tx *sql.Tx) (err error) {
		reply, duplicate, err = apply(ctx, tx, key, change)
		return err
	})
	if err != nil {
		return contract.Reply{}, false, err
	}
	return reply, duplicate, nil
}

func apply(ctx context.Context, tx *sql.Tx, key Key, change func(string) (string, error)) (reply contract.Reply, duplicate bool, err error) {
	if key.ID != "" {
		// The key goes in first. Whoever comes second finds it, whatever the database.
		inserted, err := tx.ExecContext(ctx, `INSERT INTO replies ("user", id, body, created) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING`,
			key.User, key.id(), key.Body[:], time.Now().UTC().Format(time.RFC3339Nano))
		if err != nil {
			return reply, false, fmt.Errorf("insert key: %w", err)
		}
		if n, err := inserted.RowsAffected(); err != nil {
			return reply, false, fmt.Errorf("insert key: %w", err)
		} else if n == 0 {
			reply, err := stored(ctx, tx, key)
			return reply, true, err
		}
	}
	// A write that changes nothing is how both databases lock a row, there or not,
	// and then read what others have committed to it.
	var value string
	if err := tx.QueryRowContext(ctx, `INSERT INTO memory ("user", value) VALUES ($1, '0') ON CONFLICT ("user") DO UPDATE SET value = memory.value RETURNING value`,
		key.User).Scan(&value); err != nil {
		return reply, false, fmt.Errorf("read memory: %w", err)
	}
	next, err := change(value)
	var refused *contract.Error
	switch {
	case errors.As(err, &refused):
		reply = contract.Reply{Error: refused}
	case err != nil:
		return reply, false, err
	default:
		reply = contract.Reply{Result: next}
	}
	if refused == nil && next != value {
		if _, err := tx.ExecContext(ctx, `UPDATE memory SET value = $1 WHERE "user" = $2`, next, key.User); err != nil {
			return reply, false, fmt.Errorf("update memory: %w", err)
		}
	}
	if key.ID != "" {
		if _, err := tx.ExecContext(ctx, `UPDATE replies SET reply = $1 WHERE "user" = $2 AND id = $3`, string(contract.Encode(reply)), key.User, key.id()); err != nil {
			return reply, false, fmt.Errorf("store reply: %w", err)
		}
	}
	return reply, false, nil
}

// stored is the reply that was given under key before.
func stored(ctx context.Context, tx *sql.Tx, key Key) (reply contract.Reply, err error) {
	var body []byte
	var text string
	if err := tx.QueryRowContext(ctx, `SELECT body, reply FROM replies WHERE "user" = $1 AND id = $2`, key.User, key.id()).Scan(&body, &text); err != nil {
		return contract.Reply{}, fmt.Errorf("read reply: %w", err)
	}
	if string(body) != string(key.Body[:]) {
		return contract.Reply{Error: &contract.Error{
			Code:    contract.IDConflict,
			Message: "message-id " + strings.ToValidUTF8(key.ID, "?") + " was used before with another body",
		}}, nil
	}
	if err := json.Unmarshal([]byte(text), &reply); err != nil {
		return contract.Reply{}, fmt.Errorf("read reply: %w", err)
	}
	return reply, nil
}
