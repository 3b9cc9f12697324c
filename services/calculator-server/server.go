package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/fault"
	"warren.example/messaging/session"
)

// server answers deliveries. Each runs from top to bottom in a goroutine of its
// own; the prefetch bounds how many there are.
type server struct {
	cfg     Config
	log     *zap.Logger
	events  *event.Recorder
	metrics *metrics
	faults  *fault.Points
	memory  Memory // nil: there is none
	replies replier
	crash   func() // fault.Die

	slots    chan struct{}   // one for each piece of work at once
	draining chan struct{}   // closed: start nothing more
	work     context.Context // done when the drain has run out of time
	giveUp   context.CancelFunc

	inHand inHand
	held   atomic.Int64          // deliveries that wait for the database
	away   atomic.Pointer[error] // why they wait
}

// replier is *rpc.Responder.
type replier interface {
	Reply(ctx context.Context, d *session.Delivery, reply contract.Reply) (session.Outcome, error)
	ReplyUnconfirmed(ctx context.Context, d *session.Delivery, reply contract.Reply)
}

func newServer(cfg Config, log *zap.Logger, events *event.Recorder, m *metrics, faults *fault.Points, memory Memory, replies replier) *server {
	s := &server{
		cfg: cfg, log: log, events: events, metrics: m, faults: faults, memory: memory, replies: replies, crash: fault.Die,
		slots:    make(chan struct{}, cfg.Concurrency),
		draining: make(chan struct{}),
		inHand:   inHand{left: make(chan struct{}, 1)},
	}
	s.work, s.giveUp = context.WithCancel(context.Background())
	return s
}

// faultPoints are those that a delivery passes here.
var faultPoints = []fault.Point{fault.BeforeWork, fault.AfterWork, fault.AfterReply, fault.AfterAck}

// delivery is one request on its way through the server.
type delivery struct {
	wire
	source  *session.Delivery // for the reply
	message *amqp.Delivery
	epoch   uint64
	ended   <-chan struct{} // the epoch is over: nothing can be settled, somebody else gets it

	request    contract.Request
	meta       contract.Meta
	answerable bool // its reply-to is genuine
}

// named is what every log line about a delivery begins with.
func (d *delivery) named(more ...zap.Field) []zap.Field {
	about := []zap.Field{zap.String("request", d.meta.ID)}
	if id := d.meta.Trace.ID(); id != "" {
		about = append(about, zap.String("trace_id", id))
	}
	return append(about, more...)
}

// Handle takes a delivery from the session, which must not wait for it.
func (s *server) Handle(d *session.Delivery) {
	s.inHand.add(1)
	go func() {
		defer s.inHand.add(-1)
		s.serve(&delivery{wire: d, source: d, message: &d.Delivery, epoch: d.Epoch(), ended: d.Ended()})
	}()
}

// serve is the life of one delivery.
func (s *server) serve(d *delivery) {
	began := time.Now()
	reply, how := s.answer(d)
	if s.cfg.AckBeforeReply && how == Ack {
		// The lesson: whoever dies between these two has lost the request.
		s.settle(d, Ack, began)
		s.reply(d, reply)
		return
	}
	// Reply first, settle second. Dying in between costs a duplicate reply, which
	// the caller drops by its id; the other order would cost the request.
	if reply != nil && !s.reply(d, reply) {
		how = Hold
	}
	s.settle(d, how, began)
}

// answer works out what a delivery comes to: a reply, unless none is possible,
// and how to settle once that is confirmed.
func (s *server) answer(d *delivery) (reply *contract.Reply, how Disposition) {
	if s.cfg.Recover {
		defer func() {
			if p := recover(); p != nil {
				reply, how = s.panicked(d, p)
			}
		}()
	}
	request, meta, err := contract.Validate(d.message)
	d.request, d.meta, d.answerable = request, meta, err == nil
	s.record(d, event.Line{Event: event.Delivered, Redelivered: d.message.Redelivered})
	if s.cfg.AutoAck { // the lesson: to the broker this request is done
		s.record(d, event.Line{Event: event.Acked, Reason: "auto-ack: by the broker, when it sent the request"})
	}
	if err != nil {
		return s.unreadable(d, err)
	}
	for tries := 0; ; tries++ {
		reply, err := s.attempt(d)
		switch {
		case err == nil:
			if code := codeOf(reply); code == contract.DeadlineExceeded {
				return reply, DeadLetter // for the auditor, who compares the deadline
			}
			return reply, Ack
		case errors.Is(err, errEnded):
			return nil, Hold
		case errors.Is(err, errDraining):
			return nil, Release
		}
		// The database is away. That is no fault of the request: keep it, or its
		// delivery limit would be burnt within seconds.
		if tries == 0 {
			s.held.Add(1)
			defer s.held.Add(-1)
		}
		s.away.Store(&err)
		s.wait(d, backoff(tries))
	}
}

