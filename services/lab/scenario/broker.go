package scenario

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/substrate"
	"warren.example/messaging/contract"
)

// Broker is what a story does to the broker.
type Broker struct{ w *World }

// Kill ends the Erlang VM of every node by SIGKILL, when the story's own queues
// are old enough. The broker is away until Start.
func (b Broker) Kill() {
	b.w.breaks("the broker")
	b.w.must(b.w.calm.Wait(b.w.ctx), "wait before killing the broker")
	b.w.tell("SIGKILL to the broker")
	b.w.must(b.w.broker.CrashAll(b.w.ctx), "kill the broker")
}

// Start starts every node that is dead and returns when all answer.
func (b Broker) Start() {
	b.w.tell("starting the broker again")
	b.w.must(b.w.broker.StartAll(b.w.ctx), "start the broker")
}

// Leader is the node that leads a queue.
func (b Broker) Leader(queue string) int {
	node, err := b.w.broker.Leader(b.w.ctx, b.w.room, queue)
	b.w.must(err, "find the leader of %s", queue)
	return node
}

// KillNode ends one node's VM by SIGKILL. Where nobody watches over nodes it is
// away until Start.
func (b Broker) KillNode(node int) {
	b.w.breaks("the broker")
	b.w.tell("SIGKILL to one node of the broker")
	b.w.must(b.w.broker.Crash(b.w.ctx, node), "kill node %d", node)
}

// ServeBeside is Serve for a server that is connected to other nodes than this.
func (b Broker) ServeBeside(node int) *Servant {
	return b.w.Serve(Settings{"AMQP_URL": b.beside(node, contract.UserServer)})
}

// LoadBeside is Load by a client that is connected to other nodes than this.
func (b Broker) LoadBeside(node int, args ...string) *Client {
	return b.w.client(append([]string{"load"}, args...), Settings{"AMQP_URL": b.beside(node, contract.UserClient)}, "")
}

func (b Broker) beside(node int, user string) string {
	urls, err := b.w.room.NodeURLs(user)
	b.w.must(err, "leave node %d out", node)
	return strings.Join(slices.Delete(urls, node, node+1), ",")
}

// CutOff cuts a node off from the others, both ways, and returns what joins them
// again. Nodes talk to those only that know the same secret, their cookie: the
// node believes in another from now on, for all but rabbitmqctl.
//
// To be joined it is restarted, with the cookie from its file. Before 4.2 Mnesia
// stays in halves until then. Since, a node catches up by itself, but without a
// restart the management API went on counting what was in hand at the cut (4.3.6).
func (b Broker) CutOff(node int) (join func()) {
	b.w.breaks("the broker")
	b.w.tell("cutting one node of the broker off")
	again := sync.OnceValue(func() error {
		ctx := context.WithoutCancel(b.w.ctx)
		return errors.Join(b.w.broker.Crash(ctx, node), b.w.broker.StartAll(ctx))
	})
	b.w.leave = append(b.w.leave, func() { _ = again() }) // also after the story has been stopped
	_, err := b.w.broker.Command(b.w.ctx, node, "eval", "[begin erlang:set_cookie(N, cut_off), true = erlang:disconnect_node(N) end || N <- nodes()].")
	b.w.must(err, "cut node %d off", node)
	return func() {
		b.w.tell("joining the broker's nodes again")
		b.w.must(again(), "join node %d again", node)
	}
}

// Roll restarts one node after the other, as for a new version, and returns when
// the last is back.
func (b Broker) Roll() {
	b.w.breaks("the broker")
	b.w.tell("restarting one node of the broker after the other")
	b.w.must(substrate.Roll(b.w.ctx, b.w.broker), "restart the broker's nodes")
}

// Alarm says that the broker is short of memory and of disk, as its own monitors
// do. It is over when what it returns is called, or else with the story.
func (b Broker) Alarm() (over func()) {
	b.w.breaks("the broker")
	b.w.tell("raising the alarms of memory and disk")
	end := sync.OnceValue(func() error {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(b.w.ctx), b.w.slow*closeWithin)
		defer cancel()
		_, err := b.w.broker.Command(ctx, 0, "eval", "[rabbit_alarm:clear_alarm({resource_limit, R, node()}) || R <- [memory, disk]].")
		return err
	})
	b.w.leave = append(b.w.leave, func() { _ = end() })
	_, err := b.w.broker.Command(b.w.ctx, 0, "eval", "[rabbit_alarm:set_alarm({{resource_limit, R, node()}, []}) || R <- [memory, disk]].")
	b.w.must(err, "raise the alarms")
	return func() { b.w.must(end(), "end the alarms") }
}

