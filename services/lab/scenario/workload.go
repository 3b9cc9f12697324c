package scenario

import (
	"context"
	"fmt"
	"time"

	"warren.example/lab/substrate"
)

// rollWithin bounds what replaces pods one after the other, on one machine; see
// the other budgets.
const rollWithin = 40 * time.Second

// Workload is a service in several pods that Kubernetes keeps running: the
// chart, with one service in it.
type Workload struct {
	w    *World
	name string
	pods substrate.Workload
	met  map[string]*Servant // every pod that Pods has named, by name
}

// Deploy installs a service in so many pods and returns when they are ready.
func (w *World) Deploy(kind substrate.Kind, replicas int, s Settings) *Workload {
	d := &Workload{w: w, name: w.name("workload"), met: map[string]*Servant{}}
	w.tell(fmt.Sprintf("installing %s, %d pods of %s", d.name, replicas, kind))
	d.do("install", func(ctx context.Context) (err error) {
		d.pods, err = substrate.Deploy(ctx, w.room, substrate.Service{Kind: kind, Name: d.name, Env: s, Restart: true}, replicas)
		return err
	})
	w.workloads = append(w.workloads, d)
	return d
}

func (d *Workload) do(what string, do func(context.Context) error) {
	ctx, cancel := context.WithTimeout(d.w.ctx, d.w.slow*rollWithin)
	defer cancel()
	d.w.must(do(ctx), "%s %s", what, d.name)
}

// Pods are those that serve, oldest first.
func (d *Workload) Pods() []*Servant {
	var all []*Servant
	for _, p := range d.pods.Pods() {
		if d.met[p.Name()] == nil {
			d.met[p.Name()] = &Servant{d.w, p}
		}
		all = append(all, d.met[p.Name()])
	}
	return all
}

// Delete deletes a pod, as Kubernetes does when it needs the place: SIGTERM, and
// its grace period to drain in. It returns when another is ready and it is gone.
func (d *Workload) Delete(pod *Servant) {
	d.w.tell("deleting " + pod.Name())
	d.do("delete a pod of", pod.Terminate)
	d.do("wait for", d.pods.WaitReady)
}

// DeleteByForce does not wait for the end of a pod that may hang.
func (d *Workload) DeleteByForce(pod *Servant) {
	d.w.tell("deleting " + pod.Name() + " by force")
	d.w.ledger.Killed(pod.Name(), 1)
	d.do("delete by force a pod of", func(ctx context.Context) error { return d.pods.DeleteByForce(ctx, pod.Process) })
}

// Move has a pod replaced by one on another machine.
func (d *Workload) Move(pod *Servant) {
	d.w.tell("moving " + pod.Name())
	d.do("move a pod of", func(ctx context.Context) error { return d.pods.Move(ctx, pod.Process) })
}

// Upgrade changes settings by `helm upgrade` and returns when the last pod of
// the old kind is gone.
func (d *Workload) Upgrade(s Settings) {
	d.w.tell("upgrading " + d.name)
	d.do("upgrade", func(ctx context.Context) error { return d.pods.Upgrade(ctx, s) })
}

// end lets all pods finish by SIGTERM, as scaling to zero does, and returns when
// their last lines have been read.
func (d *Workload) end() {
	ctx, cancel := context.WithTimeout(d.w.ctx, d.w.slow*rollWithin)
	defer cancel()
	d.Pods()
	if d.pods.Scale(ctx, 0) != nil {
		return
	}
	for _, p := range d.met {
		_, _ = p.Wait(ctx)
	}
}
