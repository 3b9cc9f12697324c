package kubernetes

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"warren.example/lab/internal/host"
	"warren.example/lab/substrate"
	"warren.example/messaging/contract"
)

// Workload is a release of the chart in a room, of one service, with the room's
// virtual host as an external broker; see substrate.Workload.
type Workload struct {
	room     *Room
	service  substrate.Service
	release  string
	replicas int
	env      map[string]string
	known    map[string]*Process // by pod; guarded by room.mu
}

// values of charts/warren by the kind of service.
var valuesOf = map[substrate.Kind]string{
	substrate.CalculatorServer: "server", substrate.Client: "client", substrate.DeadLetterAuditor: "auditor",
}

// Deploy installs the service and returns when its pods are ready.
func (r *Room) Deploy(ctx context.Context, svc substrate.Service, replicas int) (substrate.Workload, error) {
	if r.s.Cluster == nil {
		return nil, fmt.Errorf("deploy %s: no helm in a pod: %w", svc.Name, substrate.ErrUnsupported)
	}
	if valuesOf[svc.Kind] == "" {
		return nil, fmt.Errorf("deploy %s: no service of kind %q", svc.Name, svc.Kind)
	}
	if svc.Args != nil {
		return nil, fmt.Errorf("deploy %s: arguments %q: a workload's are the chart's", svc.Name, svc.Args)
	}
	w := &Workload{
		room: r, service: svc, release: fmt.Sprintf("lab-%s-%d-%s", r.s.id, r.seq, svc.Name),
		replicas: replicas, env: maps.Clone(svc.Env), known: map[string]*Process{},
	}
	if w.env == nil {
		w.env = map[string]string{}
	}
	if err := w.secrets(ctx); err != nil {
		return nil, fmt.Errorf("deploy %s: %w", svc.Name, err)
	}
	r.mu.Lock()
	r.workloads = append(r.workloads, w)
	r.mu.Unlock()
	r.s.pods.watchRelease(w.release, w.meet)
	if err := w.helm(ctx); err != nil {
		return nil, fmt.Errorf("deploy %s: %w", svc.Name, err)
	}
	return w, w.WaitReady(ctx)
}

// secrets are what an external broker and database are given by.
func (w *Workload) secrets(ctx context.Context) error {
	r := w.room
	service := fmt.Sprintf("%s.%s.svc:%d", r.s.broker.set, r.s.Namespace, amqpPort)
	for _, user := range []string{contract.UserServer, contract.UserClient, contract.UserAuditor} {
		if err := w.secret(ctx, user, map[string]string{"uri": r.s.broker.urlAt(service, user, r.name)}); err != nil {
			return err
		}
	}
	return w.databaseSecret(ctx)
}

func (w *Workload) secret(ctx context.Context, name string, data map[string]string) error {
	_, err := w.room.s.client.CoreV1().Secrets(w.room.s.Namespace).Create(ctx, &corev1.Secret{
		ObjectMeta: metav1.ObjectMeta{
			Name:   w.release + "-" + name,
			Labels: map[string]string{partOf: suite, instance: w.release, roomLabel: w.room.name},
		},
		StringData: data,
	}, metav1.CreateOptions{})
	return err
}

// databaseSecret gives the release the room's databases with the passwords of
// the roles that own them.
func (w *Workload) databaseSecret(ctx context.Context) error {
	s := w.room.s
	data := map[string]string{}
	for _, kind := range []substrate.Kind{substrate.CalculatorServer, substrate.DeadLetterAuditor} {
		template := s.templates[kind]
		url := setting(template, "DATABASE")
		if !strings.HasPrefix(url, "postgres") {
			return fmt.Errorf("database.mode of release %s: pods of one workload share no SQLite file: %w", s.Release, substrate.ErrUnsupported)
		}
		own, err := w.room.database(ctx, kind, url)
		if err != nil {
			return err
		}
		password, err := s.mounted(ctx, template, "database-password")
		if err != nil {
			return err
		}
		data[valuesOf[kind]+"-uri"], data[valuesOf[kind]+"-password"] = own, password
	}
	return w.secret(ctx, "database", data)
}

