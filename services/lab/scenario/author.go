package scenario

import (
	"encoding/json"
	"strconv"
	"time"

	"github.com/google/uuid"
	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/ledger"
	"warren.example/messaging/contract"
	"warren.example/messaging/event"
)

// lineWriter lets a Recorder write where lines are taken.
type lineWriter func(event.Line)

func (take lineWriter) Write(b []byte) (int, error) {
	var line event.Line
	if err := json.Unmarshal(b, &line); err != nil {
		return 0, err
	}
	take(line)
	return len(b), nil
}

// stranger makes a peer that publishes what our client would refuse to, as the
// user calc-client, and has a reply queue like a client's.
func (w *World) stranger() *Peer {
	p := w.Broker.connect(ledger.Author, w.room.URL(contract.UserClient), amqp.Config{})
	queue := contract.ClientReplyQueue + "." + ledger.Author + ".1"
	_, err := p.QueueDeclare(queue, false, false, true, false, nil)
	w.must(err, "declare %s", queue)
	w.must(p.QueueBind(queue, contract.ReplyKey(contract.UserClient, ledger.Author), contract.ReplyExchange, false, nil), "bind %s", queue)
	p.Listen(queue)
	return p
}

// request is what a well-behaved stranger publishes. Its correlation-id is its
// message-id, so that a reply tells which request it answers.
func request(op contract.Operation, operands ...string) amqp.Publishing {
	const patience = time.Minute
	id := uuid.Must(uuid.NewV7()).String()
	return amqp.Publishing{
		MessageId: id, CorrelationId: id,
		Type: contract.RequestType, ContentType: contract.ContentType,
		ReplyTo: contract.ReplyKey(contract.UserClient, ledger.Author), UserId: contract.UserClient,
		DeliveryMode: amqp.Persistent, Timestamp: time.Now(),
		Expiration: strconv.FormatInt(patience.Milliseconds(), 10),
		Headers:    amqp.Table{contract.HeaderDeadline: time.Now().Add(patience).UnixMilli()},
		Body:       contract.Encode(contract.Request{Operation: op, Operands: operands}),
	}
}