// LimitMessages lowers the max_message_size of every node until the story is over.
// A running node of 4.x keeps it as a persistent term, 3.x reads it with each new
// channel.
func (b Broker) LimitMessages(bytes int) {
	b.w.breaks("the broker")
	b.w.tell(fmt.Sprintf("limiting messages to %d bytes", bytes))
	set := func(ctx context.Context, node int, size string) (before string, err error) {
		out, err := b.w.broker.Command(ctx, node, "eval", `{ok, Before} = application:get_env(rabbit, max_message_size),
			ok = application:set_env(rabbit, max_message_size, `+size+`),
			persistent_term:get(max_message_size, none) =:= none orelse persistent_term:put(max_message_size, `+size+`), Before.`)
		return strings.TrimSpace(string(out)), err
	}
	for node := range b.w.broker.Nodes() {
		before, err := set(b.w.ctx, node, strconv.Itoa(bytes))
		b.w.must(err, "limit messages on node %d", node)
		b.w.leave = append(b.w.leave, sync.OnceFunc(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(b.w.ctx), b.w.slow*closeWithin)
			defer cancel()
			_, _ = set(ctx, node, before)
		}))
	}
}

// RemoveQueue deletes the request queue, as if it had never been declared.
func (b Broker) RemoveQueue() {
	b.w.must(func() error {
		conn, err := amqp.Dial(b.w.room.AdminURL())
		if err != nil {
			return err
		}
		defer conn.Close()
		ch, err := conn.Channel()
		if err != nil {
			return err
		}
		_, err = ch.QueueDelete(contract.RequestQueue, false, false, false)
		return err
	}(), "delete %s", contract.RequestQueue)
	b.w.queues = []string{contract.DeadLetterQueue}
}

// UntilQueue waits for something to be seen in the state of a queue.
func (b Broker) UntilQueue(queue, what string, happened func(substrate.QueueState) bool) {
	b.w.tell("until " + what)
	ctx, cancel := context.WithTimeout(b.w.ctx, b.w.slow*seenWithin)
	defer cancel()
	for {
		state, err := b.w.room.Queue(ctx, queue)
		b.w.must(err, "look at %s", queue)
		if happened(state) {
			return
		}
		b.w.must(ctx.Err(), "wait until %s", what)
		time.Sleep(look)
	}
}

// Cut ends every connection in the room, as a broker does that shuts down.
func (b Broker) Cut() {
	b.w.tell("closing every connection")
	u, err := url.Parse(b.w.room.AdminURL())
	b.w.must(err, "read the room's URL")
	_, err = b.w.broker.Command(b.w.ctx, 0, "close_all_connections", "--vhost", strings.TrimPrefix(u.Path, "/"), "the lab cuts it")
	b.w.must(err, "close every connection")
}

// AckWithin has the broker wait so long for an ack, and returns the arguments of
// a queue for which that is so. Before 4.3 it is a setting of all nodes for
// channels that are opened from now on, and it is set back in the end.
func (b Broker) AckWithin(limit time.Duration) amqp.Table {
	args := maps.Clone(quorum)
	if b.w.broker.Version().AtLeast(4, 3) {
		args["x-consumer-timeout"] = limit.Milliseconds()
		return args
	}
	b.w.breaks("the broker")
	set := func(ctx context.Context, node int, settings string) (before string, err error) {
		out, err := b.w.broker.Command(ctx, node, "eval", fmt.Sprintf("S = %s, Before = [{K, V} || {K, _} <- S, {ok, V} <- [application:get_env(rabbit, K)]], [application:set_env(rabbit, K, V) || {K, V} <- S], Before.", settings))
		return string(bytes.TrimSpace(out)), err
	}
	for node := range b.w.broker.Nodes() {
		const checks = 4 // per limit; by default it looks once a minute
		before, err := set(b.w.ctx, node, fmt.Sprintf("[{consumer_timeout, %d}, {channel_tick_interval, %d}]", limit.Milliseconds(), limit.Milliseconds()/checks))
		b.w.must(err, "set the consumer timeout of node %d", node)
		b.w.leave = append(b.w.leave, sync.OnceFunc(func() {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(b.w.ctx), b.w.slow*readyWithin)
			defer cancel()
			if _, err := set(ctx, node, before); err != nil {
				b.w.tell(fmt.Sprintf("node %d keeps a consumer timeout of %s: %v", node, limit, err))
			}
		}))
	}
	return args
}
