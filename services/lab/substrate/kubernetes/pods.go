package kubernetes

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
)

const (
	partOf     = "app.kubernetes.io/part-of"
	suite      = "warren"
	instance   = "app.kubernetes.io/instance"
	component  = "app.kubernetes.io/component"
	roomLabel  = "warren.example/room"
	killedCode = 137 // 128 + SIGKILL
)

// pods knows the suite's pods of one namespace as the API server does, a moment
// late, and notes what happened to them that the lab did not order.
type pods struct {
	client    kubernetes.Interface
	namespace string
	release   string
	rooms     string // begins the names of this lab's rooms, and of releases in them

	stop     chan struct{}
	informer cache.SharedIndexInformer

	mu      sync.Mutex
	changed chan struct{}                 // closed and replaced at every change
	dying   map[types.UID]bool            // restarts of these are the lab's doing
	ending  map[types.UID]bool            // however these end, it is
	leaving map[types.UID]bool            // their end in peace is; true once it has begun
	noted   map[types.UID]map[string]bool // a disturbance is told once
	told    []string                      // disturbances
	watched map[string]func(*corev1.Pod)  // by pod
	met     map[string]func(*corev1.Pod)  // by release: called for each of its pods
}

func newPods(client kubernetes.Interface, namespace, release, rooms string) *pods {
	return &pods{
		client: client, namespace: namespace, release: release, rooms: rooms, stop: make(chan struct{}), changed: make(chan struct{}),
		dying: map[types.UID]bool{}, ending: map[types.UID]bool{}, leaving: map[types.UID]bool{}, noted: map[types.UID]map[string]bool{}, watched: map[string]func(*corev1.Pod){}, met: map[string]func(*corev1.Pod){},
	}
}

// watchPods returns when the pods that there are, are known.
func watchPods(ctx context.Context, client kubernetes.Interface, namespace, release, rooms string) (*pods, error) {
	p := newPods(client, namespace, release, rooms)
	// An informer lists and watches again by itself when the API server was away.
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(namespace),
		informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.LabelSelector = partOf + "=" + suite }))
	p.informer = factory.Core().V1().Pods().Informer()
	_, err := p.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(o any) { p.see(nil, o.(*corev1.Pod)) },
		UpdateFunc: func(before, now any) { p.see(before.(*corev1.Pod), now.(*corev1.Pod)) },
		DeleteFunc: func(o any) {
			if last, ok := o.(cache.DeletedFinalStateUnknown); ok {
				o = last.Obj
			}
			if pod, ok := o.(*corev1.Pod); ok {
				p.gone(pod)
			}
		},
	})
	if err != nil {
		return nil, err
	}
	factory.Start(p.stop)
	if !cache.WaitForCacheSync(ctx.Done(), p.informer.HasSynced) {
		p.close()
		return nil, fmt.Errorf("list the pods of namespace %s: %w", namespace, ctx.Err())
	}
	return p, nil
}

func (p *pods) close() { close(p.stop) }

// see is called for every change of a pod.
func (p *pods) see(before, now *corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if before != nil && before.UID != now.UID { // the watch missed the end of one, and another has its name
		p.deleted(before)
		before = nil
	}
	if now.DeletionTimestamp != nil {
		p.deleted(now)
	}
	if now.Status.Reason == "Evicted" {
		p.note(now, "was evicted: "+now.Status.Message)
	}
	for _, s := range now.Status.ContainerStatuses {
		for _, t := range []*corev1.ContainerStateTerminated{s.State.Terminated, s.LastTerminationState.Terminated} {
			if t != nil && t.Reason == "OOMKilled" {
				p.note(now, "ran out of memory")
			}
		}
	}
	// Services die and start again as scenarios want; broker and database do not.
	if now.Labels[instance] == p.release && !p.dying[now.UID] && before != nil && restarts(now) > restarts(before) {
		p.note(now, fmt.Sprintf("restarted (%d)", restarts(now)))
	}
	p.change(now)
}

func (p *pods) gone(pod *corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.deleted(pod)
	p.change(pod)
}

// deleted notes that a pod goes or is gone; the caller holds the lock. Of one
// that was to leave it notes only what takes its time to drain away.
func (p *pods) deleted(pod *corev1.Pod) {
	_, leaves := p.leaving[pod.UID]
	switch {
	case p.ending[pod.UID]:
	case leaves && inPeace(pod):
		p.leaving[pod.UID] = true
	default:
		p.note(pod, "was deleted")
	}
}

// inPeace says whether a pod that goes has its own time to drain. The kubelet
// itself takes that away, when the container has ended.
func inPeace(pod *corev1.Pod) bool {
	own, left := pod.Spec.TerminationGracePeriodSeconds, pod.DeletionGracePeriodSeconds
	return own != nil && left != nil && *left == *own || pod.DeletionTimestamp != nil && status(pod).State.Running == nil
}

// ours says whether a pod is the release's or in a room of this lab: another
// lab's are its own affair.
func (p *pods) ours(pod *corev1.Pod) bool {
	of := pod.Labels[instance]
	return of == p.release || strings.HasPrefix(of, p.rooms)
}

// note records a disturbance once; the caller holds the lock.
func (p *pods) note(pod *corev1.Pod, what string) {
	if !p.ours(pod) || p.noted[pod.UID][what] {
		return
	}
	if p.noted[pod.UID] == nil {
		p.noted[pod.UID] = map[string]bool{}
	}
	p.noted[pod.UID][what] = true
	p.told = append(p.told, fmt.Sprintf("pod %s %s, and not by the lab", pod.Name, what))
}

