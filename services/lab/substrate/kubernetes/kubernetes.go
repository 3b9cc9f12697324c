// Package kubernetes runs scenarios in a Kubernetes cluster that has the suite's
// chart installed. It takes broker, database and pod templates from the release,
// so that no manifest of a service exists outside the chart. Each room is a
// virtual host, databases and pods of its own, which are gone after Close.
//
// A crash is SIGKILL inside the pod: a deletion, even by force, sends SIGTERM
// first and leaves time to drain.
package kubernetes

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"sync"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"

	"warren.example/lab/substrate"
	"warren.example/messaging/event"
	"warren.example/messaging/topology"
)

// Options says where the release is.
type Options struct {
	Config             *rest.Config
	Namespace, Release string
	// Cluster installs releases for rooms and stops machines. Without it, in a
	// pod, what needs that is not possible.
	Cluster Cluster
	// Own says that it is a kind cluster of ours, used by one lab at a time:
	// kubelets restart a crashed container within a second, where elsewhere the
	// pause grows up to five minutes, and rooms that are there were left by a lab
	// that was killed.
	Own bool
}

// Cluster is what package cluster does beyond the API.
type Cluster interface {
	Helm(ctx context.Context, args ...string) ([]byte, error)
	StopNode(ctx context.Context, name string) error
	StartNode(ctx context.Context, name string) error
	Signal(ctx context.Context, node, container, signal string) error
}

// Substrate is a release in a cluster.
type Substrate struct {
	Options
	client kubernetes.Interface
	tunnel *tunnel
	pods   *pods
	broker *Broker
	id     string // in the names of rooms: two labs may share a cluster

	templates map[substrate.Kind]corev1.PodTemplateSpec

	mu    sync.Mutex
	seq   int
	rooms map[*Room]bool
	token string // of the auditor's API
}

// New returns when the release's broker answers.
func New(ctx context.Context, o Options) (_ *Substrate, err error) {
	klog.LogToStderr(false) // what the library says besides its errors is for nobody here
	klog.SetOutput(io.Discard)
	config := rest.CopyConfig(o.Config)
	config.QPS, config.Burst = 50, 100 // by default five a second, and rooms wait for each other
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	o.Config = config
	s := &Substrate{
		Options: o, client: client, tunnel: &tunnel{config, client, o.Namespace},
		id: strings.ToLower(rand.Text()[:5]), rooms: map[*Room]bool{}, templates: map[substrate.Kind]corev1.PodTemplateSpec{},
	}
	if err := s.findTemplates(ctx); err != nil {
		return nil, err
	}
	if s.pods, err = watchPods(ctx, client, o.Namespace, o.Release, "lab-"+s.id+"-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close(context.WithoutCancel(ctx)))
		}
	}()
	if s.broker, err = newBroker(ctx, s); err != nil {
		return nil, err
	}
	if o.Own {
		return s, s.sweep(ctx)
	}
	return s, nil
}

// findTemplates reads the release's own workloads.
func (s *Substrate) findTemplates(ctx context.Context) error {
	all := metav1.ListOptions{LabelSelector: labels.Set{partOf: suite, instance: s.Release}.String()}
	deployments, err := s.client.AppsV1().Deployments(s.Namespace).List(ctx, all)
	if err != nil {
		return fmt.Errorf("workloads of release %s: %w", s.Release, err)
	}
	sets, err := s.client.AppsV1().StatefulSets(s.Namespace).List(ctx, all)
	if err != nil {
		return fmt.Errorf("workloads of release %s: %w", s.Release, err)
	}
	for _, d := range deployments.Items {
		s.templates[substrate.Kind(d.Labels[component])] = d.Spec.Template
	}
	for _, set := range sets.Items {
		s.templates[substrate.Kind(set.Labels[component])] = set.Spec.Template
	}
	for _, kind := range []substrate.Kind{substrate.CalculatorServer, substrate.Client, substrate.DeadLetterAuditor} {
		if _, err := s.template(kind); err != nil {
			return err
		}
	}
	return nil
}

func (s *Substrate) template(kind substrate.Kind) (corev1.PodTemplateSpec, error) {
	t, ok := s.templates[kind]
	if !ok {
		return t, fmt.Errorf("release %s in namespace %s: no workload with label %s=%s; is the chart installed there?", s.Release, s.Namespace, component, kind)
	}
	return t, nil
}

func (s *Substrate) statefulSet(ctx context.Context, of string) (*appsv1.StatefulSet, error) {
	sets, err := s.client.AppsV1().StatefulSets(s.Namespace).List(ctx, metav1.ListOptions{
		LabelSelector: labels.Set{partOf: suite, instance: s.Release, component: of}.String(),
	})
	if err != nil {
		return nil, err
	}
	if len(sets.Items) != 1 {
		return nil, fmt.Errorf("release %s in namespace %s: %d StatefulSets with label %s=%s, want one: the lab needs broker.mode bundled",
			s.Release, s.Namespace, len(sets.Items), component, of)
	}
	return &sets.Items[0], nil
}

