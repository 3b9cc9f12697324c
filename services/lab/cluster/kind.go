package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/kind/pkg/apis/config/v1alpha4"
	kind "sigs.k8s.io/kind/pkg/cluster"
	kindexec "sigs.k8s.io/kind/pkg/exec"
	"sigs.k8s.io/kind/pkg/log"
	"sigs.k8s.io/yaml"
)

// What marks a kind cluster as ours. The mount is there from the first moment
// of a node's container, so a cluster that was killed half made is known too;
// the label says that it was finished, or that its owner handed it over.
const (
	markMount = "/kind/made-by-lab"
	madeLabel = "warren.example/made-by"
	madeBy    = "lab"
	keptLabel = "warren.example/kept" // left on purpose, not by a lab that was killed
)

// kindState is what there is under our kind cluster's name.
type kindState struct {
	exists   bool
	marked   bool // a lab began to make it
	finished bool
	kept     bool
}

func (s kindState) ours() bool { return s.marked || s.finished }

// decide says what Up does with a kind cluster that is there already.
func (s kindState) decide(name string, reuse bool) (replace bool, err error) {
	switch {
	case !s.exists:
		return false, nil
	case !s.ours():
		return false, fmt.Errorf("name %s: a kind cluster of that name is there, and no lab made it; take another name, "+
			"name its context (kind-%[1]s) to use it and leave it, delete it (kind delete cluster --name %[1]s), "+
			"or give it to the lab: kubectl --context kind-%[1]s label nodes --all %s=%s", name, madeLabel, madeBy)
	case !s.finished:
		return true, nil
	case reuse:
		return false, nil
	case s.kept:
		return false, fmt.Errorf("name %s: a lab left a kind cluster of that name on purpose; take it as it is with reuse, or delete it: lab down --on kind --name %[1]s", name)
	default:
		return true, nil
	}
}

func (c *Cluster) kindState(ctx context.Context) (kindState, error) {
	var s kindState
	var err error
	if s.exists, s.marked, err = c.marked(ctx); err != nil || !s.exists {
		return s, err
	}
	config, err := c.kindConfig()
	if err != nil {
		return s, nil // not far enough to have an API server
	}
	// A cluster that comes back with the engine takes a while to answer.
	err = c.await(ctx, 30*time.Second, func(ctx context.Context) (_ []string, err error) {
		s.finished, s.kept, err = marks(ctx, config)
		return nil, err
	})
	if err != nil && !s.marked {
		return s, fmt.Errorf("name %s: a kind cluster of that name is there and does not answer, so nobody can say whose it is: %w; kind delete cluster --name %[1]s deletes it", c.o.Name, err)
	}
	return s, nil
}

// marked looks at the containers, which are there before any API server.
func (c *Cluster) marked(ctx context.Context) (exists, marked bool, err error) {
	nodes, err := c.kind.ListNodes(c.o.Name)
	if err != nil || len(nodes) == 0 {
		return false, false, commandError(err)
	}
	out, err := docker(ctx, "inspect", "--format", "{{range .Mounts}}{{println .Destination}}{{end}}", nodes[0].String())
	return true, slices.Contains(strings.Fields(string(out)), markMount), err
}

// marks reads the labels of our kind cluster's nodes.
func marks(ctx context.Context, config *rest.Config) (finished, kept bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return false, false, err
	}
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{LabelSelector: madeLabel + "=" + madeBy})
	if err != nil || len(nodes.Items) == 0 {
		return false, false, err
	}
	return true, nodes.Items[0].Labels[keptLabel] != "", nil
}

// kindConfig is the administrator's access to our kind cluster.
func (c *Cluster) kindConfig() (*rest.Config, error) {
	text, err := c.kind.KubeConfig(c.o.Name, false)
	if err != nil {
		return nil, err
	}
	if err := os.WriteFile(c.kubeconfig, []byte(text), 0o600); err != nil {
		return nil, err
	}
	return clientcmd.RESTConfigFromKubeConfig([]byte(text))
}

