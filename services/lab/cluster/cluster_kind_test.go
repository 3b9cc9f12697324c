//go:build kind

package cluster

import (
	"cmp"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/kind/pkg/apis/config/v1alpha4"
	kind "sigs.k8s.io/kind/pkg/cluster"
	"sigs.k8s.io/yaml"

	"warren.example/lab/internal/host"
)

// testName lets two runs of these tests be beside each other.
var testName = cmp.Or(os.Getenv("LAB_TEST_CLUSTER"), "warren-t")

// small is a cluster of one or two nodes with a release that is ready in a
// second.
func small(t *testing.T, nodes int) Options {
	t.Helper()
	root, err := host.Repository()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(root, "k8s", "kind.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var config v1alpha4.Cluster
	if err := yaml.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	config.Nodes = config.Nodes[:nodes]
	if nodes == 1 {
		config.Nodes[0].KubeadmConfigPatches = nil // kind itself takes the taint off a single node
	}
	if text, err = yaml.Marshal(config); err != nil {
		t.Fatal(err)
	}
	chart, err := filepath.Abs("testdata/chart")
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", t.TempDir())                              // its locks and folders can be seen to go
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "config")) // the user's
	return Options{Name: testName, kindConfig: text, chart: chart, Test: true, Progress: func(step string) { t.Log(step) }}
}

// stepsOf are what Up says at the beginning of each of its steps.
func stepsOf(t *testing.T, o Options) (names []string) {
	t.Helper()
	c, err := newCluster(o)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range c.steps() {
		names = append(names, s.name+":")
	}
	if err := c.removeFolder(); err != nil {
		t.Fatal(err)
	}
	return names
}

// gone fails unless nothing is left of the cluster.
func gone(t *testing.T) {
	t.Helper()
	containers, err := docker(t.Context(), "ps", "--all", "--quiet", "--filter", "label=io.x-k8s.kind.cluster="+testName)
	if err != nil || len(containers) > 0 {
		t.Errorf("containers of kind cluster %s are left: %s %v", testName, containers, err)
	}
	noFolders(t)
}

func noFolders(t *testing.T) {
	t.Helper()
	left, err := filepath.Glob(filepath.Join(os.TempDir(), "lab-cluster-*"))
	if err != nil || len(left) > 0 {
		t.Errorf("folders are left: %v %v", left, err)
	}
	if _, err := os.Stat(lockPath(testName)); !os.IsNotExist(err) {
		t.Errorf("the lock is left: %v", err)
	}
}

