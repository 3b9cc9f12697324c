package scenario

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/lab/ledger"
	"warren.example/lab/link"
	"warren.example/lab/substrate"
	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/fault"
)

// Soak is steady load for a time and, one after the other, whatever faults a
// seed draws: what nobody has thought of a scenario for. The same seed draws the
// same faults in the same order, wherever they are possible.
//
// Promise: whatever breaks, every call of a client that lives is answered, and no
// invariant is broken.
// Control: servers that ack before they reply die, each in its turn: requests
// must be lost.
type Soak struct {
	Seed uint64        `json:"seed"`
	For  time.Duration `json:"for"` // nanoseconds

	// What became of it, for whoever shows it again.
	Met      []Met           `json:"faults"`
	Arranged ledger.Arranged `json:"arranged"`
	Lines    []event.Line    `json:"-"`
}

// Met is a fault that a soak has met.
type Met struct {
	At    time.Time `json:"at"`
	Fault string    `json:"fault"`
}

// Scenario is the soak as the runner plays it.
func (s *Soak) Scenario() Scenario {
	return Scenario{
		Name:    "soak",
		Topic:   "soak",
		Broke:   "one thing after the other, as the seed draws",
		Promise: "every call is answered",
		Alone:   true,
		Within:  s.For,
		Run:     s.run,
		Controls: []Control{{
			Name:   "servers ack before they reply",
			Shows:  "requests in a server's hands are gone",
			Breaks: string(ledger.NoLoss),
			Run: func(w *World) {
				c := &Soak{Seed: s.Seed}
				c.soak(w, serverDies, Settings{"ACK_BEFORE_REPLY": "true"}, "5s")
			},
		}},
	}
}

func (s *Soak) run(w *World) {
	defer func() { s.Lines, s.Arranged = w.ledger.Lines(), w.ledger.Arranged() }()
	s.soak(w, slices.Concat(serverDies, otherFaults), nil, "2m")
}

// soak plays it for its time, or at least a round of the faults. Work takes a
// while, so that a server always has some in hand.
func (s *Soak) soak(w *World, faults []possible, settings Settings, patience string) {
	// ARRANGE  servers, and on Kubernetes pods of more; an auditor; two clients; one of each over a link
	p := &plot{w: w, settings: settings.With(noticing).With(Settings{"WORK_DELAY": "50ms"}), load: []string{"--endless", "--rate", "30", "--timeout", patience}}
	p.ways = []*Link{w.Link(), w.Broker.LinkToClients()}
	p.servers = []*Servant{w.Serve(p.settings.With(p.ways[0].Settings())), w.Serve(p.settings), w.Serve(p.settings)}
	if onKubernetes(w) {
		p.pods = w.Deploy(substrate.CalculatorServer, 2, p.settings)
	}
	p.auditor = w.Audit(nil)
	p.clients = []*Client{p.client(0), p.client(1)}
	w.Until("calls are answered", passed(event.Answered, 50))
	// BREAK
	faults = slices.DeleteFunc(slices.Clone(faults), func(f possible) bool { return f.where != nil && !f.where(w) })
	end := time.Now().Add(s.For)
	for draw := range draws(s.Seed, faults) {
		p.wait(draw.calm)
		if len(s.Met) >= len(faults) && time.Now().After(end) {
			break
		}
		w.tell(draw.fault.name)
		s.Met = append(s.Met, Met{time.Now(), draw.fault.name})
		draw.fault.do(p, draw)
	}
	for _, c := range p.clients {
		c.Enough()
	}
	// OBSERVE
	v := w.Settle()
	s.Arranged = v.Arranged()
	// VERDICT
	s.verdict(v)
}

// verdict is told from the ledger alone, so that it can be told again.
func (s *Soak) verdict(v *Verdict) {
	v.Hit("a fault", len(s.Met) > 0)
	v.Hit("a request delivered again", len(v.Redelivered()) > 0)
	asked := v.Where(func(l event.Line) bool {
		return l.Event == event.Publishing && strings.HasPrefix(l.Instance, "client-") && s.Arranged.Killed[l.Instance] == 0
	})
	v.Same(everyCall, v.With(event.Answered).And(asked), asked)
	v.Note("%d faults", len(s.Met))
	v.Note("%s", v.Confidence())
}

