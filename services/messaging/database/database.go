// Package database opens the database of a service: a SQLite file for one
// process, or PostgreSQL for several. What the two need of pools, time limits
// and transactions is easy to get almost right, so it stands here once. Drivers
// and migrations are the services' own imports, and in nobody else's module graph.
package database

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// CallTimeout is the longest that one call to the database may take, whatever
// becomes of the server and of the network. Then the caller holds what it has in
// hand and tries again.
const CallTimeout = 5 * time.Second

// migrateTimeout is the same for Migrate, other processes' migrations included.
const migrateTimeout = 30 * time.Second

// DB is a database that is connected to when it is needed.
type DB struct {
	*sql.DB
	Postgres bool
	folder   string // of the file
}

// Open takes the values of WARREN_DATABASE and WARREN_DATABASE_PASSWORD_FILE.
// The drivers "sqlite" and "pgx" must be registered.
func Open(database, passwordFile string) (*DB, error) {
	if err := Check(database, passwordFile); err != nil {
		return nil, err
	}
	if isFile(database) {
		path, err := filepath.Abs(database)
		if err != nil {
			return nil, err
		}
		db, err := openFile(path)
		return &DB{DB: db, folder: filepath.Dir(path)}, err
	}
	registered, err := sql.Open("pgx", "") // for its driver; it is never connected
	if err == nil {
		err = registered.Close()
	}
	if err != nil {
		return nil, err
	}
	server, err := parse(database)
	if err != nil {
		return nil, err
	}
	db := sql.OpenDB(&connector{server, passwordFile, registered.Driver().(driver.DriverContext)})
	const most = 8 // a server takes 100 by default, from all replicas of everything
	db.SetMaxOpenConns(most)
	db.SetMaxIdleConns(most)
	db.SetConnMaxIdleTime(time.Minute)
	db.SetConnMaxLifetime(10 * time.Minute) // or a server that failed over is left only where a connection breaks
	return &DB{DB: db, Postgres: true}, nil
}

func openFile(path string) (*sql.DB, error) {
	options := url.Values{
		"_txlock": {"immediate"}, // a transaction that reads first and writes later would fail when another has written
		"_pragma": {
			fmt.Sprintf("busy_timeout(%d)", (CallTimeout - time.Second).Milliseconds()),
			"journal_mode(WAL)",
			// FULL syncs each commit to disk. The default of many WAL set-ups, NORMAL,
			// loses the last commits with the power, and we have acked by then.
			"synchronous(FULL)",
			"foreign_keys(1)",
		},
	}
	return sql.Open("sqlite", (&url.URL{Scheme: "file", Path: path, RawQuery: options.Encode()}).String())
}

// connector reads the password anew for each connection, so that a rotated one
// needs no restart.
type connector struct {
	server       *url.URL
	passwordFile string
	driver       driver.DriverContext
}

func (c *connector) Driver() driver.Driver { return c.driver.(driver.Driver) }

func (c *connector) Connect(ctx context.Context) (driver.Conn, error) {
	server, options := *c.server, c.server.Query()
	if c.passwordFile != "" {
		password, err := readPassword(c.passwordFile)
		if err != nil {
			return nil, err
		}
		server.User = url.UserPassword(server.User.Username(), password)
	}
	// The pool connects on its own account, too, without the caller's deadline.
	options.Set("connect_timeout", strconv.Itoa(int(CallTimeout/time.Second)))
	// A process that was stopped, or cut off, keeps its locks no longer than this.
	// Ours gives up earlier; these are for when it cannot say so.
	limit := strconv.FormatInt(2*CallTimeout.Milliseconds(), 10)
	options.Set("statement_timeout", limit)
	options.Set("idle_in_transaction_session_timeout", limit)
	server.RawQuery = options.Encode()
	connector, err := c.driver.OpenConnector(server.String())
	if err != nil {
		return nil, err
	}
	return connector.Connect(ctx)
}

// Tx runs do in a transaction, and again from its start whenever PostgreSQL has
// ended it in favour of another: do must not build on what an earlier run left.
// SQLite has one writer and is serializable whatever isolation says.
//
// An error of the commit itself may mean that it was made: try again with the
// same key.
func (db *DB) Tx(ctx context.Context, isolation sql.IsolationLevel, do func(*sql.Tx) error) error {
	for {
		err := db.tx(ctx, isolation, do)
		var failure interface{ SQLState() string }
		if !errors.As(err, &failure) || failure.SQLState() != "40001" && failure.SQLState() != "40P01" { // serialization failure, deadlock
			return err
		}
		select {
		case <-time.After(rand.N(10 * time.Millisecond)):
		case <-ctx.Done():
			return err
		}
	}
}

func (db *DB) tx(ctx context.Context, isolation sql.IsolationLevel, do func(*sql.Tx) error) error {
	tx, err := db.BeginTx(ctx, &sql.TxOptions{Isolation: isolation})
	if err != nil {
		return err
	}
	defer tx.Rollback() // after a commit it does nothing
	if err := do(tx); err != nil {
		return err
	}
	return tx.Commit()
}

// Provider is a *goose.Provider.
type Provider[Results any] interface {
	Up(context.Context) (Results, error)
	GetVersions(context.Context) (current, target int64, err error)
}

// Migrate brings the schema up to date with the folder "migrations" of files.
// Of processes that start at once one does it, and the others wait. Goose makes
// the provider for "sqlite3" or "postgres".
func Migrate[P Provider[Results], Results any](ctx context.Context, db *DB, files fs.FS, goose func(dialect string, files fs.FS) (P, error)) error {
	ctx, cancel := context.WithTimeout(ctx, migrateTimeout)
	defer cancel()
	unlock, err := db.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	dialect := "sqlite3"
	if db.Postgres {
		dialect = "postgres"
	}
	if files, err = fs.Sub(files, "migrations"); err != nil {
		return err
	}
	p, err := goose(dialect, files)
	if err != nil {
		return err
	}
	if _, err := p.Up(ctx); err != nil {
		return err
	}
	current, target, err := p.GetVersions(ctx)
	if err == nil && current > target {
		err = fmt.Errorf("schema version %d, this program knows %d", current, target)
	}
	return err
}

// lock keeps other processes from migrating. goose has a lock for PostgreSQL,
// but gives it back without a deadline: a server that hangs just then would keep
// us for ever. Ours ends with its connection.
func (db *DB) lock(ctx context.Context) (unlock func(), err error) {
	if !db.Postgres {
		// The folder: to open and close the file itself would end SQLite's own locks.
		folder, err := os.Open(db.folder)
		if err != nil {
			return nil, err
		}
		unlock = func() { _ = folder.Close() }
		if err := syscall.Flock(int(folder.Fd()), syscall.LOCK_EX); err != nil {
			unlock()
			return nil, &os.PathError{Op: "lock", Path: db.folder, Err: err}
		}
		return unlock, nil
	}
	conn, err := db.Conn(ctx)
	if err != nil {
		return nil, err
	}
	unlock = func() { _ = conn.Raw(func(any) error { return driver.ErrBadConn }) }
	if _, err := conn.ExecContext(ctx, `SELECT pg_advisory_lock(hashtext('warren migrations'))`); err != nil {
		unlock()
		return nil, err
	}
	return unlock, nil
}
