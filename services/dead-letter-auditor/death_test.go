package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	amqp "github.com/rabbitmq/amqp091-go"
)

// A capture is a delivery from calc.dlq, as a file in testdata/deliveries. All
// but the forged ones were taken from live brokers: NAME-3.10 from 3.10.8,
// NAME-4.3 from 4.3.6.
type capture struct {
	Redelivered   bool           `json:"redelivered"`
	MessageID     string         `json:"message_id"`
	CorrelationID string         `json:"correlation_id"`
	ReplyTo       string         `json:"reply_to"`
	Type          string         `json:"type"`
	ContentType   string         `json:"content_type"`
	UserID        string         `json:"user_id"`
	Headers       map[string]any `json:"headers"`
	Body          string         `json:"body"`
}

func (c capture) delivery() *amqp.Delivery {
	headers, _ := amqpValue(c.Headers).(amqp.Table)
	return &amqp.Delivery{Redelivered: c.Redelivered, MessageId: c.MessageID, CorrelationId: c.CorrelationID, ReplyTo: c.ReplyTo,
		Type: c.Type, ContentType: c.ContentType, UserId: c.UserID, Headers: headers, Body: []byte(c.Body)}
}

// amqpValue turns JSON into what the library decodes from the wire.
func amqpValue(v any) any {
	switch v := v.(type) {
	case map[string]any:
		t := amqp.Table{}
		for k, e := range v {
			t[k] = amqpValue(e)
		}
		return t
	case []any:
		list := make([]any, len(v))
		for i, e := range v {
			list[i] = amqpValue(e)
		}
		return list
	case json.Number:
		if n, err := v.Int64(); err == nil {
			return n
		}
		f, _ := v.Float64()
		return f
	case string:
		if at, err := time.Parse(time.RFC3339, v); err == nil {
			return at
		}
		return v
	default:
		return v
	}
}

func decodeCapture(b []byte) (c capture, err error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	return c, dec.Decode(&c)
}

func readCapture(t *testing.T, name string) capture {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", "deliveries", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	c, err := decodeCapture(b)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return c
}

func TestExplain(t *testing.T) {
	cases := map[string]struct {
		reason Reason
		why    string
	}{
		"expired-3.10": {Expired, "expired in calc.requests: no server finished it within 2 s; its deadline came in the same second, when its caller gave up"},
		"expired-4.3":  {Expired, "expired in calc.requests: no server finished it within 2 s; its deadline came in the same second, when its caller gave up"},

		"rejected-3.10":               {Rejected, "rejected by the server: reply-to: missing"},
		"rejected-4.3":                {Rejected, "rejected by the server: reply-to: missing"},
		"rejected-after-failure-3.10": {Rejected, "rejected by the server, although the request is readable: its log says why"},
		"rejected-after-failure-4.3":  {Rejected, "rejected by the server after a failed delivery, although the request is readable: its log says why"},

		// 3.10 does not hand its count over, so the number is the limit's.
		"delivery-limit-3.10":            {DeliveryLimit, "calc.requests gave it up after 6 failed deliveries (delivery limit 5): every server that held it died, rejected it or gave it back"},
		"delivery-limit-4.3":             {DeliveryLimit, "calc.requests gave it up after 6 failed deliveries (delivery limit 5): every server that held it died or rejected it"},
		"delivery-limit-seen-again-3.10": {DeliveryLimit, "calc.requests gave it up after 6 failed deliveries (delivery limit 5): every server that held it died, rejected it or gave it back"},
		"delivery-limit-seen-again-4.3":  {DeliveryLimit, "calc.requests gave it up after 6 failed deliveries (delivery limit 5): every server that held it died, rejected it or gave it back"},
		"delivery-limit-elsewhere":       {DeliveryLimit, "other gave it up at its delivery limit: every server that held it died, rejected it or gave it back"},

		"maxlen-3.10": {MaxLen, "pushed out of calc.maxlen, which was full, to make room for newer messages"},
		"maxlen-4.3":  {MaxLen, "pushed out of calc.maxlen, which was full, to make room for newer messages"},

		"expired-long-after-deadline":    {Expired, "expired in calc.requests: no server finished it within 2 s; its deadline had passed 1.2 s before, so its caller had already given up"},
		"expired-before-deadline":        {Expired, "expired in calc.requests: no server finished it within 350 ms; its deadline was still 30 s away, so its caller was still waiting"},
		"expired-thrice":                 {Expired, "expired in calc.requests; it has died so 3 times"},
		"rejected-deadline-passed":       {Rejected, "rejected by the server; its deadline had passed 40 days before, so its caller had already given up"},
		"forged-counters":                {Expired, "expired in calc.requests"},
		"forged-types":                   {Rejected, "rejected by the server: reply-to: missing"},
		"forged-terminal-escapes":        {Unknown, `died in [31mred for a reason that this auditor does not know: "[2Jgone"`},
		"no-death-record":                {Unknown, "unexplained: it carries no death record, so the broker did not put it here"},
		"a-reason-of-tomorrow":           {Unknown, `died in calc.requests for a reason that this auditor does not know: "eaten"`},
		"only-last-death-of-two":         {Expired, "expired in calc.wait"},
		"newest-of-two-deaths":           {Expired, "expired in calc.requests: no server finished it within 300 ms; before that it died in calc.requests (delivery_limit)"},
		"original-expiration-not-a-time": {Expired, "expired in calc.requests"},
	}
	files, err := filepath.Glob("testdata/deliveries/*.json")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if name := strings.TrimSuffix(filepath.Base(f), ".json"); cases[name].why == "" {
			t.Errorf("%s: no sentence expected", name)
		}
	}
	for name, want := range cases {
		t.Run(name, func(t *testing.T) {
			got := readLetter(readCapture(t, name).delivery())
			if got.Reason != want.reason || got.Why != want.why {
				t.Errorf("got  %s: %s\nwant %s: %s", got.Reason, got.Why, want.reason, want.why)
			}
		})
	}
}

