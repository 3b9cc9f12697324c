package scenario

import (
	"warren.example/lab/substrate"
	"warren.example/messaging/event"
)

// The server is upgraded by Helm under load: new pods come, the old ones go.
//
// Promise: a new pod serves before an old one goes, and each that goes drains, so
// that every call is answered and no request is delivered twice. Control: with
// servers that leave at once the same upgrade must make the broker deliver again
// what they had in hand, though Kubernetes does everything as before.
var rollingUpgrade = Scenario{
	Name:    "rolling-upgrade",
	Topic:   "Kubernetes",
	Broke:   "helm upgrade replaces every server under load",
	Promise: "no call fails, nothing is delivered twice",
	Needs:   Needs{Kubernetes: true},
	Run:     upgradeServers(nil),
	Controls: []Control{{
		Name:   "no drain",
		Shows:  "what the old pods had in hand is delivered again",
		Breaks: onceEach,
		Run:    upgradeServers(Settings{"DRAIN": "false"}),
	}},
}

func upgradeServers(settings Settings) func(*World) {
	return func(w *World) {
		// ARRANGE  two pods that share sixteen callers' requests, each with some in hand at any time
		servers := w.Deploy(substrate.CalculatorServer, 2, slowly.With(settings))
		load := w.Load("--endless", "--in-flight", "16", "--timeout", "60s")
		w.Until("calls are answered", passed(event.Answered, 100))
		// BREAK
		old := servers.Pods()
		servers.Upgrade(Settings{"LOG_LEVEL": "warn"})
		load.Enough()
		// OBSERVE
		v := w.Settle()
		// VERDICT
		for _, pod := range old {
			v.Hit("requests in every old pod's hands when it was told to leave", len(v.inHand(pod)) > 0)
		}
		v.None(onceEach, v.AtLeast(2, event.Delivered))
		v.Same(everyCall, v.With(event.Answered), v.asked())
	}
}
