package contract

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	amqp "github.com/rabbitmq/amqp091-go"
)

// A Violation says why a message is no readable request. The server answers
// it where Answerable is true and dead-letters it in any case; the auditor
// runs the same Validate on the dead message to find the cause, so the reason
// needs no copy on the wire.
type Violation struct {
	Field      string // the property, header or part of the body that is at fault
	Reason     string
	Code       Code // what the reply says: Malformed or Unimplemented
	Answerable bool // reply-to is present and genuine
}

func (v *Violation) Error() string { return v.Field + ": " + v.Reason }

// replyTo is client.<user>.<instance>, and for a caller that reconnects its
// epoch: no wildcard of a topic exchange, no queue name, nothing of amq.* can be
// spelled with it.
var replyTo = regexp.MustCompile(`^client\.([a-z0-9-]{1,32})\.([a-z0-9-]{1,64})(\.[0-9]{1,20})?$`)

// ReplyKey is the routing key under which the process instance of user
// receives its replies.
func ReplyKey(user, instance string) string { return "client." + user + "." + instance }

// EpochReplyKey is the same for one epoch of its session.
func EpochReplyKey(user, instance string, epoch uint64) string {
	return ReplyKey(user, instance) + "." + strconv.FormatUint(epoch, 10)
}

// CheckReplyKey refuses a user or instance that no server would answer.
func CheckReplyKey(user, instance string) error {
	if key := ReplyKey(user, instance); !replyTo.MatchString(key) {
		return fmt.Errorf("reply key %q: user and instance may hold a-z, 0-9 and -, at most 32 and 64 characters", clip(key))
	}
	return nil
}

// Meta is what the properties of a valid request say.
type Meta struct {
	ID       string // message-id, also the idempotency key
	User     string // who asked first; a replay is published by the auditor in that user's name
	Deadline time.Time
	Attempt  int // 1 for the first
	Replay   int // generation; 0 for a request that was never replayed
	Trace    Traceparent
}

// Traceparent is the trace that a request belongs to, in version 00 of W3C's
// Trace Context (https://www.w3.org/TR/trace-context/#traceparent-header). The
// zero value is none.
type Traceparent string

var traceparent = regexp.MustCompile(`^00-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}$`)

// ParseTraceparent reads one. The error says what is wrong with it.
func ParseTraceparent(s string) (Traceparent, error) {
	m := traceparent.FindStringSubmatch(s)
	if m == nil || strings.Trim(m[1], "0") == "" || strings.Trim(m[2], "0") == "" {
		return "", fmt.Errorf("%s %q: want 00-TRACE-PARENT-FLAGS with 32, 16 and 2 digits of lower-case hex, the first two not all zero", HeaderTraceparent, clip(s))
	}
	return Traceparent(s), nil
}

// ID is the trace-id, which a tracing system finds it by; "" if there is none.
func (t Traceparent) ID() string {
	if m := traceparent.FindStringSubmatch(string(t)); m != nil {
		return m[1]
	}
	return ""
}

// Validate reads a request. A *Violation means that it is unreadable or
// forged; values (operation, arity, numbers) are Operation.Check's and the
// calculator's business, because a wrong value is answered and acked while an
// unreadable message is dead-lettered.
//
// The cheap checks come first: nothing is decoded that is too large.
func Validate(d *amqp.Delivery) (Request, Meta, error) {
	var r Request
	meta, v := properties(d)
	if v != nil {
		return r, meta, v
	}
	bad := func(field, format string, args ...any) (Request, Meta, error) {
		return Request{}, meta, &Violation{Field: field, Reason: fmt.Sprintf(format, args...), Code: Malformed, Answerable: true}
	}
	if len(d.Body) > MaxBody {
		return bad("body", "%d bytes, at most %d", len(d.Body), MaxBody)
	}
	if d.ContentType != ContentType || d.ContentEncoding != "" {
		return bad("content-type", "%q %q, want %q", clip(d.ContentType), clip(d.ContentEncoding), ContentType)
	}
	if d.Type != RequestType {
		_, meta, err := bad("type", "%q, want %q", clip(d.Type), RequestType)
		err.(*Violation).Code = Unimplemented
		return r, meta, err
	}
	// Names are case-sensitive, duplicate and unknown names and trailing data
	// are errors: two readers must never understand one request differently.
	if err := json.Unmarshal(d.Body, &r, json.RejectUnknownMembers(true)); err != nil {
		return bad("body", "%s", clip(err.Error()))
	}
	if r.Operation == "" {
		return bad("operation", "missing")
	}
	if len(r.Operands) > MaxOperands {
		return bad("operands", "%d of them, at most %d", len(r.Operands), MaxOperands)
	}
	for i, o := range r.Operands {
		if utf8.RuneCountInString(o) > MaxOperandLength {
			return bad("operands", "operand %d: more than %d characters", i+1, MaxOperandLength)
		}
	}
	return r, meta, nil
}

