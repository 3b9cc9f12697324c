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
	p, queue, _ := w.Broker.caller(ledger.Author, contract.UserClient, contract.ClientReplyQueue)
	p.Listen(queue)
	return p
}

// Caller makes a peer that has what a caller has: a broker user's rights, a reply
// queue, and a key to it.
func (b Broker) Caller(user, queues string) (p *Peer, queue, key string) {
	return b.caller(b.w.name(ledger.Peer), user, queues)
}

func (b Broker) caller(name, user, queues string) (p *Peer, queue, key string) {
	p = b.connect(name, b.w.room.URL(user), amqp.Config{})
	queue, key = queues+"."+name+".1", contract.ReplyKey(user, name)
	_, err := p.QueueDeclare(queue, false, false, true, false, nil)
	b.w.must(err, "declare %s", queue)
	b.w.must(p.QueueBind(queue, key, contract.ReplyExchange, false, nil), "bind %s", queue)
	return p, queue, key
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
