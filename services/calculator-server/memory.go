package main

import (
	"context"
	"crypto/sha256"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"path/filepath"
	"strings"
	"time"

	_ "modernc.org/sqlite" // the driver "sqlite"

	"warren.example/messaging/contract"
)

// Memory is the calculator's memory, one number for each user. It is the one
// thing here that is not idempotent: an addition that runs twice is wrong.
type Memory interface {
	// Apply changes the user's number and returns the reply, once for each key. A
	// second Apply under the same key changes nothing and returns the reply of
	// the first, and true; with another body it is refused with ID_CONFLICT.
	//
	// What change refuses with a *contract.Error is a reply like any other, and
	// kept. Every other error means that the database is away and nothing is
	// known to have happened: try again with the same key.
	Apply(ctx context.Context, key Key, change func(value string) (string, error)) (reply contract.Reply, duplicate bool, err error)
	Close() error
}

// Key is an idempotency key: who asked, under which id, for what. Without an ID
// Apply changes the number every time.
type Key struct {
	User, ID string
	Body     [sha256.Size]byte
}

func isMemory(op contract.Operation) bool {
	return op == contract.MemoryAdd || op == contract.MemoryRecall
}

// sqlite keeps the memory in one file. Several servers of one machine may share
// it. Keys are never deleted, because a dead letter may be replayed at any time
// until somebody discards it; a key takes about 200 bytes.
type sqlite struct{ db *sql.DB }

const schema = `
CREATE TABLE IF NOT EXISTS memory (
	user  TEXT PRIMARY KEY,
	value TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS replies (
	user    TEXT NOT NULL,
	id      TEXT NOT NULL,             -- message-id
	body    BLOB NOT NULL,             -- SHA-256 of the request's body
	reply   TEXT NOT NULL DEFAULT '',
	created TEXT NOT NULL,
	PRIMARY KEY (user, id)
) STRICT, WITHOUT ROWID;`

// openSQLite opens or makes the database. A folder that does not exist or
// cannot be written is an error here, at start; later trouble is Apply's.
func openSQLite(ctx context.Context, path string) (Memory, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, err
	}
	pragmas := url.Values{
		"_pragma": {
			"busy_timeout(1000)", // then the delivery is held and tried again
			"journal_mode(WAL)",
			"synchronous(FULL)", // a confirmed reply survives a power cut, not only a killed process
		},
		"_txlock": {"immediate"}, // a deferred transaction that reads first may be refused the write lock at once
	}
	db, err := sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: pragmas.Encode()}).String())
	if err != nil {
		return nil, err
	}
	db.SetMaxOpenConns(1) // SQLite has one writer; others would only find it busy
	if _, err := db.ExecContext(ctx, schema); err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return &sqlite{db}, nil
}

func (m *sqlite) Close() error { return m.db.Close() }

// Apply is one transaction: the key, the number and the reply come to be
// together or not at all, so that no kill can part them.
func (m *sqlite) Apply(ctx context.Context, key Key, change func(string) (string, error)) (reply contract.Reply, duplicate bool, err error) {
	tx, err := m.db.BeginTx(ctx, nil)
	if err != nil {
		return contract.Reply{}, false, fmt.Errorf("begin: %w", err)
	}
	defer tx.Rollback() // after a commit it does nothing
	if key.ID != "" {
		// The key goes in first. Whoever comes second finds it, whatever the database.
		inserted, err := tx.ExecContext(ctx, `INSERT INTO replies (user, id, body, created) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING`,
			key.User, key.ID, key.Body[:], time.Now().UTC().Format(time.RFC3339Nano))
		if err != nil {
			return contract.Reply{}, false, fmt.Errorf("insert key: %w", err)
		}
		if n, err := inserted.RowsAffected(); err != nil || n == 0 {
			if err != nil {
				return contract.Reply{}, false, fmt.Errorf("insert key: %w", err)
			}
			reply, err := stored(ctx, tx, key)
			return reply, err == nil, err
		}
	}
	value := "0"
	if err := tx.QueryRowContext(ctx, `SELECT value FROM memory WHERE user = ?`, key.User).Scan(&value); err != nil && !errors.Is(err, sql.ErrNoRows) {
		return contract.Reply{}, false, fmt.Errorf("read memory: %w", err)
	}
	next, err := change(value)
	var refused *contract.Error
	switch {
	case errors.As(err, &refused):
		reply = contract.Reply{Error: refused}
	case err != nil:
		return contract.Reply{}, false, err
	default:
		reply = contract.Reply{Result: next}
	}
	if refused == nil && next != value {
		if _, err := tx.ExecContext(ctx, `INSERT INTO memory (user, value) VALUES (?, ?) ON CONFLICT (user) DO UPDATE SET value = excluded.value`, key.User, next); err != nil {
			return contract.Reply{}, false, fmt.Errorf("update memory: %w", err)
		}
	}
	if key.ID != "" {
		if _, err := tx.ExecContext(ctx, `UPDATE replies SET reply = ? WHERE user = ? AND id = ?`, string(contract.Encode(reply)), key.User, key.ID); err != nil {
			return contract.Reply{}, false, fmt.Errorf("store reply: %w", err)
		}
	}
	if err := tx.Commit(); err != nil {
		return contract.Reply{}, false, fmt.Errorf("commit: %w", err)
	}
	return reply, false, nil
}

// stored is the reply that was given under key before.
func stored(ctx context.Context, tx *sql.Tx, key Key) (reply contract.Reply, err error) {
	var body []byte
	var text string
	if err := tx.QueryRowContext(ctx, `SELECT body, reply FROM replies WHERE user = ? AND id = ?`, key.User, key.ID).Scan(&body, &text); err != nil {
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