// helm installs the release, or upgrades it.
func (w *Workload) helm(ctx context.Context) error {
	root, err := host.Repository()
	if err != nil {
		return err
	}
	values, err := w.values()
	if err != nil {
		return err
	}
	text, err := yaml.Marshal(values)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp("", "lab-values-*.yaml")
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if _, err := f.Write(text); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	_, err = w.room.s.Cluster.Helm(ctx, "upgrade", "--install", w.release, filepath.Join(root, "charts", "warren"), "--values", f.Name())
	return err
}

func (w *Workload) values() (map[string]any, error) {
	s := w.room.s
	image, err := imageValues(s.templates[w.service.Kind].Spec.Containers[0])
	if err != nil {
		return nil, err
	}
	service := map[string]any{"replicas": w.replicas}
	env := map[string]string{"RUN": w.room.name}
	for name, value := range w.env {
		switch key := plainValue(w.service.Kind, name); key {
		case "":
			env[name] = value
		case "drainTimeoutSeconds":
			d, err := time.ParseDuration(value)
			if err != nil {
				return nil, fmt.Errorf("%s=%s: %w", name, value, err)
			}
			service[key] = int(d.Seconds())
		default:
			n, err := strconv.Atoi(value)
			if err != nil {
				return nil, fmt.Errorf("%s=%s: %w", name, value, err)
			}
			service[key] = n
		}
	}
	service["env"] = env
	values := map[string]any{
		"image": image, "events": true, "faults": true, "seed": w.room.name + "-" + w.release,
		"rabbitmq": map[string]any{"enabled": false},
		"broker": map[string]any{"mode": "external", "external": map[string]any{"secrets": map[string]any{
			"server": w.release + "-" + contract.UserServer, "client": w.release + "-" + contract.UserClient, "auditor": w.release + "-" + contract.UserAuditor,
		}}},
		"database": map[string]any{"mode": "external", "external": map[string]any{"secret": w.release + "-database"}},
	}
	for _, name := range valuesOf {
		values[name] = map[string]any{"replicas": 0}
	}
	if w.service.Kind == substrate.DeadLetterAuditor { // one token opens every auditor's API
		service["tokenSecret"], _ = secretOf(s.templates[w.service.Kind], "token")
	}
	values[valuesOf[w.service.Kind]] = service
	return values, nil
}

// plainValue is the chart's own value for a setting, where it has one.
func plainValue(kind substrate.Kind, name string) string {
	if kind != substrate.CalculatorServer {
		return ""
	}
	return map[string]string{"PREFETCH": "prefetch", "CONCURRENCY": "concurrency", "DRAIN_TIMEOUT": "drainTimeoutSeconds"}[name]
}

// imageValues are the release's: <registry>/warren/<service>:<tag>.
func imageValues(c corev1.Container) (map[string]any, error) {
	registry, rest, found := strings.Cut(c.Image, "/warren/")
	_, tag, tagged := strings.Cut(rest, ":")
	if !found || !tagged {
		return nil, fmt.Errorf("image %s of the release: want REGISTRY/warren/SERVICE:TAG", c.Image)
	}
	return map[string]any{"registry": registry, "tag": tag, "pullPolicy": string(c.ImagePullPolicy)}, nil
}

// mounted is the content of a file that a template mounts from a Secret.
func (s *Substrate) mounted(ctx context.Context, template corev1.PodTemplateSpec, file string) (string, error) {
	name, key := secretOf(template, file)
	if name == "" {
		return "", fmt.Errorf("release %s: no Secret is mounted as %s", s.Release, file)
	}
	secret, err := s.client.CoreV1().Secrets(s.Namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", fmt.Errorf("%s of the release: %w", file, err)
	}
	return strings.TrimSpace(string(secret.Data[key])), nil
}

func secretOf(template corev1.PodTemplateSpec, file string) (name, key string) {
	for _, v := range template.Spec.Volumes {
		if v.Projected == nil {
			continue
		}
		for _, source := range v.Projected.Sources {
			if source.Secret == nil {
				continue
			}
			for _, item := range source.Secret.Items {
				if item.Path == file {
					return source.Secret.Name, item.Key
				}
			}
		}
	}
	return "", ""
}

