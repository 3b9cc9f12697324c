package main

import (
	"context"
	"errors"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"warren.example/messaging/event"
	"warren.example/messaging/fault"
	"warren.example/messaging/session"
)

// auditor puts each dead letter on record before it lets the broker forget it.
type auditor struct {
	store   Store
	points  *fault.Points
	events  *event.Recorder
	metrics *metrics
	log     *zap.Logger

	deliveries chan *session.Delivery
	// flow stops and starts the deliveries: the session.Consumer.
	flow interface {
		Pause(context.Context) error
		Resume()
	}
	trouble atomic.Pointer[error] // with the store; nil: none
}

func newAuditor(store Store, points *fault.Points, events *event.Recorder, m *metrics, log *zap.Logger, prefetch int) *auditor {
	a := &auditor{store: store, points: points, events: events, metrics: m, log: log,
		deliveries: make(chan *session.Delivery, 2*prefetch)}
	closed := errors.New("database: not open yet")
	a.trouble.Store(&closed)
	return a
}

// take is the consumer's handler.
func (a *auditor) take(d *session.Delivery) {
	select {
	case a.deliveries <- d:
	case <-d.Ended(): // of an epoch that is over: the broker delivers it again
	}
}

// run audits until ctx ends, from when the database has its schema. One at a
// time is enough: SQLite has one writer, too, and with PostgreSQL there may be
// more auditors.
func (a *auditor) run(ctx context.Context) {
	migrate := func() error { return a.store.Migrate(ctx) }
	if err := migrate(); err != nil && a.hold(ctx, "", err, migrate) != nil {
		return
	}
	a.trouble.Store(nil)
	for {
		select {
		case d := <-a.deliveries:
			a.audit(ctx, d)
		case <-ctx.Done():
			return // what is left in hand goes back to the broker when the session closes
		}
	}
}

// audit is the life of one dead letter here, top to bottom.
func (a *auditor) audit(ctx context.Context, d *session.Delivery) {
	select {
	case <-d.Ended():
		return // the broker delivers it again
	default:
	}
	letter := readLetter(&d.Delivery)
	row, err := a.put(ctx, letter)
	if err != nil {
		// Also after the delivery's epoch has ended: it is how we learn that the
		// database is back, and the next delivery of it is a second sighting.
		again := func() error { row, err = a.put(ctx, letter); return err }
		if a.hold(ctx, letter.MessageID, err, again) != nil {
			return // we are ending; nothing is settled, so nothing is lost
		}
	}
	a.metrics.audited(row)
	a.events.Record(event.Line{Event: event.Audited, Request: row.MessageID, Replay: row.Replay, Attempt: row.Attempt,
		Epoch: d.Epoch(), Tag: d.DeliveryTag, Redelivered: d.Redelivered, Code: string(row.Reason), Reason: row.Why})

	a.points.Hit(fault.AfterCommit, row.MessageID, d.Ended())

	// Commit first, ack second. Dying in between costs a second sighting of the
	// same death, which the unique key folds into the first; the other order
	// would cost the only record that the request ever existed.
	if err := d.Ack(); err != nil && !errors.Is(err, session.ErrStale) {
		a.log.Warn("dead letter not acked", zap.String("request", row.MessageID), zap.Error(err))
		return
	}
	a.log.Debug("dead letter audited", zap.String("request", row.MessageID), zap.Int64("row", row.ID),
		zap.String("reason", string(row.Reason)), zap.Int("seen", row.Seen))
}

// put writes to the database; a write that has begun is not cut short by the
// end of the service.
func (a *auditor) put(ctx context.Context, letter DeadLetter) (DeadLetter, error) {
	return a.store.Audit(context.WithoutCancel(ctx), letter)
}

// hold is for a database in trouble: settle nothing, take no more, try again
// until it works. A reject would bring the same dead letter back at once, in a
// loop, and an ack would lose it. Meanwhile the broker keeps the rest.
func (a *auditor) hold(ctx context.Context, request string, cause error, again func() error) error {
	a.trouble.Store(&cause)
	a.log.Error("dead letters held", zap.String("request", request), zap.Error(cause))
	// The pause begins at once; waiting for it only spares the log. It is not
	// waited for long, because whoever fills our channel may be waiting for us.
	soon, cancel := context.WithTimeout(ctx, time.Second)
	_ = a.flow.Pause(soon)
	cancel()
	defer a.flow.Resume()
	for backoff := 100 * time.Millisecond; ; backoff = min(2*backoff, 5*time.Second) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(backoff/2 + rand.N(backoff/2)):
		}
		err := again()
		if err == nil {
			a.trouble.Store(nil)
			a.log.Info("dead letters flow again", zap.String("request", request))
			return nil
		}
		a.trouble.Store(&err)
	}
}

// Ready is nil while the database works.
func (a *auditor) Ready() error {
	if err := a.trouble.Load(); err != nil {
		return *err
	}
	return nil
}