func properties(d *amqp.Delivery) (Meta, *Violation) {
	no := func(field, format string, args ...any) *Violation {
		return &Violation{Field: field, Reason: fmt.Sprintf(format, args...), Code: Malformed}
	}
	meta := Meta{ID: d.MessageId, User: d.UserId, Attempt: 1}
	if d.ReplyTo == "" {
		return meta, no("reply-to", "missing")
	}
	m := replyTo.FindStringSubmatch(d.ReplyTo)
	if m == nil {
		return meta, no("reply-to", "%q is not client.<user>.<instance>[.<epoch>]", clip(d.ReplyTo))
	}
	// The broker enforces user-id: with it, a reply can only go to whoever asked.
	if m[1] != d.UserId {
		return meta, no("reply-to", "%q belongs to another user than user-id %q", clip(d.ReplyTo), clip(d.UserId))
	}
	answerable := func(v *Violation) *Violation { v.Answerable = true; return v }
	if d.MessageId == "" || len(d.MessageId) > MaxID {
		return meta, answerable(no("message-id", "%d characters, want 1 to %d", len(d.MessageId), MaxID))
	}
	if d.CorrelationId == "" {
		return meta, answerable(no("correlation-id", "missing"))
	}
	ms, ok := d.Headers[HeaderDeadline].(int64)
	if !ok || ms <= 0 {
		return meta, answerable(no(HeaderDeadline, "%v is not a time in milliseconds", clip(fmt.Sprint(d.Headers[HeaderDeadline]))))
	}
	meta.Deadline = time.UnixMilli(ms)
	if n, ok := d.Headers[HeaderAttempt].(int64); ok && n > 0 {
		meta.Attempt = int(n)
	}
	// As W3C has it, one that cannot be read is none: no reason to refuse a request.
	if t, ok := d.Headers[HeaderTraceparent].(string); ok {
		meta.Trace, _ = ParseTraceparent(t)
	}
	if d.UserId == UserAuditor { // nobody else may speak in another's name
		if n, ok := d.Headers[HeaderReplay].(int64); ok && n > 0 {
			meta.Replay = int(n)
		}
		if u, ok := d.Headers[HeaderOriginalUser].(string); ok && u != "" {
			meta.User = u
		}
	}
	return meta, nil
}

// DecodeReply reads a reply. Whatever cannot be read is an *Error with code
// Internal, so that a caller never mistakes garbage for a result.
func DecodeReply(d *amqp.Delivery) (Reply, error) {
	var r Reply
	if d.Type != ReplyType || d.ContentType != ContentType {
		return r, &Error{Code: Internal, Message: fmt.Sprintf("reply of type %q %q", clip(d.Type), clip(d.ContentType))}
	}
	if err := json.Unmarshal(d.Body, &r); err != nil {
		return r, &Error{Code: Internal, Message: "unreadable reply: " + clip(err.Error())}
	}
	code, refused := d.Headers[HeaderErrorCode].(string)
	if refused != (r.Error != nil) || refused && Code(code) != r.Error.Code {
		return r, &Error{Code: Internal, Message: "reply whose header and body disagree"}
	}
	if r.Error != nil {
		return r, r.Error
	}
	return r, nil
}

// Encode is the body of a request or reply. It cannot fail: both types hold
// strings only, and invalid UTF-8 is replaced.
func Encode(v any) []byte {
	b, err := json.Marshal(v, jsontext.AllowInvalidUTF8(true))
	if err != nil {
		panic(fmt.Sprintf("contract: %T does not encode: %v", v, err))
	}
	return b
}
