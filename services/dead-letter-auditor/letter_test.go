package main

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/messaging/contract"
)

func TestOnlyTheAuditorClaimsAGeneration(t *testing.T) {
	headers := amqp.Table{contract.HeaderReplay: int64(2), contract.HeaderOriginalUser: "somebody", contract.HeaderAttempt: int32(3)}
	for user, want := range map[string]struct {
		replay int
		asker  string
	}{contract.UserAuditor: {2, "somebody"}, contract.UserClient: {0, contract.UserClient}} {
		got := readLetter(&amqp.Delivery{MessageId: "m", UserId: user, Headers: headers})
		if got.Replay != want.replay || got.Asker() != want.asker || got.Attempt != 3 {
			t.Errorf("%s: got replay %d for %s, attempt %d; want %d for %s, attempt 3", user, got.Replay, got.Asker(), got.Attempt, want.replay, want.asker)
		}
	}
}

func TestSuspicious(t *testing.T) {
	death := amqp.Table{"x-death": []any{amqp.Table{"reason": "expired", "queue": "calc.requests", "count": int64(1)}}}
	for name, c := range map[string]struct {
		id      string
		headers amqp.Table
		want    string
	}{
		"ours":                       {"m", death, ""},
		"no message-id":              {"", death, "no readable message-id"},
		"a long message-id":          {strings.Repeat("m", contract.MaxID+1), death, "no readable message-id"},
		"a message-id with controls": {"m\x1b[31m", death, "no readable message-id"},
		"nothing died":               {"m", nil, "no death record: somebody published it here"},
	} {
		got := readLetter(&amqp.Delivery{MessageId: c.id, Headers: c.headers})
		if got.Suspicious != c.want {
			t.Errorf("%s: got %q, want %q", name, got.Suspicious, c.want)
		}
		if hashed := strings.HasPrefix(got.MessageID, "sha256:"); hashed != (c.want == "no readable message-id") {
			t.Errorf("%s: recorded as %q", name, got.MessageID)
		}
	}
}

// The same dead letter, delivered again, has other counters.
func TestFingerprintIgnoresWhatADeliveryChanges(t *testing.T) {
	d := func(counters amqp.Table, body string) *amqp.Delivery {
		h := amqp.Table{"x-death": []any{amqp.Table{"reason": "expired", "time": time.Unix(1, 0)}}}
		for k, v := range counters {
			h[k] = v
		}
		return &amqp.Delivery{Headers: h, Body: []byte(body)}
	}
	first := readLetter(d(nil, "b")).MessageID
	if again := readLetter(d(amqp.Table{"x-delivery-count": int64(1), "x-acquired-count": int64(1)}, "b")).MessageID; again != first {
		t.Errorf("second delivery: got %s, want %s", again, first)
	}
	if other := readLetter(d(nil, "c")).MessageID; other == first {
		t.Error("another body has the same fingerprint")
	}
	if other := readLetter(d(amqp.Table{"h": "v"}, "b")).MessageID; other == first {
		t.Error("another header has the same fingerprint")
	}
}

// One death comes again with other counters, or dead-lettered anew with another
// time; under the same id another publish is another death.
func TestSentTellsPublishesApart(t *testing.T) {
	death := func(change ...func(*amqp.Delivery)) string {
		d := &amqp.Delivery{MessageId: "m", CorrelationId: "m.1", UserId: contract.UserClient, Body: []byte("b"), Headers: amqp.Table{
			contract.HeaderDeadline: int64(1), "x-death": []any{amqp.Table{"reason": "expired", "time": time.Unix(1, 0)}}}}
		for _, c := range change {
			c(d)
		}
		return readLetter(d).Sent
	}
	first := death()
	for name, change := range map[string]func(*amqp.Delivery){
		"counters": func(d *amqp.Delivery) { d.Headers["x-delivery-count"], d.Redelivered = int64(1), true },
		"time":     func(d *amqp.Delivery) { d.Headers["x-death"].([]any)[0].(amqp.Table)["time"] = time.Unix(9, 0) },
	} {
		if death(change) != first {
			t.Errorf("another %s: another publish, want the same", name)
		}
	}
	for name, change := range map[string]func(*amqp.Delivery){
		"deadline": func(d *amqp.Delivery) { d.Headers[contract.HeaderDeadline] = int64(2) },
		"user":     func(d *amqp.Delivery) { d.UserId = "stranger" },
		"body":     func(d *amqp.Delivery) { d.Body = []byte("c") },
	} {
		if death(change) == first {
			t.Errorf("another %s: the same publish, want another", name)
		}
	}
}

func TestBodiesAreCutButMeasured(t *testing.T) {
	got := readLetter(&amqp.Delivery{MessageId: "m", Body: make([]byte, contract.MaxBody+1)})
	if len(got.Body) != contract.MaxBody || got.BodySize != contract.MaxBody+1 || !got.Truncated() {
		t.Errorf("got %d of %d bytes, truncated %v", len(got.Body), got.BodySize, got.Truncated())
	}
}

// All types that a header may have, NaN and NUL among them, become JSON.
func TestHeadersBecomeJSON(t *testing.T) {
	deep := any("bottom")
	for range 100 {
		deep = []any{deep}
	}
	many := amqp.Table{}
	for i := range 5000 {
		many[strings.Repeat("k", 1+i%50)+string(rune('a'+i%26))] = strings.Repeat("v", 100)
	}
	b := headers(amqp.Table{
		"bool": true, "int8": int8(1), "float": math.NaN(), "float32": float32(1.5), "bytes": []byte{0xff}, "nul": "a\x00b", "bad": "\xff",
		"decimal": amqp.Decimal{Scale: 2, Value: 314}, "time": time.Unix(0, 0), "void": nil, "deep": deep, "zz-many": many,
		"x-death": []any{amqp.Table{"reason": "expired"}},
	})
	var got map[string]any
	if err := json.Unmarshal(b, &got); err != nil {
		t.Fatalf("%v: %s", err, b)
	}
	if len(b) > 2*maxHeaders {
		t.Errorf("%d bytes, want about %d at most", len(b), maxHeaders)
	}
	for key, want := range map[string]string{
		"bool": `true`, "int8": `1`, "float": `"NaN"`, "float32": `1.5`, "bytes": `"/w=="`, "nul": `"ab"`, "bad": `"` + "\uFFFD" + `"`,
		"time": `"1970-01-01T00:00:00Z"`, "x-death": `[{"reason":"expired"}]`,
	} {
		if b := toJSON(t, got[key]); b != want {
			t.Errorf("%s: got %s, want %s", key, b, want)
		}
	}
}
