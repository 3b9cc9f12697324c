// Package contract holds the words on the wire: names, headers, requests,
// replies and error codes. Whatever two services must spell alike stands here
// and nowhere else.
package contract

import (
	"fmt"
	"slices"
	"strings"
)

// Names on the broker: dotted, lower-case, owner first.
const (
	RequestExchange    = "calc.rpc"      // direct; clients publish here
	RequestQueue       = "calc.requests" // quorum; servers consume
	RequestKey         = "calc.requests" // binds the two
	DeadLetterExchange = "calc.dlx"      // fanout; only the broker publishes here
	DeadLetterQueue    = "calc.dlq"      // quorum; the auditor consumes
	ReplyExchange      = "calc.reply"    // topic; servers publish, clients bind their own key

	// ClientReplyQueue and AuditorReplyQueue begin the names of reply queues;
	// the instance and the epoch follow, each after a dot.
	ClientReplyQueue  = "calc.reply.client"
	AuditorReplyQueue = "calc.reply.auditor"
)

// Broker users. Nobody is guest.
const (
	UserTopology = "topology"
	UserServer   = "calc-server"
	UserClient   = "calc-client"
	UserAuditor  = "dlq-auditor"
	UserMonitor  = "monitor"
)

// Types of messages: schema and version, in the property "type".
const (
	RequestType = "calc.request.v1"
	ReplyType   = "calc.reply.v1"
	ContentType = "application/json"
)

// Headers of ours. They never begin with "x-": since RabbitMQ 4.0 any such
// header is the broker's own.
const (
	HeaderDeadline     = "calc-deadline"      // int64, Unix time in milliseconds; required on requests
	HeaderAttempt      = "calc-attempt"       // int64, 2 and more on a request that is published again
	HeaderReplay       = "calc-replay"        // int64, generation; honoured from UserAuditor only
	HeaderOriginalUser = "calc-original-user" // string; honoured from UserAuditor only
	HeaderErrorCode    = "calc-error-code"    // string; present on a reply: the server refused the request
	HeaderTraceparent  = "traceparent"        // string, see Traceparent; optional
)

// Limits that a request must keep. They are checked before any work is done.
const (
	MaxBody          = 32 << 10 // bytes
	MaxOperands      = 1000
	MaxOperandLength = 64 // characters
	MaxID            = 64 // characters of message-id, so that correlation-ids stay below AMQP's 255
)

// Operation names what a server can do.
type Operation string

// The operations. All but the memory's are pure functions; MemoryAdd is not
// idempotent on purpose, because a pure function that runs twice teaches nothing.
const (
	Add          Operation = "add"
	Subtract     Operation = "subtract"
	Multiply     Operation = "multiply"
	Divide       Operation = "divide"
	Modulo       Operation = "modulo"
	Power        Operation = "power"
	Sqrt         Operation = "sqrt"
	Negate       Operation = "negate"
	Sum          Operation = "sum"
	Mean         Operation = "mean"
	MemoryAdd    Operation = "memory-add"
	MemoryRecall Operation = "memory-recall"
)

// Arity is how many operands an operation takes, at least and at most.
type Arity struct{ Min, Max int }

var arities = map[Operation]Arity{
	Add: {2, 2}, Subtract: {2, 2}, Multiply: {2, 2}, Divide: {2, 2}, Modulo: {2, 2}, Power: {2, 2},
	Sqrt: {1, 1}, Negate: {1, 1}, Sum: {1, MaxOperands}, Mean: {1, MaxOperands},
	MemoryAdd: {1, 1}, MemoryRecall: {0, 0},
}

// Operations lists all operations in alphabetical order.
func Operations() []Operation {
	all := make([]Operation, 0, len(arities))
	for op := range arities {
		all = append(all, op)
	}
	slices.Sort(all)
	return all
}

// Check says whether op exists and takes n operands. The error is a *Error
// with code Unimplemented or InvalidArgument.
func (op Operation) Check(n int) error {
	a, ok := arities[op]
	switch {
	case !ok:
		names := make([]string, 0, len(arities))
		for _, o := range Operations() {
			names = append(names, string(o))
		}
		return &Error{Code: Unimplemented, Message: fmt.Sprintf("operation %q: unknown; there are %s", clip(string(op)), strings.Join(names, ", "))}
	case n >= a.Min && n <= a.Max:
		return nil
	case a.Min == a.Max:
		return &Error{Code: InvalidArgument, Message: fmt.Sprintf("operands: %s takes %d, got %d", op, a.Min, n)}
	default:
		return &Error{Code: InvalidArgument, Message: fmt.Sprintf("operands: %s takes %d to %d, got %d", op, a.Min, a.Max, n)}
	}
}

// Request is the body of a request. Numbers travel as decimal strings, since
// JSON's own numbers would lose digits on the way.
type Request struct {
	Operation Operation `json:"operation"`
	Operands  []string  `json:"operands"`
}

// Reply is the body of a reply: a result or an error, never both.
type Reply struct {
	Result string `json:"result,omitempty"`
	Error  *Error `json:"error,omitempty"`
}

// Code is the closed set of errors that a server answers with.
type Code string

// The codes. What a caller may conclude stands in the comment.
const (
	InvalidArgument  Code = "INVALID_ARGUMENT"  // not executed; the same request will fail again
	DivideByZero     Code = "DIVIDE_BY_ZERO"    // evaluated; the result does not exist
	Undefined        Code = "UNDEFINED"         // evaluated; the result does not exist (0/0, sqrt of a negative number)
	Overflow         Code = "OVERFLOW"          // evaluated; the result is too large for decimal128
	Underflow        Code = "UNDERFLOW"         // evaluated; the result is too small for decimal128
	TooMuchWork      Code = "TOO_MUCH_WORK"     // refused before any work
	Unimplemented    Code = "UNIMPLEMENTED"     // no such operation, type or version
	DeadlineExceeded Code = "DEADLINE_EXCEEDED" // not executed by the server that says so
	IDConflict       Code = "ID_CONFLICT"       // the message-id was used before with another body
	Malformed        Code = "MALFORMED"         // unreadable; dead-lettered
	Internal         Code = "INTERNAL"          // the server failed; the request may have been executed
)

// Error is the server's "no". It travels as data; no stack, no language object.
type Error struct {
	Code      Code   `json:"code"`
	Message   string `json:"message"`
	Retryable bool   `json:"retryable"` // the same request, under the same message-id, may succeed later
}

func (e *Error) Error() string { return fmt.Sprintf("%s: %s", e.Code, e.Message) }

// clip bounds text of a stranger before it is shown or sent back.
func clip(s string) string {
	const most = 60
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}
