package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"warren.example/lab/substrate"
	"warren.example/lab/substrate/process"
	"warren.example/lab/substrate/vhost"
	"warren.example/messaging/event"
	"warren.example/messaging/topology"
)

// drainSeconds is what a closing room leaves its services.
const drainSeconds = 3

// Room is one virtual host of the release's broker, a database for each kind of
// service, and pods that are labelled with its name.
type Room struct {
	s    *Substrate
	seq  int
	name string // of the virtual host, the run, and the label
	ctx  context.Context
	end  context.CancelFunc
	told int // disturbances before it was opened

	linesMu sync.Mutex
	lines   func(event.Line)
	missed  []string

	links     atomic.Int32
	mu        sync.Mutex
	processes []*Process
	workloads []*Workload
	databases map[substrate.Kind]string
	closed    bool
}

var notInName = regexp.MustCompile(`[^a-z0-9-]+`)

// roomName is short enough to begin the name of a pod, which is a host name.
func roomName(lab string, seq int, name string) string {
	const longest = 44
	name = fmt.Sprintf("lab-%s-%d-%s", lab, seq, notInName.ReplaceAllString(strings.ToLower(name), "-"))
	return strings.Trim(name[:min(len(name), longest)], "-")
}

func (r *Room) open(ctx context.Context, change func(*topology.Topology)) error {
	b := r.s.broker
	t := topology.For(b.version)
	if change != nil {
		change(&t)
	}
	err := vhost.Apply(ctx, b.api, r.name, t, r.URL)
	b.calm.Declared()
	return err
}

// URL is what the lab itself can dial: a port of this machine that leads to a
// broker node that is ready. Services in pods have the Service's name instead.
func (r *Room) URL(user string) string { return r.s.broker.url(user, r.name) }

// NodeURLs lead to the pods themselves, whether they are ready or not.
func (r *Room) NodeURLs(user string) ([]string, error) {
	u, err := r.serviceURL()
	if err != nil {
		return nil, fmt.Errorf("nodes of the broker for %s: %w", user, err)
	}
	var urls []string
	for node := range r.s.broker.nodes {
		u.Host = fmt.Sprintf("%s.%s:%d", r.s.broker.pod(node), r.s.broker.service, amqpPort)
		urls = append(urls, u.String())
	}
	return urls, nil
}

// serviceURL is the release's AMQP_URL with the room's virtual host. The users are
// the broker's, and each template names its own, so that it serves all of them.
func (r *Room) serviceURL() (*url.URL, error) {
	template, err := r.s.template(substrate.CalculatorServer)
	if err != nil {
		return nil, err
	}
	u, err := url.Parse(setting(template, "AMQP_URL"))
	if err != nil || u.Scheme != "amqp" || u.Port() == "" {
		return nil, fmt.Errorf("it takes amqp://host:port, the release has %s: %w", u, substrate.ErrUnsupported)
	}
	u.Path = "/" + r.name
	return u, nil
}

// AdminURL is the same as the broker's administrator.
func (r *Room) AdminURL() string { return r.s.broker.url(adminUser, r.name) }

// Queue counts messages. It asks again while no node answers.
func (r *Room) Queue(ctx context.Context, name string) (substrate.QueueState, error) {
	for {
		q, err := r.s.broker.api.State(ctx, r.name, name, r.AdminURL())
		if status := vhost.Status(err); err == nil || ctx.Err() != nil || status/100 == 4 {
			return q, err
		}
		pause(ctx, retryAfter)
	}
}

// Disturbances are what happened to pods of the room or the release.
func (r *Room) Disturbances() []string { return r.s.pods.disturbances(r.told) }

// Missed are the lives whose logs were gone too soon.
func (r *Room) Missed() []string {
	r.linesMu.Lock()
	defer r.linesMu.Unlock()
	return slices.Clone(r.missed)
}

func (r *Room) miss(pod string, life int) {
	r.linesMu.Lock()
	defer r.linesMu.Unlock()
	r.missed = append(r.missed, fmt.Sprintf("pod %s: the log of life %d was gone before all of it was read", pod, life+1))
}