// meet begins to follow a pod of the workload as soon as there is one.
func (w *Workload) meet(pod *corev1.Pod) {
	w.room.mu.Lock()
	defer w.room.mu.Unlock()
	if w.room.closed || w.known[pod.Name] != nil {
		return
	}
	p := &Process{occupant: w.room.take(pod.Name, pod.Name), service: w.service, deployed: true}
	w.known[pod.Name] = p
	w.room.processes = append(w.room.processes, p)
}

// serving are the pods that are there to stay.
func (w *Workload) serving() []*corev1.Pod {
	return slices.DeleteFunc(w.room.s.pods.list(w.labels()), func(p *corev1.Pod) bool { return p.DeletionTimestamp != nil || over(p) })
}

func (w *Workload) labels() labels.Set {
	return labels.Set{instance: w.release, component: string(w.service.Kind)}
}

// Pods are those that serve, oldest first.
func (w *Workload) Pods() []substrate.Process {
	var all []substrate.Process
	for _, pod := range w.serving() {
		w.meet(pod)
		w.room.mu.Lock()
		all = append(all, w.known[pod.Name])
		w.room.mu.Unlock()
	}
	return all
}

// WaitReady returns when all replicas are ready and no other pod is left.
func (w *Workload) WaitReady(ctx context.Context) error {
	var waits string
	err := w.room.s.pods.awaitAny(ctx, func() bool {
		all := w.room.s.pods.list(w.labels())
		n := 0
		for _, p := range all {
			if ready(p) {
				n++
			}
		}
		waits = fmt.Sprintf("%d pods, %d ready, want %d", len(all), n, w.replicas)
		return len(all) == w.replicas && n == w.replicas
	})
	if err != nil {
		return fmt.Errorf("wait for %s: %w: %s", w.release, err, waits)
	}
	return nil
}

// Scale returns when there are so many pods, and all ready.
func (w *Workload) Scale(ctx context.Context, replicas int) error {
	defer w.room.s.pods.replace(w.serving())()
	w.replicas = replicas
	if err := w.helm(ctx); err != nil {
		return fmt.Errorf("scale %s to %d: %w", w.release, replicas, err)
	}
	return w.WaitReady(ctx)
}

// Upgrade changes settings.
func (w *Workload) Upgrade(ctx context.Context, env map[string]string) error {
	maps.Copy(w.env, env)
	old := w.serving()
	defer w.room.s.pods.replace(old)()
	if err := w.helm(ctx); err != nil {
		return fmt.Errorf("upgrade %s: %w", w.release, err)
	}
	for _, p := range old {
		if err := w.room.s.pods.await(ctx, p.Name, func(p *corev1.Pod) bool { return p == nil }); err != nil {
			return fmt.Errorf("upgrade %s: wait for the end of pod %s: %w", w.release, p.Name, err)
		}
	}
	return w.WaitReady(ctx)
}

// DeleteByForce deletes a pod as kubectl delete --grace-period=0 --force does.
func (w *Workload) DeleteByForce(ctx context.Context, pod substrate.Process) error {
	p, ok := pod.(*Process)
	if !ok {
		return fmt.Errorf("process %T: not of this substrate", pod)
	}
	return p.remove(ctx, new(int64(0)))
}

// Machine is where a pod runs.
func (w *Workload) Machine(pod substrate.Process) string { return w.room.s.machine(pod.Name()) }

// Move closes the pod's machine to new pods, deletes the pod, and opens the
// machine again when another pod is ready elsewhere.
func (w *Workload) Move(ctx context.Context, pod substrate.Process) (err error) {
	from := w.Machine(pod)
	if err := w.room.s.cordon(ctx, from, true); err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, w.room.s.cordon(context.WithoutCancel(ctx), from, false))
	}()
	if err := pod.Terminate(ctx); err != nil {
		return err
	}
	return w.room.s.pods.awaitAny(ctx, func() bool {
		all := w.serving()
		return len(all) == w.replicas && !slices.ContainsFunc(all, func(p *corev1.Pod) bool { return !ready(p) || p.Name == pod.Name() })
	})
}