func TestInterruptedUp(t *testing.T) {
	o := small(t, 1)
	_, err := Down(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	// Each goes further than the one before, so each is a second Up, too. Of the
	// steps in a cluster that is made the last: TestClusterLife has all.
	steps := stepsOf(t, o)
	made := slices.Index(steps, "cluster:") + 1
	for _, at := range slices.Concat(steps[:made],
		[]string{"  creates", "cluster: Preparing nodes", "cluster: Starting control-plane", steps[len(steps)-1]}) {
		t.Run(at, func(t *testing.T) {
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			o, reached := o, false
			o.Progress = func(step string) {
				t.Log(step)
				if strings.HasPrefix(step, at) {
					reached = true
					cancel()
				}
			}
			c, err := Up(ctx, o)
			if !reached || c != nil || !errors.Is(err, context.Canceled) {
				t.Errorf("Up, interrupted at %q (%v) = %v, %v; want context.Canceled", at, reached, c, err)
			}
			gone(t)
		})
	}
	t.Run("then again", func(t *testing.T) {
		c, err := Up(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		ready(t, c, 2)
		ctx, interrupt := context.WithCancel(t.Context())
		interrupt() // as lab up ends
		if err := c.Close(ctx); err != nil {
			t.Error(err)
		}
		gone(t)
	})
}

func awaitStatus(ctx context.Context, c *Cluster, want string) error {
	return c.await(ctx, time.Minute, func(ctx context.Context) ([]string, error) {
		found, err := c.findRelease(ctx)
		if err != nil || found.status == want {
			return nil, err
		}
		return []string{found.status}, nil
	})
}

// killHelm lets helm get as far as this status, and kills it.
func killHelm(ctx context.Context, t *testing.T, c *Cluster, status string) {
	t.Helper()
	args, err := c.installArgs()
	if err != nil {
		t.Fatal(err)
	}
	helm := exec.Command(c.helm, append(args, "--kube-context", c.context, "--namespace", c.Namespace)...)
	if err := helm.Start(); err != nil {
		t.Fatal(err)
	}
	waited := awaitStatus(ctx, c, status)
	if err := errors.Join(waited, helm.Process.Kill()); err != nil {
		t.Fatal(err)
	}
	_ = helm.Wait()
}

func ready(t *testing.T, c *Cluster, want int) {
	t.Helper()
	pods, err := c.client.CoreV1().Pods(c.Namespace).List(t.Context(), metav1.ListOptions{LabelSelector: c.selector()})
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, p := range pods.Items {
		if podState(p) == "" {
			n++
		}
	}
	if n != want {
		t.Errorf("%d of %d pods are ready, want %d", n, len(pods.Items), want)
	}
}

func TestClusterLife(t *testing.T) {
	o := small(t, 2)
	if _, err := Down(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := Down(context.Background(), o); err != nil {
			t.Error(err)
		}
	})
	halfMade := func(t *testing.T, mark bool) {
		t.Helper()
		c, err := newCluster(o)
		if err != nil {
			t.Fatal(err)
		}
		config, err := c.readKindConfig()
		if err != nil {
			t.Fatal(err)
		}
		if err := c.chooseImages(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !mark {
			for i := range config.Nodes {
				config.Nodes[i].ExtraMounts = nil
			}
		}
		if err := c.kind.Create(testName, kind.CreateWithV1Alpha4Config(config), kind.CreateWithNodeImage(c.o.Images.Node), kind.CreateWithStopBeforeSettingUpKubernetes(true)); err != nil {
			t.Fatal(commandError(err))
		}
		if err := c.removeFolder(); err != nil {
			t.Fatal(err)
		}
	}

	t.Run("somebody else's is refused", func(t *testing.T) {
		halfMade(t, false)
		for name, do := range map[string]func() error{
			"Up":   func() error { _, err := Up(t.Context(), o); return err },
			"Down": func() error { _, err := Down(t.Context(), o); return err },
		} {
			if err := do(); err == nil || !strings.Contains(err.Error(), "name "+testName+":") || !strings.Contains(err.Error(), "kind delete cluster") {
				t.Errorf("%s = %v, want an error that names the cluster and the way out", name, err)
			}
		}
		for _, node := range []string{testName + "-control-plane", testName + "-worker"} { // docker rm --force takes any name
			if _, err := docker(t.Context(), "inspect", node); err != nil {
				t.Errorf("its node is gone: %v", err)
			}
			if _, err := docker(t.Context(), "rm", "--force", "--volumes", node); err != nil {
				t.Fatal(err)
			}
		}
	})

	var kept *Cluster
	t.Run("what a killed lab left half made is replaced, and kept", func(t *testing.T) {
		halfMade(t, true)
		o := o
		o.Keep, o.Export = true, true
		c, err := Up(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		kept = c
		if !c.Ours() {
			t.Error("it is not ours")
		}
		ready(t, c, 2)
		n, err := c.client.CoreV1().Namespaces().Get(t.Context(), "warren", metav1.GetOptions{})
		if err != nil || n.Labels[restricted] != "restricted" {
			t.Errorf("namespace: labels %v, %v", n.Labels, err)
		}
		if _, err := Up(t.Context(), o); err == nil || !strings.Contains(err.Error(), "another lab") {
			t.Errorf("Up beside it = %v, want an error about another lab", err)
		}
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		noFolders(t)
		text, err := os.ReadFile(os.Getenv("KUBECONFIG"))
		if err != nil || !strings.Contains(string(text), "current-context: kind-"+testName) {
			t.Errorf("the user's kubeconfig does not name kind-%s: %v", testName, err)
		}
	})
	if kept == nil {
		return
	}

	t.Run("what was kept is taken only with reuse", func(t *testing.T) {
		if _, err := Up(t.Context(), o); err == nil || !strings.Contains(err.Error(), "lab down --on kind") {
			t.Errorf("Up = %v, want an error with the way out", err)
		}
		// As a scenario does; then its lab is killed.
		_, err := kept.client.AppsV1().StatefulSets("warren").Patch(t.Context(), "warren", types.MergePatchType, []byte(`{"spec":{"replicas":0}}`), metav1.PatchOptions{FieldManager: "scenario"})
		if err != nil {
			t.Fatal(err)
		}
		o := o
		o.Reuse = true
		c, err := Up(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		found, err := c.findRelease(t.Context())
		if err != nil || found.revision != 2 || found.status != "deployed" {
			t.Errorf("release: %+v, %v; want an upgrade", found, err)
		}
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		ready(t, kept, 2) // it was there before, so it stays
	})

	named := o
	named.Name, named.kindConfig, named.Context = "", nil, "kind-"+testName
	named.Namespace, named.Release = "warren-named", "other"

	t.Run("a named context: interrupted at each step", func(t *testing.T) {
		for _, at := range stepsOf(t, named) {
			ctx, cancel := context.WithCancel(t.Context())
			o := named
			o.Progress = func(step string) {
				t.Log(step)
				if strings.HasPrefix(step, at) {
					cancel()
				}
			}
			if _, err := Up(ctx, o); !errors.Is(err, context.Canceled) {
				t.Errorf("%s: Up = %v, want context.Canceled", at, err)
			}
			cancel()
			if _, err := kept.client.CoreV1().Namespaces().Get(t.Context(), o.Namespace, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
				t.Errorf("%s: the namespace is left: %v", at, err)
			}
		}
	})

	t.Run("a named context: a namespace that goes", func(t *testing.T) {
		o := named
		o.Values = []string{"hang=true"}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		c, err := newCluster(o)
		if err != nil {
			t.Fatal(err)
		}
		defer c.removeFolder()
		for _, do := range []func(context.Context) error{c.preflight, c.makeNamespace} {
			if err := do(ctx); err != nil {
				t.Fatal(err)
			}
		}
		killHelm(ctx, t, c, "pending-install")
		if err := c.client.CoreV1().Namespaces().Delete(ctx, c.Namespace, metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
		o.Values = nil
		again, err := Up(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		ready(t, again, 2)
		found, err := again.findRelease(t.Context())
		if err != nil || found.revision != 1 || found.status != "deployed" {
			t.Errorf("release: %+v, %v; want a new one", found, err)
		}
		if deleted, err := Down(t.Context(), o); err != nil || !deleted {
			t.Errorf("Down = %v, %v", deleted, err)
		}
		if deleted, err := Down(t.Context(), o); err != nil || deleted {
			t.Errorf("a second Down = %v, %v; want false: there is nothing", deleted, err)
		}
		_ = again.removeFolder()
	})

	t.Run("a named context: an upgrade that is interrupted, or whose helm is killed, keeps the volumes", func(t *testing.T) {
		o := named
		o.Keep = true
		c, err := Up(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		volumes := func() (all []string) {
			t.Helper()
			list, err := c.client.CoreV1().PersistentVolumeClaims(c.Namespace).List(t.Context(), metav1.ListOptions{})
			if err != nil {
				t.Fatal(err)
			}
			for _, v := range list.Items {
				all = append(all, v.Name+" "+string(v.UID))
			}
			return all
		}
		want := volumes()
		if len(want) != 2 {
			t.Fatalf("volumes: %v, want two", want)
		}
		hung := o
		hung.Values = []string{"hang=true"}
		for status, upgrade := range map[string]func(){
			"failed": func() {
				ctx, interrupt := context.WithCancel(t.Context())
				defer interrupt()
				o := hung
				o.Progress = func(step string) {
					t.Log(step)
					if strings.HasPrefix(step, "install:") {
						go func() {
							_ = awaitStatus(ctx, c, "pending-upgrade")
							interrupt()
						}()
					}
				}
				if _, err := Up(ctx, o); !errors.Is(err, context.Canceled) {
					t.Errorf("Up = %v, want context.Canceled", err)
				}
			},
			"pending-upgrade": func() {
				killed, err := newCluster(hung)
				if err != nil {
					t.Fatal(err)
				}
				defer killed.removeFolder()
				if err := killed.preflight(t.Context()); err != nil {
					t.Fatal(err)
				}
				killHelm(t.Context(), t, killed, "pending-upgrade")
			},
		} {
			upgrade()
			if found, err := c.findRelease(t.Context()); err != nil || found.status != status {
				t.Errorf("release: %+v, %v; want it %s", found, err, status)
			}
			again, err := Up(t.Context(), o)
			if err != nil {
				t.Fatalf("Up after %s: %v", status, err)
			}
			if err := again.Close(t.Context()); err != nil {
				t.Error(err)
			}
			if found, err := c.findRelease(t.Context()); err != nil || found.status != "deployed" {
				t.Errorf("release: %+v, %v; want it deployed", found, err)
			}
			if got := volumes(); !slices.Equal(got, want) {
				t.Errorf("after %s: volumes %v, want %v", status, got, want)
			}
		}
		if deleted, err := Down(t.Context(), o); err != nil || !deleted { // with the hook's Job
			t.Errorf("Down = %v, %v", deleted, err)
		}
	})

	t.Run("a named context: somebody's release, wrong values, a pod that cannot start", func(t *testing.T) {
		o := named
		o.Namespace, o.Release = "default", "theirs"
		c, err := newCluster(o)
		if err != nil {
			t.Fatal(err)
		}
		defer c.removeFolder()
		if err := c.preflight(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Helm(t.Context(), "install", o.Release, o.chart); err != nil {
			t.Fatal(err)
		}
		for _, do := range []func() error{
			func() error { _, err := Up(t.Context(), o); return err },
			func() error { _, err := Down(t.Context(), o); return err },
		} {
			if err := do(); err == nil || !strings.Contains(err.Error(), "release theirs") || !strings.Contains(err.Error(), "no lab installed") {
				t.Errorf("got %v, want a refusal that names the release", err)
			}
		}
		if found, err := c.findRelease(t.Context()); err != nil || found.status != "deployed" {
			t.Errorf("release theirs: %+v, %v", found, err)
		}

		o = named
		o.Values = []string{"imagge=x"}
		if _, err := Up(t.Context(), o); err == nil || !strings.Contains(err.Error(), "imagge") {
			t.Errorf("Up with an unknown value = %v, want its name", err)
		}

		o.Values, o.LogsTo = []string{"secret=missing"}, t.TempDir()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c, err = newCluster(o)
		if err != nil {
			t.Fatal(err)
		}
		for _, do := range []func(context.Context) error{c.preflight, c.makeNamespace, c.installRelease} {
			if err := do(ctx); err != nil {
				t.Fatal(err)
			}
		}
		var waits []string
		_ = c.await(ctx, 30*time.Second, func(ctx context.Context) (_ []string, err error) {
			waits, err = c.releaseWaits(ctx)
			if strings.Contains(strings.Join(waits, "; "), "CreateContainerConfigError") {
				return nil, nil
			}
			return waits, err
		})
		if got := strings.Join(waits, "; "); !strings.Contains(got, `pause: CreateContainerConfigError: secret "missing" not found`) {
			t.Errorf("it waits for %q, want the missing secret", got)
		}
		if err := errors.Join(c.Failed(t.Context()), c.Close(t.Context())); err != nil {
			t.Error(err)
		}
		text, err := os.ReadFile(filepath.Join(o.LogsTo, "unready-pods.txt"))
		if err != nil || !strings.Contains(string(text), "event Failed: Error: secret \"missing\" not found") {
			t.Errorf("unready-pods.txt: %s %v", text, err)
		}
	})

	t.Run("a worker stops: the next Up starts it, or Close", func(t *testing.T) {
		o := o
		o.Reuse, o.LogsTo = true, t.TempDir()
		worker := testName + "-worker"
		isOpen := func() bool {
			t.Helper()
			n, err := kept.client.CoreV1().Nodes().Get(t.Context(), worker, metav1.GetOptions{})
			if err != nil {
				t.Fatal(err)
			}
			ready, _ := nodeReady(*n)
			return ready && !n.Spec.Unschedulable
		}
		killed, err := Up(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		for name, want := range map[string]string{testName + "-control-plane": "no worker", "warren-worker": "no worker"} {
			if err := killed.StopNode(t.Context(), name); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("StopNode(%s) = %v, want %q", name, err, want)
			}
		}
		for node, want := range map[string]string{"warren-worker": "no worker of kind cluster " + testName, worker: "exit status"} {
			if err := killed.Signal(t.Context(), node, "no-such-container", "STOP"); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("Signal to a container on %s = %v, want %q", node, err, want)
			}
		}
		if err := errors.Join(killed.patchNodes(t.Context(), `{"spec":{"unschedulable":true}}`), killed.StopNode(t.Context(), worker)); err != nil {
			t.Fatal(err)
		}
		if isOpen() {
			t.Error("the worker is ready after StopNode")
		}
		if err := errors.Join(killed.lock.Close(), killed.inUse.Close()); err != nil { // as its death would; its folder stays
			t.Fatal(err)
		}
		c, err := Up(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		if !isOpen() {
			t.Error("the worker is not ready, or closed to pods, after Up")
		}
		if err := errors.Join(c.Failed(t.Context()), c.Failed(t.Context()), c.StopNode(t.Context(), worker)); err != nil {
			t.Fatal(err)
		}
		if err := c.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !isOpen() {
			t.Error("the worker is not ready after Close")
		}
		for _, file := range []string{worker + "/kubelet.log", testName + "-control-plane/kubelet.log", "unready-pods.txt"} {
			if info, err := os.Stat(filepath.Join(o.LogsTo, file)); err != nil || info.Size() == 0 && file != "unready-pods.txt" {
				t.Errorf("logs: %v, want some in %s", err, file)
			}
		}
	})

	t.Run("down", func(t *testing.T) {
		for _, want := range []bool{true, false} {
			if deleted, err := Down(t.Context(), o); err != nil || deleted != want {
				t.Errorf("Down = %v, %v; want %v", deleted, err, want)
			}
			gone(t)
		}
		text, err := os.ReadFile(os.Getenv("KUBECONFIG"))
		if err != nil || strings.Contains(string(text), testName) {
			t.Errorf("the user's kubeconfig still names %s: %v", testName, err)
		}
	})
}
