package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"warren.example/lab/substrate"
	"warren.example/lab/substrate/vhost"
	"warren.example/messaging/topology"
)

const (
	adminUser      = "admin"
	amqpPort       = 5672
	managementPort = 15672

	nodesKept = "warren.example/nodes" // on a StatefulSet that the lab has scaled to zero
	bootTime  = 3 * time.Minute
)

// Broker is the RabbitMQ of the release.
type Broker struct {
	s         *Substrate
	set       string // the StatefulSet, whose name begins the names of pods and Secrets
	service   string // the headless Service, which makes host names of the pods'
	nodes     int
	passwords map[string]string // by user
	api       vhost.API
	amqp      *forwarder
	web       *forwarder // management, for people
	version   topology.Version
	calm      vhost.Calm
}

func newBroker(ctx context.Context, s *Substrate) (_ *Broker, err error) {
	set, err := s.statefulSet(ctx, "rabbitmq")
	if err != nil {
		return nil, err
	}
	b := &Broker{s: s, set: set.Name, service: set.Spec.ServiceName, nodes: nodesOf(set), passwords: map[string]string{}}
	defer func() {
		if err != nil {
			b.close()
		}
	}()
	for _, c := range set.Spec.Template.Spec.Containers[0].Ports {
		if c.Name == "amqps" {
			return nil, fmt.Errorf("StatefulSet %s: AMQP by TLS alone: the lab does not have the certificates; install without rabbitmq.tls", b.set)
		}
	}
	for _, user := range users() {
		secret, err := s.client.CoreV1().Secrets(s.Namespace).Get(ctx, b.set+"-"+user, metav1.GetOptions{})
		if err != nil {
			return nil, fmt.Errorf("password of broker user %s: %w", user, err)
		}
		b.passwords[user] = string(secret.Data["password"])
	}
	b.api = vhost.API{URL: "http://" + b.set, User: adminUser, Password: b.passwords[adminUser], Client: &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true, // the node at the other end may be gone
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return b.dial(ctx, managementPort) },
	}}}
	if b.amqp, err = forward(func(ctx context.Context) (net.Conn, error) { return b.dial(ctx, amqpPort) }); err != nil {
		return nil, err
	}
	if b.web, err = forward(func(ctx context.Context) (net.Conn, error) { return b.dial(ctx, managementPort) }); err != nil {
		return nil, err
	}
	if err := b.StartAll(ctx); err != nil { // an earlier lab may have been killed in between
		return nil, err
	}
	if b.version, err = b.api.Version(ctx); err != nil {
		return nil, err
	}
	return b, vhost.CheckVersion(b.version)
}

// nodesOf is how many nodes the broker has when it is not scaled to zero.
func nodesOf(set *appsv1.StatefulSet) int {
	switch n, err := strconv.Atoi(set.Annotations[nodesKept]); {
	case set.Spec.Replicas == nil:
		return 1
	case *set.Spec.Replicas == 0 && err == nil:
		return n
	}
	return int(*set.Spec.Replicas)
}

func (b *Broker) close() {
	for _, f := range []*forwarder{b.amqp, b.web} {
		if f != nil {
			f.close()
		}
	}
}

func (b *Broker) pod(node int) string { return fmt.Sprintf("%s-%d", b.set, node) }

// dial connects to the first node that is ready.
func (b *Broker) dial(ctx context.Context, port int) (net.Conn, error) {
	var errs []error
	for i := range b.nodes {
		if !ready(b.s.pods.get(b.pod(i))) {
			continue
		}
		c, err := b.s.tunnel.dial(ctx, b.pod(i), port)
		if err == nil {
			return c, nil
		}
		errs = append(errs, err)
	}
	return nil, errors.Join(append(errs, fmt.Errorf("no node of %s is ready", b.set))...)
}

// url is for this machine.
func (b *Broker) url(user, name string) string { return b.urlAt(b.amqp.Addr().String(), user, name) }

func (b *Broker) urlAt(host, user, name string) string {
	return vhost.URL("amqp", host, user, b.passwords[user], name)
}

// ManagementURL is the management API on this machine, with credentials.
func (b *Broker) managementURL() string {
	u := url.URL{Scheme: "http", Host: b.web.Addr().String(), User: url.UserPassword(adminUser, b.passwords[adminUser])}
	return u.String()
}

// Version is that of the nodes.
func (b *Broker) Version() topology.Version { return b.version }

// Nodes is how many there are, dead ones included.
func (b *Broker) Nodes() int { return b.nodes }

func (b *Broker) node(i int) (*corev1.Pod, error) {
	if i < 0 || i >= b.nodes {
		return nil, fmt.Errorf("node %d: the broker has %d, counted from 0", i, b.nodes)
	}
	pod := b.s.pods.get(b.pod(i))
	if pod == nil {
		return nil, fmt.Errorf("node %d: there is no pod %s", i, b.pod(i))
	}
	return pod, b.s.pods.guard(pod)
}