// Judge tells the verdict of a soak that is over.
func (s *Soak) Judge() *Verdict {
	l := ledger.New()
	l.Arrange(s.Arranged)
	for _, line := range s.Lines {
		l.Add(line)
	}
	v := judge(l)
	s.verdict(v)
	return v
}

// plot is what faults are done to.
type plot struct {
	w        *World
	settings Settings
	load     []string
	ways     []*Link // to the first server, to the first client
	servers  []*Servant
	pods     *Workload // more servers, on Kubernetes
	auditor  *Servant
	clients  []*Client
}

// noticing is how soon silence is noticed: before some faults are over, after others.
var noticing = Settings{"AMQP_HEARTBEAT": "1s"}

// draw is a fault as the seed drew it.
type draw struct {
	fault possible
	calm  time.Duration // before it
	long  time.Duration // that it lasts, if it is not over at once
	n     int           // which, or at which
}

// possible is a fault that can be drawn.
type possible struct {
	name  string
	where func(*World) bool // nil: everywhere
	do    func(*plot, draw)
}

// draws is an endless schedule: every fault once in each round, in a new order.
func draws(seed uint64, faults []possible) func(yield func(draw) bool) {
	return func(yield func(draw) bool) {
		r := rand.New(rand.NewPCG(seed, seed))
		ms := func(least, most int) time.Duration { return time.Duration(least+r.IntN(most-least)) * time.Millisecond }
		for {
			for _, i := range r.Perm(len(faults)) {
				if !yield(draw{faults[i], ms(200, 3000), ms(500, 3000), r.IntN(1000)}) {
					return
				}
			}
		}
	}
}

func onKubernetes(w *World) bool { return w.under.Name() == "kubernetes" }
func ours(w *World) bool         { return w.under.Ours() }
func threeNodes(w *World) bool   { return w.broker.Nodes() >= 3 }

var serverDies = []possible{
	{"a server dies", nil, func(p *plot, d draw) { p.kill(p.server(d)) }},
	{"a server dies after its work", nil, func(p *plot, d draw) { p.killAt(p.server(d), fault.AfterWork, d) }},
	{"a server dies after its reply", nil, func(p *plot, d draw) { p.killAt(p.server(d), fault.AfterReply, d) }},
	{"a server dies after its ack", nil, func(p *plot, d draw) { p.killAt(p.server(d), fault.AfterAck, d) }},
}

