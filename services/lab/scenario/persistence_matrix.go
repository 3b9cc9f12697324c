package scenario

import (
	"errors"
	"fmt"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/ledger"
	"warren.example/messaging/event"
)

// Every broker node dies by SIGKILL with messages of each kind in queues of each
// kind, and is started again.
//
// Promise: what is persistent, in a durable queue and confirmed is kept, and in a
// quorum queue what is transient as well; the rest is gone, as the documentation
// says: transient messages though they were confirmed, and a transient queue with
// all that was in it. Of a message whose confirm nobody has read nothing is
// promised, and it may be there. Control: with transient messages where the
// persistent ones were, confirmed ones must be gone.
//
// A transient queue that is not exclusive is deprecated in RabbitMQ 4; 4.3.6 makes
// it all the same, unless deprecated_features.permit.transient_nonexcl_queues is
// false: then it refuses with 541.
//
// https://www.rabbitmq.com/docs/confirms#when-publishes-are-confirmed: a transient
// message is confirmed once it is in its queue, a persistent one when it is on disk.
var persistenceMatrix = Scenario{
	Name:    "persistence-matrix",
	Topic:   "persistence",
	Broke:   "broker: SIGKILL with messages of every kind",
	Promise: "durable, persistent and confirmed is kept",
	Alone:   true,
	Run:     killOverMessages(amqp.Persistent),
	Controls: []Control{{
		Name:   "transient messages",
		Shows:  "confirmed ones are gone from a durable queue",
		Breaks: string(ledger.NoLoss),
		Run:    killOverMessages(amqp.Transient),
	}},
}

// stored is a way to leave messages with a broker.
type stored struct {
	what  string
	queue string
	args  amqp.Table
	mode  uint8
	kept  bool // by the documentation
}

func killOverMessages(mode uint8) func(*World) {
	return func(w *World) {
		const each = 5
		const transientQueue, unreadQueue = "lesson.transient", "lesson.unconfirmed"
		classic := amqp.Table{"x-queue-type": "classic"}
		ways := []stored{
			{"classic persistent", "lesson.classic.persistent", classic, mode, true},
			{"classic transient", "lesson.classic.transient", classic, amqp.Transient, false},
			{"quorum persistent", "lesson.quorum.persistent", quorum, amqp.Persistent, true},
			{"quorum transient", "lesson.quorum.transient", quorum, amqp.Transient, true},
		}
		// ARRANGE  five confirmed messages of each kind; those that are to be lost are not on record as confirmed
		lab := w.Broker.Connect()
		ids := map[string]ledger.Set{}
		send := func(s stored) {
			some := messages(each)
			ids[s.what] = ledger.Set{}
			for i := range some {
				some[i].DeliveryMode = s.mode
				ids[s.what][some[i].MessageId] = struct{}{}
			}
			if s.kept {
				lab.Send(s.queue, some...)
				return
			}
			if n := countAcks(w.ctx, lab.Throw(s.queue, some...)); n < each {
				w.must(fmt.Errorf("%d of %d confirmed", n, each), "publish to %s", s.queue)
			}
		}
		for _, s := range ways {
			lab.Declare(s.queue, s.args)
			send(s)
		}
		_, refused := w.Broker.Connect().QueueDeclare(transientQueue, false, false, false, false, classic)
		if refused == nil {
			ways = append(ways, stored{"transient queue", transientQueue, nil, amqp.Persistent, false})
			send(ways[len(ways)-1])
		}
		lab.Declare(unreadQueue, classic)
		// BREAK
		unread := messages(each)
		lab.Throw(unreadQueue, unread...)
		w.Broker.Kill()
		w.Broker.Start()
		// OBSERVE
		after := w.Broker.Connect()
		for _, queue := range w.queues[2:] {
			after.Drain(queue)
		}
		_, gone := w.Broker.Connect().QueueDeclarePassive(transientQueue, false, false, false, false, nil)
		v := w.Settle()
		// VERDICT
		v.Hit("messages on record as confirmed", len(v.With(event.Confirmed)) == 3*each)
		var kept []string
		for _, s := range ways {
			there := v.With(event.Audited).And(ids[s.what])
			if s.kept {
				v.Same(s.what+" is kept", there, ids[s.what])
			} else {
				v.None(s.what+" is gone", there)
			}
			kept = append(kept, fmt.Sprintf("%s %d", s.what, len(there)))
		}
		there := 0
		for _, m := range unread {
			there += min(v.Times(m.MessageId, event.Audited), 1)
		}
		v.Note("kept of %d each: %s; unconfirmed %d", each, strings.Join(kept, ", "), there)
		v.That("a transient queue is gone", isCode(gone, amqp.NotFound), "%v", gone)
		if refused != nil {
			v.That("a transient queue is refused for what it is", isCode(refused, amqp.InternalError), "%v", refused)
			v.Note("transient queue: refused")
		}
	}
}

// isCode says whether the broker closed something for this reason.
func isCode(err error, code int) bool {
	var answer *amqp.Error
	return errors.As(err, &answer) && answer.Code == code
}