func TestReadDeathsKeepsAllThatTheBrokerSays(t *testing.T) {
	got := readDeaths(readCapture(t, "newest-of-two-deaths").delivery())
	if len(got.Earlier) != 1 || got.Earlier[0].Reason != DeliveryLimit {
		t.Errorf("earlier deaths: got %+v, want one for the delivery limit", got.Earlier)
	}
	want := Death{Reason: Expired, Queue: "calc.requests", Exchange: "calc.rpc", RoutingKeys: []string{"calc.requests"}, Count: 1,
		Time: time.Date(2026, 11, 23, 2, 37, 22, 0, time.UTC), TTLMillis: 300}
	if a, b := toJSON(t, got.Last), toJSON(t, want); a != b {
		t.Errorf("last death\ngot  %s\nwant %s", a, b)
	}
}

func toJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestHumane(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0 ms", 350 * time.Millisecond: "350 ms", 2 * time.Second: "2 s", 1234 * time.Millisecond: "1.2 s",
		185 * time.Second: "3m5s", 47 * time.Hour: "47h0m0s", 100 * 24 * time.Hour: "100 days",
	} {
		if got := humane(d); got != want {
			t.Errorf("humane(%d): got %q, want %q", d, got, want)
		}
	}
}

// FuzzReadLetter: whatever died is put on record, in one bounded line that
// acts on no terminal, and in JSON that a database takes.
func FuzzReadLetter(f *testing.F) {
	files, err := filepath.Glob("testdata/deliveries/*.json")
	if err != nil || len(files) == 0 {
		f.Fatalf("no seeds: %v", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeCapture(b)
		if err != nil {
			t.Skip("not a capture")
		}
		l := readLetter(c.delivery())
		switch {
		case l.Why == "" || len(l.Why) > 2000:
			t.Errorf("why: %d bytes", len(l.Why))
		case clean(l.Why, len(l.Why)) != l.Why:
			t.Errorf("why: %q could act on a terminal", l.Why)
		case !slices.Contains(reasons, l.Reason):
			t.Errorf("reason: %q", l.Reason)
		case l.MessageID == "" || !utf8.ValidString(l.MessageID) || l.Attempt < 1 || l.Replay < 0 || l.Count < 1 && l.Reason != Unknown:
			t.Errorf("key: %q attempt %d replay %d count %d", l.MessageID, l.Attempt, l.Replay, l.Count)
		case !json.Valid(l.Headers) || !json.Valid(l.Properties):
			t.Errorf("not JSON: %s %s", l.Headers, l.Properties)
		case bytes.Contains(l.Headers, []byte(`\u0000`)):
			t.Errorf("headers hold NUL, which PostgreSQL refuses: %s", l.Headers)
		case len(l.Headers) > 8*maxHeaders: // escapes take up to six bytes for one
			t.Errorf("headers: %d bytes", len(l.Headers))
		}
		if _, err := json.Marshal(l); err != nil {
			t.Errorf("row is not JSON: %v", err)
		}
		if again := readLetter(c.delivery()); again.MessageID != l.MessageID {
			t.Errorf("read twice: %s, then %s", l.MessageID, again.MessageID)
		}
	})
}