var otherFaults = []possible{
	{"a server leaves, another comes", nil, func(p *plot, d draw) {
		i := 1 + d.n%(len(p.servers)-1) // not the one on the link
		p.servers[i].Leave()
		p.servers[i] = p.w.Serve(p.settings)
	}},
	{"a server's pod is deleted", onKubernetes, func(p *plot, d draw) { p.pods.Delete(p.pod(d)) }},
	{"a server's pod is deleted by force", onKubernetes, func(p *plot, d draw) {
		p.pods.DeleteByForce(p.pod(d))
		p.pods.do("wait for", p.pods.pods.WaitReady)
	}},
	{"a server is frozen", ours, func(p *plot, d draw) {
		s := p.server(d)
		s.Freeze()
		p.wait(d.long)
		s.Thaw()
	}},
	{"a client dies, another comes", nil, func(p *plot, d draw) {
		i := d.n % len(p.clients)
		p.w.ledger.Killed(p.clients[i].Name(), 1)
		p.w.must(p.clients[i].Crash(p.w.ctx), "kill %s", p.clients[i].Name())
		p.clients[i] = p.client(i)
	}},
	{"the auditor dies", nil, func(p *plot, _ draw) { p.kill(p.auditor) }},
	{"the auditor dies after its commit", nil, func(p *plot, d draw) {
		p.auditor.CrashAt(fault.AfterCommit, 1)
		before := p.auditor.Crashes()
		p.rubbish(d)
		p.backAfter(p.auditor, before)
	}},
	{"rubbish is published", nil, func(p *plot, d draw) { p.rubbish(d) }},
	{"the broker dies", nil, func(p *plot, _ draw) {
		p.w.Broker.Kill()
		p.w.Broker.Start()
	}},
	{"a broker node dies", threeNodes, func(p *plot, d draw) {
		p.w.Broker.KillNode(d.n % p.w.broker.Nodes())
		p.w.Broker.Start()
	}},
	{"a broker node is cut off", threeNodes, func(p *plot, d draw) {
		join := p.w.Broker.CutOff(d.n % p.w.broker.Nodes())
		p.wait(d.long)
		join()
	}},
	{"the broker closes every connection", nil, func(p *plot, _ draw) { p.w.Broker.Cut() }},
	{"the broker is short of memory and disk", nil, func(p *plot, d draw) {
		defer p.w.Broker.Alarm()()
		p.wait(d.long)
	}},
	{"a link is reset", nil, func(p *plot, d draw) { p.way(d).order(link.Order{Action: link.Reset}) }},
	{"a link is cut in the middle of an ack", nil, func(p *plot, d draw) {
		acks := []link.Side{link.Service, link.Broker} // the server's to the broker, the broker's confirms to the client
		p.way(d).order(link.Order{Action: link.Tear, Method: "basic.ack", From: acks[d.n%len(acks)], N: 1 + d.n%50})
	}},
	{"a link is half open", nil, func(p *plot, d draw) { p.lasts(d, link.Order{Action: link.Freeze}) }},
	{"a link is slow", nil, func(p *plot, d draw) { p.lasts(d, link.Order{Action: link.Slow, Delay: 50 * time.Millisecond}) }},
	{"a link drips", nil, func(p *plot, d draw) { p.lasts(d, link.Order{Action: link.Drip, Delay: 50 * time.Millisecond}) }},
}

// wait lets some time pass with the load alone.
func (p *plot) wait(d time.Duration) {
	select {
	case <-time.After(d):
	case <-p.w.ctx.Done():
		p.w.must(p.w.ctx.Err(), "let time pass")
	}
}

// lasts does something to a link until it is healed.
func (p *plot) lasts(d draw, o link.Order) {
	p.way(d).order(o)
	p.wait(d.long)
	p.way(d).Heal()
}

func (p *plot) way(d draw) *Link { return p.ways[d.n%len(p.ways)] }

// client starts one, the first over its link.
func (p *plot) client(i int) *Client {
	if i == 0 {
		return p.ways[1].Load(noticing, p.load...)
	}
	return p.w.client(append([]string{"load"}, p.load...), noticing, "")
}

func (p *plot) server(d draw) *Servant { return p.servers[d.n%len(p.servers)] }

func (p *plot) pod(d draw) *Servant {
	pods := p.pods.Pods()
	return pods[d.n%len(pods)]
}

func (p *plot) kill(s *Servant) {
	s.Doomed(1)
	before := s.Crashes()
	p.w.must(s.Crash(p.w.ctx), "kill %s", s.Name())
	p.backAfter(s, before)
}

func (p *plot) killAt(s *Servant, at fault.Point, d draw) {
	before := s.Crashes()
	s.CrashAt(at, 1+d.n%20)
	p.backAfter(s, before)
}

// backAfter waits for one more death than before, and for the life after it.
func (p *plot) backAfter(s *Servant, before int) {
	p.w.Until(s.Name()+" has died", func(seen) bool { return s.Crashes() > before })
	p.w.must(s.WaitReady(p.w.ctx), "wait for %s", s.Name())
}

// rubbish is no request at all; the auditor must have it in the end.
func (p *plot) rubbish(d draw) {
	peer := p.w.Broker.Connect()
	defer peer.end()
	peer.Publish(contract.RequestExchange, contract.RequestKey, amqp.Publishing{
		MessageId: fmt.Sprintf("rubbish-%d-%d", d.n, time.Now().UnixNano()), DeliveryMode: amqp.Persistent, Body: []byte("rubbish"),
	})
}