// beam is a command of the shell about the Erlang VM, whose process id is $p. It
// is found without ps or pgrep, which the image need not have.
func beam(command string) []string {
	return []string{"sh", "-c", `exec >/dev/null 2>&1 # or what runs on in the background keeps us waiting
	for p in /proc/[0-9]*; do
		if read -r name <"$p/comm" && [ "$name" = beam.smp ]; then
			p=${p#/proc/}
			` + command + `
		fi
	done`}
}

var (
	killBeam = beam(`kill -9 "$p"`)
	// Should the lab die before it kills the VM, that goes on by itself.
	stopBeam = beam(`kill -STOP "$p"; { sleep 20; kill -CONT "$p"; } &`)
)

// Crash ends a node's Erlang VM by SIGKILL, from inside its pod, and returns
// when the kubelet has told of exit code 137. The kubelet starts it again.
func (b *Broker) Crash(ctx context.Context, node int) error {
	pod, err := b.node(node)
	if err != nil {
		return err
	}
	if err := b.calm.Wait(ctx); err != nil {
		return fmt.Errorf("crash node %d: %w", node, err)
	}
	ctx, cancel := context.WithTimeout(ctx, crashTime)
	defer cancel()
	b.s.pods.crash(pod, true)
	life := restarts(pod)
	_, asked := b.s.tunnel.exec(ctx, pod, nil, killBeam...) // the shell may die with it
	var death *corev1.ContainerStateTerminated
	err = b.s.pods.await(ctx, pod.Name, func(p *corev1.Pod) bool {
		death = ended(p, life)
		return p == nil || death != nil || restarts(p) > life
	})
	switch {
	case err != nil:
		return fmt.Errorf("crash node %d: %w; kill -9: %w", node, err, asked)
	case death == nil:
		return fmt.Errorf("crash node %d: how pod %s ended is not known", node, pod.Name)
	case death.ExitCode != killedCode:
		return fmt.Errorf("crash node %d: pod %s ended with exit code %d, want %d, of SIGKILL", node, pod.Name, death.ExitCode, killedCode)
	}
	return nil
}

// Start returns when a node answers again.
func (b *Broker) Start(ctx context.Context, node int) error {
	if _, err := b.node(node); err != nil {
		return err
	}
	return b.awaitCluster(ctx)
}

// CrashAll ends every node at once: they are stopped first, because clients of
// the first to die would be served by the last. Before they are up again it scales
// the broker to zero, so that it stays away; the deaths were by SIGKILL all the same.
func (b *Broker) CrashAll(ctx context.Context) error {
	if err := b.calm.Wait(ctx); err != nil {
		return fmt.Errorf("crash all nodes: %w", err)
	}
	stopped := b.each(func(i int) error {
		pod, err := b.node(i)
		if err == nil {
			_, err = b.s.tunnel.exec(ctx, pod, nil, stopBeam...)
		}
		return err
	})
	if err := errors.Join(stopped, b.each(func(i int) error { return b.Crash(ctx, i) })); err != nil {
		return err
	}
	var pods []*corev1.Pod
	var errs []error
	for i := range b.nodes {
		if pod := b.s.pods.get(b.pod(i)); pod != nil {
			pods = append(pods, pod)
			b.s.pods.end(pod) // the StatefulSet's controller may be the first to delete it
		}
	}
	if err := b.scale(ctx, 0); err != nil {
		return err
	}
	for _, pod := range pods {
		// Not by force: two VMs on one volume must not be, so the old pod has to be gone.
		errs = append(errs, b.s.pods.remove(ctx, pod, new(int64(1))))
	}
	for i := range b.nodes {
		errs = append(errs, b.s.pods.await(ctx, b.pod(i), func(p *corev1.Pod) bool { return p == nil }))
	}
	return errors.Join(errs...)
}

// each does it to all nodes at once.
func (b *Broker) each(do func(node int) error) error {
	var all errgroup.Group
	for i := range b.nodes {
		all.Go(func() error { return do(i) })
	}
	return all.Wait()
}

// StartAll brings all nodes back and returns when they are one cluster again
// and every queue has a leader.
func (b *Broker) StartAll(ctx context.Context) error {
	if err := b.scale(ctx, b.nodes); err != nil {
		return err
	}
	return b.awaitCluster(ctx)
}

