//go:build integration

package session

import (
	"bytes"
	"reflect"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	"pgregory.net/rapid"
)

// Our encoding is right if the broker takes it and the library reads the same
// message out of the queue.
func TestWhatIsPublishedArrives(t *testing.T) {
	b := newBench(t, nil)
	pub := b.publisher(PublisherOptions{Exchange: b.exchange})
	user := b.options.Config.User()
	conn, err := amqp.Dial(b.admin)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	// Not a quorum queue, which adds a header, and not a durable one, which is slow.
	q, err := ch.QueueDeclare("", false, true, true, false, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := ch.QueueBind(q.Name, q.Name, b.exchange, false, nil); err != nil {
		t.Fatal(err)
	}
	short := rapid.StringN(0, 20, 255)
	scalar := rapid.OneOf(
		rapid.Just[any](nil), asAny(rapid.Bool()), asAny(rapid.Int32()), asAny(rapid.Int64()), asAny(rapid.StringN(0, 20, 300)),
		rapid.Map(rapid.Int64Range(0, 1<<40), func(s int64) any { return time.Unix(s, 0) }),
	)
	table := func(values *rapid.Generator[any]) *rapid.Generator[amqp.Table] {
		return rapid.Map(rapid.MapOfN(rapid.StringMatching(`[a-z-]{1,12}`), values, 0, 4), func(m map[string]any) amqp.Table { return m })
	}
	headers := table(rapid.OneOf(scalar, asAny(table(scalar))))
	rapid.Check(t, func(t *rapid.T) {
		m := amqp.Publishing{
			Headers:         headers.Draw(t, "headers"),
			ContentType:     short.Draw(t, "content-type"),
			ContentEncoding: short.Draw(t, "content-encoding"),
			DeliveryMode:    rapid.Uint8Range(0, 2).Draw(t, "delivery mode"),
			Priority:        rapid.Uint8Range(0, 9).Draw(t, "priority"),
			CorrelationId:   short.Draw(t, "correlation-id"),
			ReplyTo:         short.Draw(t, "reply-to"),
			Expiration:      rapid.SampledFrom([]string{"", "60000"}).Draw(t, "expiration"),
			MessageId:       short.Draw(t, "message-id"),
			Type:            short.Draw(t, "type"),
			UserId:          rapid.SampledFrom([]string{"", user}).Draw(t, "user-id"),
			AppId:           short.Draw(t, "app-id"),
			Body:            bytes.Repeat([]byte{'b', frameEnd}, rapid.SampledFrom([]int{0, 1, 65532, 70_000}).Draw(t, "length")),
		}
		if s := rapid.Int64Range(0, 1<<40).Draw(t, "timestamp"); s > 0 {
			m.Timestamp = time.Unix(s, 0)
		}
		if o, err := pub.Publish(b.t.Context(), Message{Exchange: b.exchange, Key: q.Name, Mandatory: true, Publishing: m}); o != Confirmed {
			t.Fatalf("got %s (%v), want confirmed", o, err)
		}
		d, ok, err := ch.Get(q.Name, true)
		if err != nil || !ok {
			t.Fatalf("get: got %t (%v), want a message", ok, err)
		}
		got := amqp.Publishing{Headers: d.Headers, ContentType: d.ContentType, ContentEncoding: d.ContentEncoding, DeliveryMode: d.DeliveryMode,
			Priority: d.Priority, CorrelationId: d.CorrelationId, ReplyTo: d.ReplyTo, Expiration: d.Expiration, MessageId: d.MessageId,
			Timestamp: d.Timestamp, Type: d.Type, UserId: d.UserId, AppId: d.AppId, Body: d.Body}
		if len(m.Headers) == 0 && len(got.Headers) == 0 {
			m.Headers, got.Headers = nil, nil
		}
		if len(m.Body) == 0 && len(got.Body) == 0 {
			m.Body, got.Body = nil, nil
		}
		if !reflect.DeepEqual(got, m) {
			t.Errorf("got %.500v, want %.500v", got, m)
		}
	})
}

func asAny[T any](g *rapid.Generator[T]) *rapid.Generator[any] {
	return rapid.Map(g, func(v T) any { return v })
}
