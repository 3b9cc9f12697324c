package session

import (
	"encoding/binary"
	"fmt"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// Frames of AMQP 0-9-1, section 4.2: type, channel, size, payload, end.
const (
	frameMethod, frameHeader, frameBody = 1, 2, 3

	frameEnd      = 0xCE
	frameOverhead = 8 // bytes around the payload

	basicPublish = 60<<16 | 40 // class and method
)

// The bits of a content header that say which properties follow, in this order.
const (
	hasContentType = 1 << (15 - iota)
	hasContentEncoding
	hasHeaders
	hasDeliveryMode
	hasPriority
	hasCorrelationID
	hasReplyTo
	hasExpiration
	hasMessageID
	hasTimestamp
	hasType
	hasUserID
	hasAppID
)

// publishChannel is the number of the channel on a publisher's connection: it
// is the only one, and the library counts from 1.
const publishChannel = 1

// appendPublish appends m as the frames of a basic.publish. FrameSize is the
// negotiated limit, 0 means none. The error is of a header that has no
// encoding, or of a string that is too long: the broker would close the whole
// connection for it.
func appendPublish(b []byte, frameSize int, m *Message) ([]byte, error) {
	for _, s := range [...]struct{ name, value string }{{"exchange", m.Exchange}, {"routing key", m.Key}, {"content-type", m.ContentType},
		{"content-encoding", m.ContentEncoding}, {"correlation-id", m.CorrelationId}, {"reply-to", m.ReplyTo}, {"expiration", m.Expiration},
		{"message-id", m.MessageId}, {"type", m.Type}, {"user-id", m.UserId}, {"app-id", m.AppId}} {
		if len(s.value) > 255 {
			return b, fmt.Errorf("%s: %d bytes, at most 255", s.name, len(s.value))
		}
	}
	b, method := openFrame(b, frameMethod)
	b = binary.BigEndian.AppendUint32(b, basicPublish)
	b = append(b, 0, 0) // reserved
	b = appendShort(b, m.Exchange)
	b = appendShort(b, m.Key)
	if m.Mandatory {
		b = append(b, 1)
	} else {
		b = append(b, 0)
	}
	b = closeFrame(b, method)

	b, header := openFrame(b, frameHeader)
	b = binary.BigEndian.AppendUint32(b, 60<<16) // class, and a weight that is always 0
	b = binary.BigEndian.AppendUint64(b, uint64(len(m.Body)))
	b, err := appendProperties(b, &m.Publishing)
	if err != nil {
		return b, err
	}
	b = closeFrame(b, header)

	most := len(m.Body)
	if frameSize > 0 {
		most = frameSize - frameOverhead
	}
	for body := m.Body; len(body) > 0; {
		n := min(most, len(body))
		var at int
		b, at = openFrame(b, frameBody)
		b = closeFrame(append(b, body[:n]...), at)
		body = body[n:]
	}
	return b, nil
}

func openFrame(b []byte, kind byte) ([]byte, int) {
	b = append(b, kind, 0, publishChannel, 0, 0, 0, 0)
	return b, len(b)
}

func closeFrame(b []byte, payload int) []byte {
	setSize(b, payload)
	return append(b, frameEnd)
}

// setSize writes into the four bytes before at how many come after it.
func setSize(b []byte, at int) { binary.BigEndian.PutUint32(b[at-4:], uint32(len(b)-at)) }

func appendProperties(b []byte, m *amqp.Publishing) ([]byte, error) {
	flags, at := 0, len(b)
	b = append(b, 0, 0)
	short := func(flag int, s string) {
		if s != "" {
			flags |= flag
			b = appendShort(b, s)
		}
	}
	short(hasContentType, m.ContentType)
	short(hasContentEncoding, m.ContentEncoding)
	if len(m.Headers) > 0 {
		flags |= hasHeaders
		var err error
		if b, err = appendTable(b, m.Headers); err != nil {
			return b, err
		}
	}
	if m.DeliveryMode > 0 {
		flags |= hasDeliveryMode
		b = append(b, m.DeliveryMode)
	}
	if m.Priority > 0 {
		flags |= hasPriority
		b = append(b, m.Priority)
	}
	short(hasCorrelationID, m.CorrelationId)
	short(hasReplyTo, m.ReplyTo)
	short(hasExpiration, m.Expiration)
	short(hasMessageID, m.MessageId)
	if !m.Timestamp.IsZero() {
		flags |= hasTimestamp
		b = binary.BigEndian.AppendUint64(b, uint64(m.Timestamp.Unix()))
	}
	short(hasType, m.Type)
	short(hasUserID, m.UserId)
	short(hasAppID, m.AppId)
	binary.BigEndian.PutUint16(b[at:], uint16(flags))
	return b, nil
}

func appendShort(b []byte, s string) []byte { return append(append(b, byte(len(s))), s...) }

func appendTable(b []byte, t amqp.Table) ([]byte, error) {
	b = append(b, 0, 0, 0, 0)
	at := len(b)
	for name, value := range t {
		if len(name) > 255 {
			return b, fmt.Errorf("header %.20s…: name of %d bytes, at most 255", name, len(name))
		}
		b = appendShort(b, name)
		var err error
		if b, err = appendField(b, value); err != nil {
			return b, fmt.Errorf("header %s: %w", name, err)
		}
	}
	setSize(b, at)
	return b, nil
}

// appendField knows the types that brokers and other clients agree on.
func appendField(b []byte, value any) ([]byte, error) {
	switch v := value.(type) {
	case nil:
		return append(b, 'V'), nil
	case bool:
		if v {
			return append(b, 't', 1), nil
		}
		return append(b, 't', 0), nil
	case int32:
		return binary.BigEndian.AppendUint32(append(b, 'I'), uint32(v)), nil
	case int64:
		return binary.BigEndian.AppendUint64(append(b, 'l'), uint64(v)), nil
	case string:
		return append(binary.BigEndian.AppendUint32(append(b, 'S'), uint32(len(v))), v...), nil
	case time.Time:
		return binary.BigEndian.AppendUint64(append(b, 'T'), uint64(v.Unix())), nil
	case amqp.Table:
		return appendTable(append(b, 'F'), v)
	}
	return b, fmt.Errorf("a %T has no encoding here", value)
}