// scale keeps the number of nodes on the StatefulSet while there are others, for
// a lab that comes after one that was killed.
func (b *Broker) scale(ctx context.Context, nodes int) error {
	keep := "null"
	if nodes != b.nodes {
		keep = strconv.Quote(strconv.Itoa(b.nodes))
	}
	patch := fmt.Sprintf(`{"metadata":{"annotations":{%q:%s}},"spec":{"replicas":%d}}`, nodesKept, keep, nodes)
	_, err := b.s.client.AppsV1().StatefulSets(b.s.Namespace).Patch(ctx, b.set, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("scale StatefulSet %s to %d: %w", b.set, nodes, err)
	}
	return nil
}

// Roll restarts one node after the other, and returns when the last is back.
func (b *Broker) Roll(ctx context.Context) error {
	defer b.s.pods.replace(b.s.pods.list(labels.Set{instance: b.s.Release, component: "rabbitmq"}))()
	patch := fmt.Sprintf(`{"spec":{"template":{"metadata":{"annotations":{"warren.example/rolled":%q}}}}}`, time.Now().Format(time.RFC3339Nano))
	sets := b.s.client.AppsV1().StatefulSets(b.s.Namespace)
	if _, err := sets.Patch(ctx, b.set, types.StrategicMergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
		return fmt.Errorf("roll StatefulSet %s: %w", b.set, err)
	}
	for {
		set, err := sets.Get(ctx, b.set, metav1.GetOptions{})
		if err == nil && set.Status.ObservedGeneration >= set.Generation && set.Status.UpdateRevision == set.Status.CurrentRevision && int(set.Status.ReadyReplicas) == b.nodes {
			return b.awaitCluster(ctx)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("roll StatefulSet %s: %w", b.set, ctx.Err())
		case <-time.After(retryAfter):
		}
	}
}

// awaitCluster returns when all nodes are back; what befalls them from then on is
// no longer the lab's doing.
func (b *Broker) awaitCluster(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, bootTime)
	defer cancel()
	for i := range b.nodes {
		if err := b.s.pods.await(ctx, b.pod(i), ready); err != nil {
			return fmt.Errorf("wait for pod %s: %w", b.pod(i), err)
		}
	}
	for {
		err := b.whole(ctx)
		if err == nil {
			for i := range b.nodes {
				if pod := b.s.pods.get(b.pod(i)); pod != nil {
					b.s.pods.crash(pod, false)
				}
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for the broker to be whole: %w; last: %w", ctx.Err(), err)
		case <-time.After(retryAfter):
		}
	}
}

// whole is nil when every node runs and every queue of the open rooms has a leader.
func (b *Broker) whole(ctx context.Context) error {
	running, err := b.api.Running(ctx)
	if err != nil {
		return err
	}
	if running != b.nodes {
		return fmt.Errorf("%d of %d nodes run", running, b.nodes)
	}
	for _, room := range b.s.roomNames() {
		queues, err := b.api.Queues(ctx, room)
		if err != nil {
			return err
		}
		for _, q := range queues {
			if q.LedBy() == "" {
				return fmt.Errorf("queue %s has no leader", q.Name)
			}
		}
	}
	return nil
}

// Pause is for tests on one machine.
func (b *Broker) Pause(context.Context, int) error {
	return fmt.Errorf("pause a broker node in a pod: %w", substrate.ErrUnsupported)
}

// Resume likewise.
func (b *Broker) Resume(ctx context.Context, node int) error { return b.Pause(ctx, node) }

// Leader is the node that leads a queue.
func (b *Broker) Leader(ctx context.Context, r substrate.Room, queue string) (int, error) {
	room, ok := r.(*Room)
	if !ok {
		return 0, fmt.Errorf("room %T: not of this substrate", r)
	}
	q, err := b.api.Queue(ctx, room.name, queue)
	if err != nil {
		return 0, err
	}
	// rabbit@warren-rabbitmq-2.warren-rabbitmq-nodes.warren.svc.cluster.local
	host := strings.TrimPrefix(q.LedBy(), "rabbit@")
	pod, _, _ := strings.Cut(host, ".")
	node, err := strconv.Atoi(strings.TrimPrefix(pod, b.set+"-"))
	if err != nil || node >= b.nodes {
		return 0, fmt.Errorf("leader of queue %s: node %q is none of %s", queue, q.LedBy(), b.set)
	}
	return node, nil
}

// Command runs rabbitmqctl on a node and returns what it printed.
func (b *Broker) Command(ctx context.Context, node int, args ...string) ([]byte, error) {
	pod, err := b.node(node)
	if err != nil {
		return nil, err
	}
	return b.s.tunnel.exec(ctx, pod, nil, append([]string{"rabbitmqctl"}, args...)...)
}

// remove deletes a room's virtual host, as soon as a node can be asked.
func (b *Broker) remove(ctx context.Context, name string) error {
	for {
		err := b.api.Remove(ctx, name)
		if err == nil || ctx.Err() != nil || vhost.Status(err)/100 == 4 {
			return err
		}
		pause(ctx, retryAfter)
	}
}