// change wakes whoever waits; the caller holds the lock.
func (p *pods) change(pod *corev1.Pod) {
	if f := p.watched[pod.Name]; f != nil {
		f(pod)
	}
	if f := p.met[pod.Labels[instance]]; f != nil {
		go f(pod) // it watches the pod in its turn
	}
	close(p.changed)
	p.changed = make(chan struct{})
}

// disturbances are those after the first n.
func (p *pods) disturbances(n int) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.told[n:])
}

// crash says whether the pod's restarts are the lab's doing from now on.
func (p *pods) crash(pod *corev1.Pod, ours bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.dying[pod.UID] = ours
}

// end says that the pod's end is the lab's doing.
func (p *pods) end(pod *corev1.Pod) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ending[pod.UID] = true
}

// replace says that until done is called whoever keeps these pods running takes
// them away on the lab's behalf, in peace.
func (p *pods) replace(these []*corev1.Pod) (done func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, pod := range these {
		p.leaving[pod.UID] = false
	}
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, pod := range these {
			if !p.leaving[pod.UID] {
				delete(p.leaving, pod.UID)
			}
		}
	}
}

// watch has f called at every change of a pod.
func (p *pods) watch(name string, f func(*corev1.Pod)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.watched[name] = f
}

// unwatch ends it.
func (p *pods) unwatch(name string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.watched, name)
}

// watchRelease has f called for the pods of a room's release.
func (p *pods) watchRelease(release string, f func(*corev1.Pod)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.met[release] = f
}

// unwatchRelease ends it.
func (p *pods) unwatchRelease(release string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.met, release)
}

// get is the pod as it was last seen, or nil.
func (p *pods) get(name string) *corev1.Pod {
	o, ok, err := p.informer.GetStore().GetByKey(p.namespace + "/" + name)
	if err != nil || !ok {
		return nil
	}
	return o.(*corev1.Pod)
}

// list is the pods with all of these labels.
func (p *pods) list(want labels.Set) []*corev1.Pod {
	var found []*corev1.Pod
	for _, o := range p.informer.GetStore().List() {
		if pod := o.(*corev1.Pod); want.AsSelector().Matches(labels.Set(pod.Labels)) {
			found = append(found, pod)
		}
	}
	slices.SortFunc(found, func(a, b *corev1.Pod) int { return a.CreationTimestamp.Compare(b.CreationTimestamp.Time) })
	return found
}

// await returns when is says so of the pod, nil if there is none, or when ctx
// ends.
func (p *pods) await(ctx context.Context, name string, is func(*corev1.Pod) bool) error {
	return p.awaitAny(ctx, func() bool { return is(p.get(name)) })
}

// awaitAny returns when something is so, or when ctx ends.
func (p *pods) awaitAny(ctx context.Context, is func() bool) error {
	for {
		p.mu.Lock()
		changed := p.changed
		p.mu.Unlock()
		if is() {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// guard refuses a pod that is neither the release's nor a room's, of a lab that
// was killed included: roles cannot select by label, so this is what keeps the
// lab from others' pods.
func (p *pods) guard(pod *corev1.Pod) error {
	l := pod.Labels
	if l[partOf] != suite || !p.ours(pod) && l[roomLabel] == "" {
		return fmt.Errorf("pod %s: labels %s=%s, %s=%s: neither of release %s nor in a room of a lab; left alone",
			pod.Name, partOf, l[partOf], instance, l[instance], p.release)
	}
	return nil
}

// remove deletes a pod on the lab's behalf and does not wait. It grants these
// seconds, or if nil the pod's own. A pod that is gone is no error.
func (p *pods) remove(ctx context.Context, pod *corev1.Pod, grace *int64) error {
	if err := p.guard(pod); err != nil {
		return err
	}
	p.end(pod)
	err := p.client.CoreV1().Pods(p.namespace).Delete(ctx, pod.Name, metav1.DeleteOptions{
		GracePeriodSeconds: grace, Preconditions: &metav1.Preconditions{UID: &pod.UID},
	})
	if err = ignoreNotFound(err); err != nil && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete pod %s: %w", pod.Name, err)
	}
	return nil
}

func ignoreNotFound(err error) error {
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// restarts of a pod's only container.
func restarts(pod *corev1.Pod) int { return int(status(pod).RestartCount) }

// status of a pod's only container.
func status(pod *corev1.Pod) corev1.ContainerStatus {
	if pod == nil || len(pod.Status.ContainerStatuses) == 0 {
		return corev1.ContainerStatus{}
	}
	return pod.Status.ContainerStatuses[0]
}

// ready says whether a pod gets traffic.
func ready(pod *corev1.Pod) bool {
	return pod != nil && pod.DeletionTimestamp == nil && slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// over says whether a pod will never run again.
func over(pod *corev1.Pod) bool {
	return pod == nil || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
}

// ended is how life n of a pod's container ended, or nil if it has not, or if
// that is no longer known.
func ended(pod *corev1.Pod, n int) *corev1.ContainerStateTerminated {
	s := status(pod)
	switch int(s.RestartCount) {
	case n:
		return s.State.Terminated
	case n + 1:
		return s.LastTerminationState.Terminated
	}
	return nil
}
