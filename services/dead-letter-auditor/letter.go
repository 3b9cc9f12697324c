package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/messaging/contract"
)

// Status is where a dead letter stands.
//
//	open ──replay──▶ replaying ──▶ answered | refused | died-again
//	  │                  └───────▶ replay-failed ──replay──▶ replaying …
//	  └──discard──▶ discarded ◀──discard──┘
type Status string

// The statuses. A replay whose outcome is not known stays replaying until its
// lease ends; then the sweeper publishes it again under the same generation.
const (
	Open         Status = "open"
	Replaying    Status = "replaying"
	ReplayFailed Status = "replay-failed" // not executed, or the server says that trying again may help
	Answered     Status = "answered"
	Refused      Status = "refused"    // a server answered with an error
	DiedAgain    Status = "died-again" // the replay is a dead letter of its own now
	Discarded    Status = "discarded"
)

var statuses = []Status{Open, Replaying, ReplayFailed, Answered, Refused, DiedAgain, Discarded}

// DeadLetter is one death of one message, and what became of it. A message
// that dies again, in another attempt or generation, is another DeadLetter.
type DeadLetter struct {
	ID int64 `json:"id"` // short, for people; given by the store

	// These seven name the death. The broker may deliver it more than once (at
	// least once dead-lettering, or a crash of ours); it stays one row. The time
	// of death is not among them: the broker writes it anew when it dead-letters
	// again what it had no time to confirm before the queue's leader changed.
	MessageID string `json:"message_id"` // or a fingerprint, see Suspicious
	Replay    int    `json:"replay"`
	Attempt   int    `json:"attempt"`
	Queue     string `json:"queue"`
	Reason    Reason `json:"reason"`
	Count     int64  `json:"count"`
	// Sent is the fingerprint of what was published. Anybody may publish under
	// an id that was used before: a caller who tries again with a new deadline,
	// or a stranger. Without it their deaths would be taken for this one.
	Sent string `json:"-"`

	Why          string    `json:"why"`                     // one sentence
	Code         string    `json:"code,omitempty"`          // what a server would answer, where the message is unreadable
	Suspicious   string    `json:"suspicious,omitempty"`    // why this is nothing that our own services sent; empty: it is
	User         string    `json:"user,omitempty"`          // user-id, which the broker has checked
	OriginalUser string    `json:"original_user,omitempty"` // in whose name the auditor had replayed it
	DiedAt       time.Time `json:"died_at,omitzero"`
	BodySize     int       `json:"body_size"` // in bytes, as it was sent

	Status     Status    `json:"status"`
	Generation int       `json:"generation,omitempty"` // that it was replayed under last
	Outcome    string    `json:"outcome,omitempty"`    // of the replay, or why it was discarded
	Token      string    `json:"-"`                    // of whoever replays it now; never shown
	Lease      time.Time `json:"lease_until,omitzero"`
	Seen       int       `json:"seen"`
	FirstSeen  time.Time `json:"first_seen"`
	LastSeen   time.Time `json:"last_seen"`

	// Not in lists.
	Deaths     *Deaths         `json:"deaths,omitempty"`
	Properties json.RawMessage `json:"properties,omitempty"`
	Headers    json.RawMessage `json:"headers,omitempty"`
	Body       []byte          `json:"body,omitempty"` // base64 in JSON; at most contract.MaxBody of it
}

// Truncated says that the body is not all there.
func (l *DeadLetter) Truncated() bool { return len(l.Body) < l.BodySize }

// Asker is in whose name the message was sent.
func (l *DeadLetter) Asker() string { return cmp.Or(l.OriginalUser, l.User) }

// Trace is the trace that the message belonged to.
func (l *DeadLetter) Trace() contract.Traceparent {
	var headers struct {
		Traceparent string `json:"traceparent"`
	}
	_ = json.Unmarshal(l.Headers, &headers) // it is ours
	t, _ := contract.ParseTraceparent(headers.Traceparent)
	return t
}

