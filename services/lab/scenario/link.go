package scenario

import (
	"time"

	"warren.example/lab/link"
	"warren.example/lab/substrate"
	"warren.example/messaging/contract"
)

// Link is the network between services and the broker.
type Link struct {
	w *World
	substrate.Link
}

// Link puts one between the broker and the servers that are given its Settings.
func (w *World) Link() *Link { return w.link(contract.UserServer) }

// LinkToClients puts one between the broker and the clients that it starts.
func (b Broker) LinkToClients() *Link { return b.w.link(contract.UserClient) }

func (w *World) link(user string) *Link {
	k, err := substrate.Connect(w.ctx, w.room, user)
	w.must(err, "make a link")
	return &Link{w, k}
}

// Settings lead a service over the link.
func (k *Link) Settings() Settings { return Settings{"AMQP_URL": k.URL()} }

// Load is World.Load by a client behind the link.
func (k *Link) Load(s Settings, args ...string) *Client {
	return k.w.client(append([]string{"load"}, args...), k.Settings().With(s), "")
}

// BreakAt does something to the connection of the n-th next frame with this
// method from a side, before the other has it.
func (k *Link) BreakAt(from link.Side, method string, n int, how link.Action) {
	k.w.tell("the link will " + string(how) + " at a " + method)
	k.w.must(k.Do(k.w.ctx, link.Order{Action: how, Method: method, From: from, N: n}), "order the link to %s", how)
}

// Slow makes every frame take so much longer, until Heal.
func (k *Link) Slow(delay time.Duration) { k.order(link.Order{Action: link.Slow, Delay: delay}) }

// Drip lets the bytes of a side, or of both if it is "", pass one by one, one each
// delay, until Heal.
func (k *Link) Drip(from link.Side, delay time.Duration) {
	k.order(link.Order{Action: link.Drip, From: from, Delay: delay})
}

// Heal ends whatever lasts: silence, Slow and Drip.
func (k *Link) Heal() { k.order(link.Order{Action: link.Heal}) }

func (k *Link) order(o link.Order) {
	k.w.tell("the link: " + string(o.Action))
	k.w.must(k.Do(k.w.ctx, o), "order the link to %s", o.Action)
}

// Broke says whether all so many frames came.
func (k *Link) Broke(times int) bool {
	hit, err := k.Hit(k.w.ctx)
	k.w.must(err, "ask the link")
	return hit == times
}
