package contract

import (
	"errors"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

func valid() *amqp.Delivery {
	return &amqp.Delivery{
		MessageId: "0198a", CorrelationId: "0198a.1", ReplyTo: "client.calc-client.c1", UserId: "calc-client",
		Type: RequestType, ContentType: ContentType,
		Headers: amqp.Table{HeaderDeadline: time.Now().Add(time.Second).UnixMilli()},
		Body:    []byte(`{"operation":"add","operands":["0.1","0.2"]}`),
	}
}

func TestTraceparent(t *testing.T) {
	const good = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	if got, err := ParseTraceparent(good); string(got) != good || err != nil || got.ID() != "0af7651916cd43dd8448eb211c80319c" {
		t.Errorf("got %q with ID %q, %v", got, got.ID(), err)
	}
	for what, bad := range map[string]string{
		"empty": "", "upper case": strings.ToUpper(good), "too short": good[:54], "too long": good + "0", "another version": "01" + good[2:],
		"no trace": "00-" + strings.Repeat("0", 32) + good[35:], "no parent": good[:36] + strings.Repeat("0", 16) + "-01",
	} {
		if got, err := ParseTraceparent(bad); err == nil || got.ID() != "" {
			t.Errorf("%s: got %q, %v, want an error", what, got, err)
		}
	}
}

func TestValidate(t *testing.T) {
	no := func(field string, code Code, answerable bool) *Violation {
		return &Violation{Field: field, Code: code, Answerable: answerable}
	}
	for name, tc := range map[string]struct {
		change func(*amqp.Delivery)
		want   *Violation
	}{
		"a valid request":               {func(*amqp.Delivery) {}, nil},
		"no operands is not our matter": {func(d *amqp.Delivery) { d.Body = []byte(`{"operation":"memory-recall","operands":[]}`) }, nil},
		"no reply-to":                   {func(d *amqp.Delivery) { d.ReplyTo = "" }, no("reply-to", Malformed, false)},
		"reply-to names a queue":        {func(d *amqp.Delivery) { d.ReplyTo = DeadLetterQueue }, no("reply-to", Malformed, false)},
		"reply-to is the broker's own":  {func(d *amqp.Delivery) { d.ReplyTo = "amq.rabbitmq.reply-to.x" }, no("reply-to", Malformed, false)},
		"reply-to holds a wildcard":     {func(d *amqp.Delivery) { d.ReplyTo = "client.calc-client.#" }, no("reply-to", Malformed, false)},
		"reply-to of an epoch":          {func(d *amqp.Delivery) { d.ReplyTo = EpochReplyKey("calc-client", "c1", 2) }, nil},
		"reply-to of no epoch":          {func(d *amqp.Delivery) { d.ReplyTo = "client.calc-client.c1.x" }, no("reply-to", Malformed, false)},
		"reply-to of another user":      {func(d *amqp.Delivery) { d.ReplyTo = "client.dlq-auditor.c1" }, no("reply-to", Malformed, false)},
		"no user-id":                    {func(d *amqp.Delivery) { d.UserId = "" }, no("reply-to", Malformed, false)},
		"no message-id":                 {func(d *amqp.Delivery) { d.MessageId = "" }, no("message-id", Malformed, true)},
		"message-id too long":           {func(d *amqp.Delivery) { d.MessageId = strings.Repeat("x", MaxID+1) }, no("message-id", Malformed, true)},
		"no correlation-id":             {func(d *amqp.Delivery) { d.CorrelationId = "" }, no("correlation-id", Malformed, true)},
		"no deadline":                   {func(d *amqp.Delivery) { d.Headers = nil }, no(HeaderDeadline, Malformed, true)},
		"deadline of another type":      {func(d *amqp.Delivery) { d.Headers[HeaderDeadline] = "soon" }, no(HeaderDeadline, Malformed, true)},
		"body too large":                {func(d *amqp.Delivery) { d.Body = make([]byte, MaxBody+1) }, no("body", Malformed, true)},
		"other content-type":            {func(d *amqp.Delivery) { d.ContentType = "text/plain" }, no("content-type", Malformed, true)},
		"compressed":                    {func(d *amqp.Delivery) { d.ContentEncoding = "gzip" }, no("content-type", Malformed, true)},
		"other version":                 {func(d *amqp.Delivery) { d.Type = "calc.request.v2" }, no("type", Unimplemented, true)},
		"not JSON":                      {func(d *amqp.Delivery) { d.Body = []byte("add 1 2") }, no("body", Malformed, true)},
		"numbers instead of strings":    {func(d *amqp.Delivery) { d.Body = []byte(`{"operation":"add","operands":[1,2]}`) }, no("body", Malformed, true)},
		"an unknown name":               {func(d *amqp.Delivery) { d.Body = []byte(`{"operation":"add","operands":[],"x":1}`) }, no("body", Malformed, true)},
		"a name in other letters":       {func(d *amqp.Delivery) { d.Body = []byte(`{"Operation":"add","operands":[]}`) }, no("body", Malformed, true)},
		"a name twice":                  {func(d *amqp.Delivery) { d.Body = []byte(`{"operation":"add","operation":"sqrt","operands":[]}`) }, no("body", Malformed, true)},
		"data after the end":            {func(d *amqp.Delivery) { d.Body = append(d.Body, '1') }, no("body", Malformed, true)},
		"text that is not UTF-8":        {func(d *amqp.Delivery) { d.Body = []byte("{\"operation\":\"\xff\",\"operands\":[]}") }, no("body", Malformed, true)},
		"no operation":                  {func(d *amqp.Delivery) { d.Body = []byte(`{"operands":["1"]}`) }, no("operation", Malformed, true)},
		"a list too long": {func(d *amqp.Delivery) {
			d.Body = []byte(`{"operation":"sum","operands":["1"` + strings.Repeat(`,"1"`, MaxOperands) + `]}`)
		}, no("operands", Malformed, true)},
		"a number too long": {func(d *amqp.Delivery) {
			d.Body = []byte(`{"operation":"sqrt","operands":["` + strings.Repeat("1", MaxOperandLength+1) + `"]}`)
		}, no("operands", Malformed, true)},
	} {
		t.Run(name, func(t *testing.T) {
			d := valid()
			tc.change(d)
			_, _, err := Validate(d)
			var got *Violation
			if tc.want == nil {
				if err != nil {
					t.Fatalf("got %v, want no violation", err)
				}
				return
			}
			if !errors.As(err, &got) || got.Field != tc.want.Field || got.Code != tc.want.Code || got.Answerable != tc.want.Answerable || got.Reason == "" {
				t.Fatalf("got %+v, want %+v with a reason", got, tc.want)
			}
		})
	}
}

// The calculator and the client count operands from 1, too.
func TestOperandsAreCountedFromOne(t *testing.T) {
	d := valid()
	d.Body = []byte(`{"operation":"add","operands":["1","` + strings.Repeat("2", MaxOperandLength+1) + `"]}`)
	if _, _, err := Validate(d); err == nil || !strings.Contains(err.Error(), "operand 2: ") {
		t.Errorf("got %v, want operand 2 named", err)
	}
}

func TestOnlyTheAuditorSpeaksForAnother(t *testing.T) {
	for user, want := range map[string]Meta{
		UserClient:  {User: UserClient, Replay: 0},
		UserAuditor: {User: "alice", Replay: 2},
	} {
		d := valid()
		d.UserId, d.ReplyTo = user, ReplyKey(user, "c1")
		d.Headers[HeaderReplay], d.Headers[HeaderOriginalUser] = int64(2), "alice"
		_, got, err := Validate(d)
		if err != nil || got.User != want.User || got.Replay != want.Replay {
			t.Errorf("%s: got user %q generation %d (%v), want %q %d", user, got.User, got.Replay, err, want.User, want.Replay)
		}
	}
}

func TestOperationCheck(t *testing.T) {
	for _, tc := range []struct {
		op   Operation
		n    int
		want Code
	}{
		{Add, 2, ""}, {Add, 1, InvalidArgument}, {Sqrt, 1, ""}, {Sum, 0, InvalidArgument}, {Sum, MaxOperands, ""},
		{Mean, MaxOperands + 1, InvalidArgument}, {MemoryRecall, 0, ""}, {"factorial", 1, Unimplemented},
	} {
		err := tc.op.Check(tc.n)
		var e *Error
		if errors.As(err, &e); (err == nil) != (tc.want == "") || e != nil && e.Code != tc.want {
			t.Errorf("%s with %d: got %v, want %q", tc.op, tc.n, err, tc.want)
		}
	}
}

func TestDecodeReplyNeverTakesGarbageForAResult(t *testing.T) {
	reply := func(body string, headers amqp.Table) *amqp.Delivery {
		return &amqp.Delivery{Type: ReplyType, ContentType: ContentType, Body: []byte(body), Headers: headers}
	}
	refusal := `{"error":{"code":"OVERFLOW","message":"m","retryable":false}}`
	for name, tc := range map[string]struct {
		d    *amqp.Delivery
		want Code // "" is a result
	}{
		"a result":                     {reply(`{"result":"0.3"}`, nil), ""},
		"a refusal":                    {reply(refusal, amqp.Table{HeaderErrorCode: "OVERFLOW"}), Overflow},
		"a refusal without its header": {reply(refusal, nil), Internal},
		"a header without refusal":     {reply(`{"result":"0.3"}`, amqp.Table{HeaderErrorCode: "OVERFLOW"}), Internal},
		"another type":                 {&amqp.Delivery{Body: []byte(`{"result":"1"}`)}, Internal},
		"not JSON":                     {reply(`0.3`, nil), Internal},
	} {
		_, err := DecodeReply(tc.d)
		var e *Error
		if errors.As(err, &e); (err == nil) != (tc.want == "") || e != nil && e.Code != tc.want {
			t.Errorf("%s: got %v, want code %q", name, err, tc.want)
		}
	}
}

func FuzzValidate(f *testing.F) {
	f.Add([]byte(`{"operation":"add","operands":["0.1","0.2"]}`), "client.calc-client.c1", "calc-client", int64(1))
	f.Add([]byte(`{"operation":"add","operation":"x","operands":[1e999]}`), "calc.dlq", "", int64(-1))
	f.Add([]byte(strings.Repeat("[", 10000)), "amq.rabbitmq.reply-to.g1h2", "guest", int64(0))
	f.Fuzz(func(t *testing.T, body []byte, replyTo, user string, deadline int64) {
		d := valid()
		d.Body, d.ReplyTo, d.UserId, d.Headers[HeaderDeadline] = body, replyTo, user, deadline
		r, meta, err := Validate(d)
		var v *Violation
		switch {
		case err == nil:
			if r.Operation == "" || len(r.Operands) > MaxOperands || meta.Deadline.UnixMilli() != deadline {
				t.Fatalf("accepted %+v %+v", r, meta)
			}
		case !errors.As(err, &v):
			t.Fatalf("got %T, want *Violation", err)
		case v.Answerable && !strings.HasPrefix(replyTo, "client."+user+"."):
			t.Fatalf("would answer %q for user %q", replyTo, user)
		}
	})
}
