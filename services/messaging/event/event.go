// Package event writes the life of a request as JSON lines. The lines are the
// ledger's raw material: on one machine the lab reads them from the processes'
// standard output, on Kubernetes from the pods' logs. No second channel exists
// that could disagree with them.
package event

import (
	"encoding/json"
	"io"
	"sync"
	"time"
)

// Kind names a step in the life of a request.
type Kind string

// The steps. Publishing is written before the wire action, as an intent: a
// process that dies in between has said what it was about to do. All others
// are written after what they tell.
const (
	Publishing      Kind = "publishing"
	Published       Kind = "published"
	Confirmed       Kind = "confirmed"
	PublishNacked   Kind = "publish-nacked"
	RequestReturned Kind = "request-returned"
	Unknown         Kind = "unknown"
	NotWritten      Kind = "not-written"

	Delivered      Kind = "delivered"
	Deduplicated   Kind = "deduplicated" // an idempotency key answered; nothing was executed
	Computed       Kind = "computed"     // executed; Result or Code says with what result
	Replying       Kind = "replying"
	ReplyConfirmed Kind = "reply-confirmed"
	ReplyReturned  Kind = "reply-returned"
	Orphaned       Kind = "orphaned" // the reply reaches nobody any more, and that is on record
	Acked          Kind = "acked"
	Retried        Kind = "retried"       // rejected with requeue
	Released       Kind = "released"      // nacked with requeue
	DeadLettered   Kind = "dead-lettered" // rejected without requeue

	Answered       Kind = "answered" // the caller has the result
	Refused        Kind = "refused"  // the caller has the server's typed error
	TimedOut       Kind = "timed-out"
	LateReply      Kind = "late-reply"
	DuplicateReply Kind = "duplicate-reply"

	Audited   Kind = "audited" // stored, committed; the ack comes after it
	Replayed  Kind = "replayed"
	Discarded Kind = "discarded"

	CrashArmed        Kind = "crash-armed"
	Held              Kind = "held"
	Blocked           Kind = "blocked"
	Unblocked         Kind = "unblocked"
	ConsumerCancelled Kind = "consumer-cancelled"
	Draining          Kind = "draining" // told to leave; what is in hand is finished
	Drained           Kind = "drained"
	EOF               Kind = "eof" // the last line of a process that ended by itself
)

// Line is one step. Run, Instance, Seq and Time are filled in by the Recorder.
type Line struct {
	Run      string    `json:"run"`
	Instance string    `json:"instance"`
	Seq      uint64    `json:"seq"`   // 1, 2, 3 … within the life of one process
	Start    int64     `json:"start"` // Unix nanoseconds at which that life began: a restarted instance counts anew
	Time     time.Time `json:"time"`
	Event    Kind      `json:"event"`
	Request  string    `json:"request,omitempty"` // message-id
	Epoch    uint64    `json:"epoch,omitempty"`   // of the session that the step happened on
	Attempt  int       `json:"attempt,omitempty"`
	Replay   int       `json:"replay,omitempty"` // generation

	Tag         uint64 `json:"tag,omitempty"` // delivery tag
	Redelivered bool   `json:"redelivered,omitempty"`
	Operation   string `json:"operation,omitempty"`
	Result      string `json:"result,omitempty"`
	Code        string `json:"code,omitempty"`     // of a refusal
	Reason      string `json:"reason,omitempty"`   // for a person; bounded
	Point       string `json:"point,omitempty"`    // crash or hold point
	Executed    string `json:"executed,omitempty"` // on timed-out and failed calls: "no" or "maybe"
}

// MaxLine bounds a line so that one write to a pipe is atomic (PIPE_BUF).
const MaxLine = 4096

// Recorder numbers lines and writes each with a single Write. A nil Recorder
// records nothing, so that callers need no switch.
type Recorder struct {
	mu   sync.Mutex
	w    io.Writer
	base Line
	err  error
}

// NewRecorder begins the ledger of one process. Run names the run that the
// lines belong to, instance the process.
func NewRecorder(w io.Writer, run, instance string) *Recorder {
	return &Recorder{w: w, base: Line{Run: run, Instance: instance, Start: time.Now().UnixNano()}}
}

// Record writes one line. After the first failure of the writer it writes no
// more, because a ledger with a hole must not look complete; Err has the cause.
func (r *Recorder) Record(l Line) {
	if r == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err != nil {
		return
	}
	r.base.Seq++
	l.Run, l.Instance, l.Seq, l.Start, l.Time = r.base.Run, r.base.Instance, r.base.Seq, r.base.Start, time.Now()
	b, err := json.Marshal(l)
	if err == nil && len(b) >= MaxLine { // text of strangers: the step matters, their words do not
		const most = 100
		l.Reason, l.Result, l.Operation, l.Code = clip(l.Reason, most), clip(l.Result, most), clip(l.Operation, most), clip(l.Code, most)
		b, err = json.Marshal(l)
	}
	if err == nil {
		_, err = r.w.Write(append(b, '\n'))
	}
	r.err = err
}

func clip(s string, most int) string { return s[:min(len(s), most)] }

// Err is the failure that ended the ledger, or nil.
func (r *Recorder) Err() error {
	if r == nil {
		return nil
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.err
}