// auditorToken is the bearer token of the auditor's API, from where the
// template mounts it.
func (s *Substrate) auditorToken(ctx context.Context) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.token != "" {
		return s.token, nil
	}
	token, err := s.mounted(ctx, s.templates[substrate.DeadLetterAuditor], "token")
	s.token = token
	return token, err
}

// byRoom begins the name of whatever belongs to a room of some lab.
const byRoom = "^lab-[a-z0-9]{5}-[0-9]+-"

// sweep removes what a lab left that was killed.
func (s *Substrate) sweep(ctx context.Context) error {
	left := metav1.ListOptions{LabelSelector: roomLabel}
	errs := []error{s.sweepReleases(ctx)}
	list, err := s.client.CoreV1().Pods(s.Namespace).List(ctx, left)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	rooms := map[string]bool{}
	for _, pod := range list.Items {
		rooms[pod.Labels[roomLabel]] = true
	}
	for room := range rooms {
		errs = append(errs, s.clear(ctx, labels.Set{roomLabel: room}))
	}
	secrets, err := s.client.CoreV1().Secrets(s.Namespace).List(ctx, left)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, secret := range secrets.Items {
		errs = append(errs, ignoreNotFound(s.client.CoreV1().Secrets(s.Namespace).Delete(ctx, secret.Name, metav1.DeleteOptions{})))
	}
	return errors.Join(append(errs, s.sweepVhosts(ctx), s.sweepDatabases(ctx), s.sweepMachines(ctx))...)
}

func (s *Substrate) sweepVhosts(ctx context.Context) error {
	var all []struct{ Name string }
	errs := []error{s.broker.api.Get(ctx, "vhosts", &all)}
	for _, v := range all {
		if regexp.MustCompile(byRoom).MatchString(v.Name) {
			errs = append(errs, s.broker.remove(ctx, v.Name))
		}
	}
	return errors.Join(errs...)
}

// sweepMachines opens the machines that a lab has closed.
func (s *Substrate) sweepMachines(ctx context.Context) error {
	nodes, err := s.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: closedByLab})
	if err != nil {
		return err
	}
	var errs []error
	for _, n := range nodes.Items {
		errs = append(errs, s.cordon(ctx, n.Name, false))
	}
	return errors.Join(errs...)
}

// Name is "kubernetes".
func (s *Substrate) Name() string { return "kubernetes" }

// Ours is true of a kind cluster of the lab's.
func (s *Substrate) Ours() bool { return s.Own }

// Patience is what a pod takes to start, to be seen ready and to be seen dead,
// and on somebody's cluster the kubelet's growing pause before each restart.
func (s *Substrate) Patience() int {
	if s.Own {
		return 4
	}
	return 15
}

// Broker is the RabbitMQ that rooms are in.
func (s *Substrate) Broker() substrate.Broker { return s.broker }

// ManagementURL is the broker's management API on this machine, with credentials.
func (s *Substrate) ManagementURL() string { return s.broker.managementURL() }

// Open makes a room; see substrate.Substrate.
func (s *Substrate) Open(ctx context.Context, name string, change func(*topology.Topology), lines func(event.Line)) (substrate.Room, error) {
	if err := s.broker.StartAll(ctx); err != nil {
		return nil, fmt.Errorf("revive broker: %w", err)
	}
	s.mu.Lock()
	s.seq++
	r := &Room{s: s, seq: s.seq, name: roomName(s.id, s.seq, name), lines: lines, databases: map[substrate.Kind]string{}}
	s.rooms[r] = true
	s.mu.Unlock()
	r.told = len(s.pods.disturbances(0))
	r.ctx, r.end = context.WithCancel(context.WithoutCancel(ctx))
	if err := r.open(ctx, change); err != nil {
		return nil, errors.Join(fmt.Errorf("room %s: %w", name, err), r.Close(context.WithoutCancel(ctx)))
	}
	return r, nil
}

// roomNames are of the rooms that are open.
func (s *Substrate) roomNames() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var names []string
	for r := range s.rooms {
		names = append(names, r.name)
	}
	return names
}

func (s *Substrate) forget(r *Room) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.rooms, r)
}

// Close removes the rooms and leaves the release as it was found.
func (s *Substrate) Close(ctx context.Context) error {
	s.mu.Lock()
	rooms := make([]*Room, 0, len(s.rooms))
	for r := range s.rooms {
		rooms = append(rooms, r)
	}
	s.mu.Unlock()
	var errs []error
	if s.broker != nil {
		errs = append(errs, s.broker.scale(ctx, s.broker.nodes))
	}
	for _, r := range rooms {
		errs = append(errs, r.Close(ctx))
	}
	if s.broker != nil {
		s.broker.close()
	}
	if s.pods != nil {
		s.pods.close()
	}
	return errors.Join(errs...)
}