// readKindConfig is k8s/kind.yaml with our mark in it.
func (c *Cluster) readKindConfig() (*v1alpha4.Cluster, error) {
	path, text := filepath.Join(c.root, "k8s", "kind.yaml"), c.o.kindConfig
	if text == nil {
		var err error
		if text, err = os.ReadFile(path); err != nil {
			return nil, err
		}
	}
	config := &v1alpha4.Cluster{}
	if err := yaml.UnmarshalStrict(text, config); err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	for i := range config.Nodes {
		n := &config.Nodes[i]
		n.ExtraMounts = append(n.ExtraMounts, v1alpha4.Mount{HostPath: os.DevNull, ContainerPath: markMount, Readonly: true})
	}
	return config, nil
}

// connect creates the cluster, unless preflight has found the one to use.
func (c *Cluster) connect(ctx context.Context) error {
	if c.client != nil {
		return nil
	}
	c.ours, c.created = true, true
	if err := c.createKind(ctx); err != nil {
		return err
	}
	if err := c.useKind(ctx); err != nil {
		return err
	}
	return c.labelNodes(ctx, madeLabel, madeBy)
}

// createKind creates the cluster. Kind's own wait for readiness is not used:
// it looks at the control plane alone, and it cannot be interrupted.
func (c *Cluster) createKind(ctx context.Context) error {
	config, err := c.readKindConfig()
	if err != nil {
		return err
	}
	image := c.o.Images.Node
	c.o.Progress(fmt.Sprintf("  creates %s of %d nodes", c.o.Name, len(config.Nodes)))
	done := make(chan error, 1)
	go func() {
		done <- c.kind.Create(c.o.Name, kind.CreateWithV1Alpha4Config(config), kind.CreateWithNodeImage(image), kind.CreateWithKubeconfigPath(c.kubeconfig))
	}()
	select {
	case err := <-done:
		return commandError(err)
	case <-ctx.Done():
	}
	// Kind takes no context. Without its containers it fails at its next
	// command; until then it may start others.
	ended := ctx.Err()
	ctx = context.WithoutCancel(ctx)
	for {
		_ = c.deleteKind(ctx) // kind is deleting them, too
		select {
		case <-done:
			return ended // and Close deletes what came last
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// takeKind uses a cluster that is there, with all its nodes: a lab that was
// killed may have left one off, or closed to new pods.
func (c *Cluster) takeKind(ctx context.Context) error {
	nodes, err := c.kind.ListNodes(c.o.Name)
	if err != nil {
		return err
	}
	start := []string{"start"} // what runs already stays as it is
	for _, n := range nodes {
		start = append(start, n.String())
	}
	if _, err := docker(ctx, start...); err != nil {
		return err
	}
	if err := c.useKind(ctx); err != nil {
		return err
	}
	return c.patchNodes(ctx, `{"spec":{"unschedulable":null}}`)
}

func (c *Cluster) useKind(ctx context.Context) error {
	config, err := c.kindConfig()
	if err != nil {
		return err
	}
	if err := c.useConfig(config); err != nil {
		return err
	}
	if c.o.Export {
		if err := c.kind.ExportKubeConfig(c.o.Name, c.o.Kubeconfig, false); err != nil {
			return err
		}
	}
	return c.await(ctx, 3*time.Minute, func(ctx context.Context) ([]string, error) {
		nodes, err := c.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		if waits := unreadyNodes(nodes.Items); len(waits) > 0 {
			return waits, nil // no pod can be ready before
		}
		var waits []string
		pods, err := c.client.CoreV1().Pods("").List(ctx, metav1.ListOptions{})
		if err != nil {
			return nil, err
		}
		for _, p := range pods.Items { // DNS and volumes, which everything else needs
			if p.Namespace == metav1.NamespaceSystem || p.Namespace == "local-path-storage" {
				if s := podWaits(p); s != "" {
					waits = append(waits, s)
				}
			}
		}
		return waits, nil
	})
}

func (c *Cluster) useConfig(config *rest.Config) (err error) {
	config.QPS, config.Burst = 50, 100 // the default, 5 a second, is for controllers
	c.Config = config
	c.client, err = kubernetes.NewForConfig(config)
	return err
}

func unreadyNodes(nodes []corev1.Node) (waits []string) {
	for _, n := range nodes {
		ready, why := nodeReady(n)
		if !ready {
			waits = append(waits, n.Name+": "+why)
		}
	}
	return waits
}

func nodeReady(n corev1.Node) (ready bool, why string) {
	for _, cond := range n.Status.Conditions {
		if cond.Type == corev1.NodeReady {
			return cond.Status == corev1.ConditionTrue, cond.Reason
		}
	}
	return false, "has not reported"
}

func (c *Cluster) labelNodes(ctx context.Context, key, value string) error {
	return c.patchNodes(ctx, fmt.Sprintf(`{"metadata":{"labels":{%q:%q}}}`, key, value))
}

func (c *Cluster) patchNodes(ctx context.Context, patch string) error {
	nodes, err := c.client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, n := range nodes.Items {
		if _, err := c.client.CoreV1().Nodes().Patch(ctx, n.Name, types.MergePatchType, []byte(patch), metav1.PatchOptions{}); err != nil {
			return fmt.Errorf("node %s: %w", n.Name, err)
		}
	}
	return nil
}

// deleteKind deletes a cluster that a lab made, and no other.
func (c *Cluster) deleteKind(ctx context.Context) error {
	exists, marked, err := c.marked(ctx)
	if err != nil {
		return err
	}
	if exists && !marked { // then it may have been handed over
		state, err := c.kindState(ctx)
		if err != nil {
			return err
		}
		if !state.ours() {
			return fmt.Errorf("name %s: no lab made the kind cluster of that name; kind delete cluster --name %[1]s deletes it", c.o.Name)
		}
	}
	kubeconfig := c.kubeconfig
	if c.o.Export {
		kubeconfig = c.o.Kubeconfig
	}
	if err := c.kind.Delete(c.o.Name, kubeconfig); err != nil {
		return fmt.Errorf("delete kind cluster %s: %w", c.o.Name, commandError(err))
	}
	return nil
}

func (c *Cluster) downKind(ctx context.Context) (deleted bool, err error) {
	if err := c.lockName(); err != nil {
		return false, err
	}
	exists, _, err := c.marked(ctx)
	if err != nil || !exists {
		return false, err
	}
	return true, c.deleteKind(ctx)
}

// lockName keeps other labs off our kind cluster until Close. The lock of a lab
// that was killed is free. Users and temporary folders differ, the engine is one:
// a lock of each user's own would let the next one delete a cluster in use.
func (c *Cluster) lockName() error {
	path := lockPath(c.o.Name)
	for {
		f, err := os.Open(path)
		if errors.Is(err, os.ErrNotExist) { // not with O_CREATE at once: in /tmp that is refused for another user's file
			f, err = os.OpenFile(path, os.O_RDONLY|os.O_CREATE, 0o644)
		}
		if err != nil {
			return fmt.Errorf("name %s: %w", c.o.Name, err)
		}
		if err := flock(f); err != nil {
			_ = f.Close()
			return fmt.Errorf("name %s: another lab is using the kind cluster of that name: wait for its end, or take another name (lock %s: %w)", c.o.Name, path, err)
		}
		if stillAt(path, f) {
			c.lock = f
			return nil
		}
		_ = f.Close() // its owner removed it meanwhile
	}
}

func lockPath(name string) string { return "/tmp/lab-kind-" + name + ".lock" }

func flock(f *os.File) error { return syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB) }

func stillAt(path string, f *os.File) bool {
	is, err := f.Stat()
	now, why := os.Stat(path)
	return err == nil && why == nil && os.SameFile(is, now)
}

func (c *Cluster) unlock() {
	if c.lock != nil {
		_ = os.Remove(c.lock.Name()) // another user's stays, and does no harm
		_ = c.lock.Close()
		c.lock = nil
	}
}

// StopNode kills the container of a worker of our own kind cluster, as a power
// cut would, and returns when the API server has noticed.
func (c *Cluster) StopNode(ctx context.Context, name string) error {
	if err := c.ownNode(name, v1alpha4.WorkerRole); err != nil {
		return err
	}
	c.mu.Lock()
	c.stopped[name] = true
	c.mu.Unlock()
	if _, err := docker(ctx, "kill", "--signal", "KILL", name); err != nil {
		return err
	}
	return c.awaitNode(ctx, name, false)
}

// StartNode starts it again and returns when the API server has noticed.
func (c *Cluster) StartNode(ctx context.Context, name string) error {
	if err := c.ownNode(name, v1alpha4.WorkerRole); err != nil {
		return err
	}
	if _, err := docker(ctx, "start", name); err != nil {
		return err
	}
	if err := c.awaitNode(ctx, name, true); err != nil {
		return err
	}
	c.mu.Lock()
	delete(c.stopped, name)
	c.mu.Unlock()
	return nil
}

// Signal sends a signal (STOP, …) to every process of a container on a node of our
// own kind cluster, and returns when all of them have been sent it. The container
// is named by its ID, which the kubelet has put into the names of its cgroups.
func (c *Cluster) Signal(ctx context.Context, node, container, signal string) error {
	if err := c.ownNode(node, v1alpha4.WorkerRole, v1alpha4.ControlPlaneRole); err != nil {
		return err
	}
	if container == "" {
		return fmt.Errorf("SIG%s on %s: the container has no ID: it does not run", signal, node)
	}
	const send = `kill -s "$0" $(grep -ls -- "$1" /proc/[0-9]*/cgroup | cut -d/ -f3)` // none: kill's usage, and an error
	_, err := docker(ctx, "exec", node, "sh", "-c", send, signal, container)
	return err
}

func (c *Cluster) ownNode(name string, roles ...v1alpha4.NodeRole) error {
	if !c.ours {
		return fmt.Errorf("node %s: the cluster is not the lab's own: its nodes are left in peace", name)
	}
	nodes, err := c.kind.ListNodes(c.o.Name)
	if err != nil {
		return err
	}
	var own []string
	for _, n := range nodes {
		if role, err := n.Role(); err == nil && slices.Contains(roles, v1alpha4.NodeRole(role)) {
			own = append(own, n.String())
		}
	}
	if !slices.Contains(own, name) {
		return fmt.Errorf("node %s: no %s of kind cluster %s; it has %s", name, roles[0], c.o.Name, strings.Join(own, ", "))
	}
	return nil
}

func (c *Cluster) awaitNode(ctx context.Context, name string, ready bool) error {
	return c.await(ctx, 3*time.Minute, func(ctx context.Context) ([]string, error) {
		n, err := c.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
		if err != nil {
			return nil, err
		}
		is, why := nodeReady(*n)
		if is == ready {
			return nil, nil
		}
		return []string{fmt.Sprintf("%s: %s, to become ready=%v", name, why, ready)}, nil
	})
}

// commandError adds what a command of kind's printed last; the error alone
// says "exit status 1".
func commandError(err error) error {
	run := kindexec.RunErrorForError(err)
	if run == nil || len(run.Output) == 0 {
		return err
	}
	return fmt.Errorf("%w\n%s", err, lastLines(run.Output, 5))
}

func lastLines(text []byte, n int) string {
	lines := strings.Split(string(bytes.TrimSpace(text)), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// logger makes progress of the steps that kind has done. It says everything
// else a second time in its errors.
type logger struct{ progress func(string) }

var _ log.Logger = (*logger)(nil)

func (l *logger) Warn(message string)              { l.Info(message) }
func (l *logger) Warnf(format string, args ...any) { l.Infof(format, args...) }

func (l *logger) Error(message string)              { l.Info(message) }
func (l *logger) Errorf(format string, args ...any) { l.Infof(format, args...) }

func (l *logger) V(level log.Level) log.InfoLogger {
	if level > 0 {
		return log.NoopInfoLogger{}
	}
	return l
}

func (l *logger) Enabled() bool { return true }

func (l *logger) Info(message string) {
	step, done := strings.CutPrefix(message, " ✓ ")
	if !done {
		return
	}
	words, _, _ := strings.Cut(step, "\n")
	l.progress("cluster: " + strings.TrimRightFunc(words, func(r rune) bool { return r > 127 || r == ' ' }) + ": done")
}

func (l *logger) Infof(format string, args ...any) { l.Info(fmt.Sprintf(format, args...)) }