// close uninstalls the release and waits for its pods.
func (w *Workload) close(ctx context.Context) error {
	defer w.room.s.pods.replace(w.serving())()
	w.room.s.pods.unwatchRelease(w.release)
	_, err := w.room.s.Cluster.Helm(ctx, "uninstall", w.release, "--ignore-not-found")
	errs := []error{err, w.room.s.clear(ctx, labels.Set{partOf: suite, instance: w.release})}
	for _, name := range []string{contract.UserServer, contract.UserClient, contract.UserAuditor, "database"} {
		err := w.room.s.client.CoreV1().Secrets(w.room.s.Namespace).Delete(ctx, w.release+"-"+name, metav1.DeleteOptions{})
		errs = append(errs, ignoreNotFound(err))
	}
	return errors.Join(errs...)
}

// sweepReleases removes rooms' releases that a killed lab left.
func (s *Substrate) sweepReleases(ctx context.Context) error {
	if s.Cluster == nil {
		return nil
	}
	out, err := s.Cluster.Helm(ctx, "list", "--filter", byRoom, "--output", "json")
	if err != nil {
		return err
	}
	var left []struct{ Name string }
	if err := json.Unmarshal(out, &left); err != nil {
		return fmt.Errorf("helm list: %w", err)
	}
	var errs []error
	for _, r := range left {
		_, err := s.Cluster.Helm(ctx, "uninstall", r.Name, "--wait")
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// machine is the node that a pod runs on.
func (s *Substrate) machine(pod string) string {
	if p := s.pods.get(pod); p != nil {
		return p.Spec.NodeName
	}
	return ""
}

// Workers are the machines of our own kind cluster but for the control plane.
func (s *Substrate) Workers(ctx context.Context) ([]string, error) {
	if !s.Own {
		return nil, fmt.Errorf("stop a machine: the cluster is not the lab's own: %w", substrate.ErrUnsupported)
	}
	nodes, err := s.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: "!node-role.kubernetes.io/control-plane"})
	if err != nil {
		return nil, err
	}
	var names []string
	for _, n := range nodes.Items {
		names = append(names, n.Name)
	}
	return names, nil
}

// BrokerMachine is where a broker node runs.
func (s *Substrate) BrokerMachine(node int) string { return s.machine(s.broker.pod(node)) }

// StopMachine cuts the power of a worker of our own kind cluster.
func (s *Substrate) StopMachine(ctx context.Context, name string) error {
	if !s.Own {
		return fmt.Errorf("stop machine %s: not the lab's own: %w", name, substrate.ErrUnsupported)
	}
	for _, p := range s.on(name) {
		s.pods.crash(p, true)
	}
	return s.Cluster.StopNode(ctx, name)
}

// on is the release's pods on a machine.
func (s *Substrate) on(name string) []*corev1.Pod {
	return slices.DeleteFunc(s.pods.list(labels.Set{partOf: suite, instance: s.Release}), func(p *corev1.Pod) bool { return p.Spec.NodeName != name })
}

// StartMachine switches it on again and returns when the release's pods on it are
// back: what befalls them from then on is no longer the lab's doing.
func (s *Substrate) StartMachine(ctx context.Context, name string) error {
	if err := s.Cluster.StartNode(ctx, name); err != nil {
		return err
	}
	for _, p := range s.on(name) {
		if err := s.pods.await(ctx, p.Name, func(now *corev1.Pod) bool { return now == nil || now.UID != p.UID || ready(now) }); err != nil {
			return fmt.Errorf("wait for pod %s: %w", p.Name, err)
		}
		s.pods.crash(p, false)
	}
	return nil
}

const closedByLab = "warren.example/closed" // label of a machine

// cordon closes a machine to new pods, or opens it.
func (s *Substrate) cordon(ctx context.Context, name string, closed bool) error {
	if !s.Own {
		return fmt.Errorf("cordon %s: the cluster is not the lab's own: %w", name, substrate.ErrUnsupported)
	}
	label := "null"
	if closed {
		label = `"true"`
	}
	patch := fmt.Appendf(nil, `{"metadata":{"labels":{%q:%s}},"spec":{"unschedulable":%t}}`, closedByLab, label, closed)
	_, err := s.client.CoreV1().Nodes().Patch(ctx, name, types.StrategicMergePatchType, patch, metav1.PatchOptions{})
	if err != nil {
		return fmt.Errorf("cordon %s: %w", name, err)
	}
	return nil
}