// Start starts a service in a pod of its own.
func (r *Room) Start(ctx context.Context, svc substrate.Service) (substrate.Process, error) {
	template, err := r.s.template(svc.Kind)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", svc.Name, err)
	}
	env, err := r.settings(ctx, template, svc)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", svc.Name, err)
	}
	p, err := r.admit(ctx, svc, clone(template, r.name, r.name+"-"+svc.Name, svc, env))
	if err == nil {
		err = p.runs(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", svc.Name, err)
	}
	return p, nil
}

// admit makes a pod, unless the room is closed. A name that is taken is refused
// by the API server.
func (r *Room) admit(ctx context.Context, svc substrate.Service, pod *corev1.Pod) (*Process, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return nil, errors.New("the room is closed")
	}
	if _, err := r.s.client.CoreV1().Pods(r.s.Namespace).Create(ctx, pod, metav1.CreateOptions{}); err != nil {
		return nil, err
	}
	// Before the informer has seen a pod it would count as gone.
	if err := r.s.pods.await(ctx, pod.Name, func(p *corev1.Pod) bool { return p != nil }); err != nil {
		return nil, err
	}
	p := &Process{occupant: r.take(pod.Name, ""), service: svc}
	r.processes = append(r.processes, p)
	return p, nil
}

// settings are the overlay of a template.
func (r *Room) settings(ctx context.Context, template corev1.PodTemplateSpec, svc substrate.Service) (map[string]string, error) {
	env := process.Settings(r.name, svc.Name)
	// The template names the user and the file with the password: users are the
	// broker's, not a virtual host's.
	url, err := withPath(setting(template, "AMQP_URL"), r.name)
	if err != nil {
		return nil, fmt.Errorf("WARREN_AMQP_URL of the release: %w (the lab needs broker.mode bundled)", err)
	}
	env["AMQP_URL"] = url
	if svc.Kind == substrate.Client && svc.Args[0] != "load" {
		env["ADMIN_ADDR"] = "" // nobody could ask in time
	}
	if database := setting(template, "DATABASE"); strings.HasPrefix(database, "postgres") {
		if env["DATABASE"], err = r.database(ctx, svc.Kind, database); err != nil {
			return nil, err
		}
	}
	maps.Copy(env, svc.Env)
	return env, nil
}

// tell passes an event line on, from one goroutine at a time.
func (r *Room) tell(l event.Line) {
	r.linesMu.Lock()
	defer r.linesMu.Unlock()
	if r.lines != nil {
		r.lines(l)
	}
}

// Close ends the room's pods and removes its virtual host and databases. Each
// step runs even if an earlier one failed.
func (r *Room) Close(ctx context.Context) error {
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return nil
	}
	r.closed = true
	r.mu.Unlock()
	// 1. the broker, which a scenario may have left away and step 4 needs
	errs := []error{r.s.broker.scale(ctx, r.s.broker.nodes)}
	for _, w := range r.workloads { // 2. services
		errs = append(errs, w.close(ctx))
	}
	errs = append(errs, r.s.clear(ctx, labels.Set{roomLabel: r.name}))
	r.end() // 3. the reading of their logs
	for _, p := range r.processes {
		<-p.log.closed
		p.leave()
	}
	for _, name := range r.databases { // 4. where their memories and messages were
		errs = append(errs, r.s.dropDatabase(ctx, name))
	}
	errs = append(errs, r.s.broker.remove(ctx, r.name))
	r.s.forget(r)
	return errors.Join(errs...)
}

// clear deletes the pods with these labels and returns when they are gone. It
// asks the API server, which knows of pods that the lab never saw.
func (s *Substrate) clear(ctx context.Context, which labels.Set) error {
	list, err := s.client.CoreV1().Pods(s.Namespace).List(ctx, metav1.ListOptions{LabelSelector: which.String()})
	if err != nil {
		return fmt.Errorf("find the pods of %s: %w", which, err)
	}
	var errs []error
	for _, pod := range list.Items {
		errs = append(errs, s.pods.remove(ctx, &pod, new(int64(drainSeconds))))
	}
	for _, pod := range list.Items {
		err := s.pods.await(ctx, pod.Name, func(p *corev1.Pod) bool { return p == nil || p.UID != pod.UID })
		if err != nil {
			errs = append(errs, fmt.Errorf("wait for the end of pod %s: %w", pod.Name, err))
		}
	}
	return errors.Join(errs...)
}

// users are all that the release's broker has for the suite.
func users() []string {
	names := []string{adminUser}
	for _, u := range topology.Users() {
		names = append(names, u.Name)
	}
	return names
}
