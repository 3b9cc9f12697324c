package scenario

import (
	"strconv"
	"time"

	"warren.example/lab/ledger"
	"warren.example/messaging/event"
	"warren.example/messaging/fault"
)

// Four clients ask three servers, and one server after the other dies with
// requests in hand, six deaths in all; each is started again, as a pod would be.
//
// Promise: every call is answered; whoever asks sees a wait and no failure.
// Control: servers that ack before they reply must lose what each had acked and not
// yet answered.
var manyAtOnce = Scenario{
	Name:    "many-at-once",
	Topic:   "request and reply",
	Broke:   "servers: six SIGKILLs, under four clients",
	Promise: "every call is answered",
	Run:     killMany(fault.AfterWork, nil, "20s"),
	Controls: []Control{{
		Name:   "ack first",
		Shows:  "acked calls are never answered",
		Breaks: string(ledger.NoLoss),
		Run:    killMany(fault.AfterAck, Settings{"ACK_BEFORE_REPLY": "true"}, "3s"),
	}},
}

func killMany(at fault.Point, settings Settings, patience string) func(*World) {
	return func(w *World) {
		const servers, clients, deaths = 3, 4, 6
		// ARRANGE  three servers and four clients that ask at fixed instants
		var all []*Servant
		for range servers {
			all = append(all, w.Serve(settings.With(Settings{"PREFETCH": "10"})))
		}
		var asking []*Client
		for range clients {
			asking = append(asking, w.Load("--endless", "--rate", "20", "--timeout", patience))
		}
		w.Until("each client has answers", passed(event.Answered, 10*clients))
		// BREAK  one server after the other, each when somebody has answers again
		for death := range deaths {
			victim := all[death%servers]
			victim.Ready()
			victim.CrashAt(at, 1)
			answered := len(w.ledger.With(event.Answered))
			w.Until("death "+strconv.Itoa(death+1)+", and the others go on", func(l seen) bool {
				return victim.Restarts() == death/servers+1 && len(l.With(event.Answered)) >= answered+10
			})
		}
		for _, c := range asking {
			c.Enough()
		}
		// OBSERVE  until every caller has its answer or has given up
		v := w.Settle()
		// VERDICT
		killed := 0
		for _, s := range all {
			killed += s.Crashes()
		}
		v.Hit("six deaths", killed == deaths)
		v.Hit("requests delivered again", len(v.Redelivered()) > 0)
		v.Same("every call is answered", v.With(event.Answered), v.asked())
		v.Note("no answer for %s at most", v.Silence().Round(10*time.Millisecond))
	}
}