// What attempt returns when nothing came of the delivery.
var (
	errEnded    = errors.New("the epoch of the delivery is over")
	errDraining = errors.New("draining")
)

// openMemory tries until the memory's database is there and has its schema, or
// ctx ends. Requests that came before could only be held.
func (s *server) openMemory(ctx context.Context) error {
	if s.memory == nil {
		return nil
	}
	for tries := 0; ; tries++ {
		err := s.memory.Migrate(ctx)
		if err == nil || ctx.Err() != nil {
			return err
		}
		s.away.Store(&err)
		if tries == 0 {
			s.log.Warn("memory not opened", zap.Error(err))
			s.held.Add(1) // unready, and it says why
			defer s.held.Add(-1)
		}
		select {
		case <-time.After(backoff(tries)):
		case <-ctx.Done():
		}
	}
}

// attempt does the work of a readable request, or refuses it. An error means
// that there is no reply: errEnded, errDraining, or the database is away.
func (s *server) attempt(d *delivery) (*contract.Reply, error) {
	select {
	case <-s.draining:
		return nil, errDraining // even if there is a slot: this has not begun
	default:
	}
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	case <-s.draining:
		return nil, errDraining
	case <-d.ended:
		return nil, errEnded
	}
	if d.over() { // while it waited for the slot
		return nil, errEnded
	}
	// The broker drops what expires in the queue; this one expired in our hands.
	if late := time.Since(d.meta.Deadline); s.cfg.DeadlineCheck && late > 0 {
		return &contract.Reply{Error: &contract.Error{
			Code:      contract.DeadlineExceeded,
			Message:   fmt.Sprintf("the deadline passed %s before work began", late.Round(time.Millisecond)),
			Retryable: true,
		}}, nil
	}
	s.faults.Hit(fault.BeforeWork, d.meta.ID, d.ended)
	if d.over() {
		return nil, errEnded
	}
	switch op := string(d.request.Operation); {
	case op == s.cfg.CrashOn && op != "":
		s.crash()
	case op == s.cfg.PanicOn && op != "":
		panic("WARREN_PANIC_ON=" + op)
	}
	if err := s.delay(d); err != nil {
		return nil, err
	}
	reply, duplicate, err := s.compute(d)
	if err != nil {
		return nil, err
	}
	line := event.Line{Event: event.Computed, Result: reply.Result, Code: string(codeOf(&reply))}
	if duplicate {
		line.Event = event.Deduplicated
		s.metrics.duplicates.Inc()
	} else {
		s.metrics.computed(d.request.Operation, codeOf(&reply))
	}
	s.record(d, line)
	s.faults.Hit(fault.AfterWork, d.meta.ID, d.ended)
	return &reply, nil
}

// compute evaluates the request. The error means that the database is away;
// everything that the request itself brings about is in the reply.
func (s *server) compute(d *delivery) (reply contract.Reply, duplicate bool, err error) {
	op, operands := d.request.Operation, d.request.Operands
	result, err := "", op.Check(len(operands))
	switch {
	case err != nil:
	case !isMemory(op):
		result, err = calculate(op, operands)
	case s.memory == nil:
		err = &contract.Error{Code: contract.Unimplemented, Message: fmt.Sprintf("operation %q: this server has no database", op)}
	default:
		key := Key{User: d.meta.User, ID: d.meta.ID, Body: sha256.Sum256(d.message.Body)}
		if !s.cfg.Idempotency { // the lesson
			key.ID = ""
		}
		return s.memory.Apply(s.work, key, func(value string) (string, error) {
			if op == contract.MemoryRecall {
				return value, nil
			}
			return calculate(contract.Add, []string{operands[0], value})
		})
	}
	var refused *contract.Error
	switch {
	case errors.As(err, &refused):
		return contract.Reply{Error: refused}, false, nil
	case err != nil:
		return contract.Reply{}, false, err
	}
	return contract.Reply{Result: result}, false, nil
}

// unreadable answers a request that breaks the contract, if it says where to,
// and keeps it for the auditor. It would be as unreadable the next time.
func (s *server) unreadable(d *delivery, err error) (*contract.Reply, Disposition) {
	if s.cfg.OnInvalid == invalidRequeue { // the lesson: for ever, without a delivery limit
		return nil, Retry
	}
	violation := &contract.Violation{Code: contract.Malformed}
	errors.As(err, &violation)
	if d.answerable = violation.Answerable; !d.answerable {
		return nil, DeadLetter
	}
	return &contract.Reply{Error: &contract.Error{Code: violation.Code, Message: violation.Error()}}, DeadLetter
}