// readLetter decodes a delivery from calc.dlq. It cannot fail: whatever died
// is put on record, readable or not.
func readLetter(d *amqp.Delivery) DeadLetter {
	deaths := readDeaths(d)
	l := DeadLetter{
		MessageID: d.MessageId, Attempt: int(min(max(1, integer(d.Headers[contract.HeaderAttempt])), math.MaxInt32)),
		Queue: deaths.Last.Queue, Reason: deaths.Last.Reason, Count: deaths.Last.Count,
		Why: explain(d, deaths), User: text(d.UserId), DiedAt: deaths.Last.Time,
		Deaths: &deaths, Properties: properties(d), Headers: headers(d.Headers),
		Body: d.Body[:min(len(d.Body), contract.MaxBody)], BodySize: len(d.Body),
		Sent:   fingerprint(d, func(header string) bool { return strings.HasPrefix(header, "x-") }), // the broker's are no part of it
		Status: Open,
	}
	if d.UserId == contract.UserAuditor { // the broker checks user-id: nobody else can claim a generation
		l.Replay = int(min(max(0, integer(d.Headers[contract.HeaderReplay])), math.MaxInt32))
		l.OriginalUser = text(d.Headers[contract.HeaderOriginalUser])
	}
	if _, _, err := contract.Validate(d); err != nil {
		l.Code = string(err.(*contract.Violation).Code)
	}
	switch id := d.MessageId; {
	case id == "" || len(id) > contract.MaxID || clean(id, len(id)) != id:
		// The two counters change each time calc.dlq delivers the same dead letter.
		l.MessageID, l.Suspicious = fingerprint(d, func(header string) bool { return header == "x-delivery-count" || header == "x-acquired-count" }), "no readable message-id"
	case !deaths.known():
		l.Suspicious = "no death record: somebody published it here"
	}
	return l
}

// fingerprint is a hash of body, properties and headers, without some of these.
func fingerprint(d *amqp.Delivery, without func(header string) bool) string {
	h := sha256.New()
	kept := maps.Clone(d.Headers)
	maps.DeleteFunc(kept, func(header string, _ any) bool { return without(header) })
	for _, part := range [][]byte{d.Body, properties(d), headers(kept)} {
		_ = binary.Write(h, binary.BigEndian, uint64(len(part)))
		h.Write(part)
	}
	return "sha256:" + hex.EncodeToString(h.Sum(nil))
}

// properties is the AMQP properties as JSON, empty ones left out.
func properties(d *amqp.Delivery) json.RawMessage {
	all := map[string]string{
		"message-id": d.MessageId, "correlation-id": d.CorrelationId, "reply-to": d.ReplyTo, "type": d.Type,
		"content-type": d.ContentType, "content-encoding": d.ContentEncoding, "user-id": d.UserId, "app-id": d.AppId,
	}
	if !d.Timestamp.IsZero() && plausible(d.Timestamp) {
		all["timestamp"] = d.Timestamp.UTC().Format(time.RFC3339)
	}
	for k, v := range all {
		if all[k] = strings.ReplaceAll(strings.ToValidUTF8(v, "\uFFFD"), "\x00", ""); v == "" {
			delete(all, k)
		}
	}
	b, _ := json.Marshal(all) // strings only: cannot fail
	return b
}

// maxHeaders bounds what is kept of a message's headers; the rest is cut.
const maxHeaders = 16 << 10

// headers is the headers as JSON, bounded in size and depth.
func headers(t amqp.Table) json.RawMessage {
	budget := maxHeaders
	b, _ := json.Marshal(plain(t, 8, &budget)) // plain leaves nothing that could fail
	return b
}

// plain turns an AMQP field into what JSON can say.
func plain(v any, depth int, budget *int) any {
	const cut = "(cut)"
	str := func(s string) string {
		s = strings.ReplaceAll(strings.ToValidUTF8(s[:min(len(s), max(0, *budget))], "\uFFFD"), "\x00", "")
		*budget -= len(s)
		return s
	}
	*budget -= 8
	if depth == 0 || *budget <= 0 {
		return cut
	}
	switch v := v.(type) {
	case amqp.Table:
		// The broker's own come first, so that a stranger's cannot crowd them out.
		keys := slices.SortedFunc(maps.Keys(v), func(a, b string) int {
			if x, y := strings.HasPrefix(a, "x-"), strings.HasPrefix(b, "x-"); x != y {
				return map[bool]int{true: -1, false: 1}[x]
			}
			return strings.Compare(a, b)
		})
		m := make(map[string]any, len(keys))
		for _, k := range keys {
			if *budget <= 0 {
				m[cut] = cut
				break
			}
			m[str(k)] = plain(v[k], depth-1, budget)
		}
		return m
	case []any:
		list := make([]any, 0, len(v))
		for _, e := range v {
			if *budget <= 0 {
				list = append(list, cut)
				break
			}
			list = append(list, plain(e, depth-1, budget))
		}
		return list
	case string:
		return str(v)
	case []byte:
		return str(base64.StdEncoding.EncodeToString(v))
	case time.Time:
		return v.UTC().Format(time.RFC3339)
	case float32:
		return plain(float64(v), depth, budget)
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return fmt.Sprint(v)
		}
		return v
	case nil, bool, int, int8, int16, int32, int64, uint8, uint16, uint32, uint64:
		return v
	default: // amqp.Decimal
		return str(fmt.Sprint(v))
	}
}
