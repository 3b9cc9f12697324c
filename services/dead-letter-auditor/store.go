package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Store keeps dead letters and the trail of what people did with them. Each
// method is one transaction: what it returns without an error survives a kill.
// None takes longer than database.CallTimeout. After an error the outcome may be
// unknown: the same call again finds what the first has done.
type Store interface {
	// Migrate makes the schema, or brings it up to date. The others work after it.
	Migrate(ctx context.Context) error

	// Audit puts a death on record, and closes the replay that died so. It
	// returns the row; Seen is 1 the first time.
	Audit(ctx context.Context, l DeadLetter) (DeadLetter, error)

	// List returns the newest first.
	List(ctx context.Context, f Filter) ([]DeadLetter, error)
	// Find returns the row with that id, or all deaths of the message with that
	// message-id, newest first. None is ErrNotFound.
	Find(ctx context.Context, id string) ([]DeadLetter, error)
	// Trail returns the newest first.
	Trail(ctx context.Context, f TrailFilter) ([]Entry, error)
	// Count counts the rows of one status.
	Count(ctx context.Context, s Status) (int, error)

	// Claim gives the right to replay a row to one caller for as long as the
	// lease, and spends the message's next generation. All others get a
	// *Conflict and spend none.
	Claim(ctx context.Context, id int64, actor string, lease time.Duration) (DeadLetter, error)
	// Reclaim takes over one replay whose lease has ended, under the same
	// generation. None is ErrNotFound.
	Reclaim(ctx context.Context, lease time.Duration) (DeadLetter, error)
	// Close ends the replay that token stands for. It does nothing, and says so
	// by false, if the replay has ended or somebody else has taken it over.
	Close(ctx context.Context, token string, to Status, outcome string) (bool, error)
	// Discard gives a row up.
	Discard(ctx context.Context, id int64, actor, reason string) (DeadLetter, error)

	Shutdown() error
}

// Filter selects rows; zero fields select all. After is the id of the last row
// of the page before.
type Filter struct {
	Status    Status
	Reason    Reason
	MessageID string
	After     int64
	Limit     int
}

// TrailFilter selects entries of the trail.
type TrailFilter struct {
	Row   int64
	After int64
	Limit int
}

// Entry says who did what to a dead letter.
type Entry struct {
	ID        int64     `json:"id"`
	At        time.Time `json:"at"`
	Actor     string    `json:"actor"`  // a person, or this service where nobody asked
	Action    string    `json:"action"` // replay, replay-again, close, discard
	Row       int64     `json:"row"`
	MessageID string    `json:"message_id"`
	Before    Status    `json:"before"`
	After     Status    `json:"after"`
	Detail    string    `json:"detail,omitempty"`
}

// self is the actor of what the service does on its own.
const self = "dead-letter-auditor"

// ErrNotFound says that no row matches.
var ErrNotFound = errors.New("no such dead letter")

// Conflict says that a row's status does not allow what was asked.
type Conflict struct {
	Row    int64
	Status Status
	Reason string
}

func (c *Conflict) Error() string {
	return fmt.Sprintf("dead letter %d is %s: %s", c.Row, c.Status, c.Reason)
}