// panicked is the end of a request that hit a bug of ours. The caller learns
// that and no more; the stack is for the log.
func (s *server) panicked(d *delivery, p any) (*contract.Reply, Disposition) {
	s.log.Error("handler panicked", d.named(zap.Any("panic", p), zap.Stack("stack"))...)
	if !d.answerable {
		return nil, DeadLetter
	}
	return &contract.Reply{Error: &contract.Error{Code: contract.Internal, Message: "the server failed on this request"}}, DeadLetter
}

// reply says whether the delivery may be settled: its reply is confirmed, or
// it is on record as an orphan.
func (s *server) reply(d *delivery, reply *contract.Reply) bool {
	if !s.cfg.ReplyConfirm { // the lesson: written somewhere, perhaps
		s.replies.ReplyUnconfirmed(s.work, d.source, *reply)
		return true
	}
	outcome, err := s.replies.Reply(s.work, d.source, *reply)
	if outcome != session.Confirmed && outcome != session.Returned && outcome != session.Nacked {
		s.log.Warn("reply not confirmed", d.named(zap.Error(err))...)
		return false
	}
	s.faults.Hit(fault.AfterReply, d.meta.ID, d.ended)
	return true
}

// settle ends the delivery and puts on record what the broker was told.
func (s *server) settle(d *delivery, how Disposition, began time.Time) {
	if err := settle(d, how); err != nil {
		s.metrics.settled(Hold, time.Since(began)) // the broker heard nothing, or will not listen
		s.log.Warn("delivery not settled", d.named(zap.Stringer("disposition", how), zap.Error(err))...)
		return
	}
	s.metrics.settled(how, time.Since(began))
	level := zapcore.InfoLevel
	if how == Ack {
		level = zapcore.DebugLevel // the usual case
	}
	if line := s.log.Check(level, "delivery settled"); line != nil {
		line.Write(d.named(zap.Stringer("disposition", how), zap.Bool("redelivered", d.message.Redelivered), zap.Duration("took", time.Since(began)))...)
	}
	kind, settled := map[Disposition]event.Kind{Ack: event.Acked, Retry: event.Retried, Release: event.Released, DeadLetter: event.DeadLettered}[how]
	if settled && !s.cfg.AutoAck { // with auto-ack nothing was said to the broker now
		s.record(d, event.Line{Event: kind})
	}
	if how == Ack {
		s.faults.Hit(fault.AfterAck, d.meta.ID, d.ended)
	}
}

// record fills in what every line about a delivery says.
func (s *server) record(d *delivery, l event.Line) {
	if s.events == nil {
		return
	}
	l.Request, l.Epoch, l.Tag = d.meta.ID, d.epoch, d.message.DeliveryTag
	l.Attempt, l.Replay = d.meta.Attempt, d.meta.Replay
	l.Operation = label(d.request.Operation)
	s.events.Record(l)
}

// delay is the lesson's WARREN_WORK_DELAY.
func (s *server) delay(d *delivery) error {
	if s.cfg.WorkDelay == 0 {
		return nil
	}
	select {
	case <-time.After(s.cfg.WorkDelay):
		return nil
	case <-d.ended:
		return errEnded
	case <-s.work.Done():
		return errDraining // begun, and nothing done yet: somebody else can
	}
}

// wait passes the time until the next try, or until there is none.
func (s *server) wait(d *delivery, pause time.Duration) {
	select {
	case <-time.After(pause):
	case <-d.ended:
	case <-s.draining:
	}
}

func (d *delivery) over() bool {
	select {
	case <-d.ended:
		return true
	default:
		return false
	}
}

// backoff doubles from 50 ms to 2 s; half of it is chance, so that what was
// held together does not come back together.
func backoff(tries int) time.Duration {
	most := 2 * time.Second
	if tries < 5 {
		most = 100 * time.Millisecond << tries
	}
	return most/2 + rand.N(most/2)
}

func codeOf(reply *contract.Reply) contract.Code {
	if reply == nil || reply.Error == nil {
		return ""
	}
	return reply.Error.Code
}

// label bounds what a stranger wrote to the names there are.
func label(op contract.Operation) string {
	if op != "" && !slices.Contains(operations, op) {
		return "unknown"
	}
	return string(op)
}

var operations = contract.Operations()

// inHand counts the deliveries that have not been settled.
type inHand struct {
	mu   sync.Mutex
	n    int
	left chan struct{} // one token after the count fell to zero
}

func (h *inHand) add(n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.n += n; h.n == 0 {
		select {
		case h.left <- struct{}{}:
		default:
		}
	}
}

func (h *inHand) count() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.n
}

// wait returns true once nothing is in hand, false if ctx ends first.
func (h *inHand) wait(ctx context.Context) bool {
	for h.count() > 0 {
		select {
		case <-h.left:
		case <-ctx.Done():
			return false
		}
	}
	return true
}
