package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

// findHelm builds the helm that scripts/tools/go.mod pins, or finds it in Go's
// cache.
func (c *Cluster) findHelm(ctx context.Context) error {
	slow := time.AfterFunc(10*time.Second, func() { c.o.Progress("  helm is built from source; the first time takes minutes") })
	defer slow.Stop()
	cmd := exec.CommandContext(ctx, "go", "tool", "-n", "helm.sh/helm/v4/cmd/helm")
	cmd.Dir, cmd.Env = filepath.Join(c.root, "scripts", "tools"), append(os.Environ(), "GOWORK=off")
	path, err := output(cmd)
	c.helm = strings.TrimSpace(string(path))
	return err
}

// Helm runs helm with the cluster's access and namespace. An error carries the
// last that it said.
func (c *Cluster) Helm(ctx context.Context, args ...string) ([]byte, error) {
	access := []string{"--kube-context", c.context, "--namespace", c.Namespace}
	if c.kubeconfig != "" {
		access = append(access, "--kubeconfig", c.kubeconfig)
	}
	return c.offline(ctx, append(args, access...)...)
}

// offline runs helm where it needs no cluster.
func (c *Cluster) offline(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, c.helm, args...)
	cmd.Env = withoutHelm(os.Environ())
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) } // it notes that the release failed
	cmd.WaitDelay = 10 * time.Second
	return output(cmd)
}

// withoutHelm takes Helm's settings out of an environment: HELM_KUBEAPISERVER
// leads it to another cluster than the context's, HELM_DRIVER away from the
// Secrets that findRelease reads.
func withoutHelm(env []string) []string {
	return slices.DeleteFunc(env, func(v string) bool { return strings.HasPrefix(v, "HELM_") })
}

// output runs a command; its error carries the last lines of what it said.
func output(cmd *exec.Cmd) ([]byte, error) {
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Run(); err != nil {
		if said.Len() == 0 {
			said = out
		}
		return out.Bytes(), fmt.Errorf("%s %s: %w: %s", filepath.Base(cmd.Path), cmd.Args[1], err, lastLines(said.Bytes(), 10))
	}
	return out.Bytes(), nil
}

// valueArgs are the chart's values: ours, and the user's above them.
func (c *Cluster) valueArgs() ([]string, error) {
	values := map[string]any{"replicas": c.o.Nodes}
	if image := c.o.Images.RabbitMQ; image != "" {
		values["image"] = imageValues(image)
	}
	ours := map[string]any{"rabbitmq": values}
	if image := c.o.Images.PostgreSQL; image != "" {
		ours["database"] = map[string]any{"image": image}
	}
	text, err := yaml.Marshal(ours)
	if err != nil {
		return nil, err
	}
	path := filepath.Join(c.dir, "values.yaml")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		return nil, err
	}
	var args []string
	if c.o.Context == "" {
		args = append(args, "--values", filepath.Join(c.chart(), "values-kind.yaml"))
	}
	args = append(args, "--values", path)
	for _, v := range c.o.Values {
		flag := "--values"
		if isPair(v) {
			flag = "--set"
		}
		args = append(args, flag, v)
	}
	return args, nil
}

func (c *Cluster) chart() string {
	if c.o.chart != "" {
		return c.o.chart
	}
	return filepath.Join(c.root, "charts", "warren")
}

// imageValues cuts [registry/]repository[:tag][@digest] as charts/rabbitmq
// wants it.
func imageValues(image string) map[string]string {
	v := map[string]string{}
	image, v["digest"], _ = strings.Cut(image, "@")
	if i := strings.LastIndexByte(image, ':'); i > strings.LastIndexByte(image, '/') { // else it is a port
		image, v["tag"] = image[:i], image[i+1:]
	}
	if host, path, ok := strings.Cut(image, "/"); ok && strings.ContainsAny(host, ".:") {
		image, v["registry"] = path, host
	}
	v["repository"] = image
	return v
}

// installArgs install or upgrade the release, marked as ours. What a scenario
// changed in it, such as a broker scaled to zero when its lab was killed, is
// somebody else's field to the API server, and it would refuse ours.
func (c *Cluster) installArgs() ([]string, error) {
	values, err := c.valueArgs()
	return append([]string{"upgrade", "--install", c.Release, c.chart(), "--force-conflicts", "--labels", madeLabel + "=" + madeBy}, values...), err
}

// render is what would be installed. It refuses values that the charts
// refuse, with the cluster if there is one: they look for what they need.
func (c *Cluster) render(ctx context.Context) error {
	if c.client == nil {
		values, err := c.valueArgs()
		if err != nil {
			return err
		}
		c.manifests, err = c.offline(ctx, append([]string{"template", c.Release, c.chart(), "--namespace", c.Namespace}, values...)...)
		return err
	}
	args, err := c.installArgs()
	if err != nil {
		return err
	}
	out, err := c.Helm(ctx, append(args, "--dry-run=server", "--output", "json")...)
	if err != nil {
		return err
	}
	var release struct {
		Manifest string
		Hooks    []struct{ Manifest string }
	}
	if err := json.Unmarshal(out, &release); err != nil {
		return fmt.Errorf("helm upgrade --dry-run: %w", err)
	}
	all := []string{release.Manifest}
	for _, h := range release.Hooks {
		all = append(all, h.Manifest)
	}
	c.manifests = []byte(strings.Join(all, "\n---\n"))
	return nil
}

// podSpecs finds the pods' templates in rendered manifests.
func podSpecs(manifests []byte) ([]corev1.PodSpec, error) {
	var specs []corev1.PodSpec
	for doc := range bytes.SplitSeq(manifests, []byte("\n---")) {
		var object struct {
			Kind string
			Spec json.RawMessage
		}
		if err := yaml.Unmarshal(doc, &object); err != nil {
			return nil, fmt.Errorf("rendered manifests: %w", err)
		}
		var spec struct{ Template corev1.PodTemplateSpec }
		var err error
		switch object.Kind {
		case "Pod":
			err = json.Unmarshal(object.Spec, &spec.Template.Spec)
		case "Deployment", "StatefulSet", "DaemonSet", "Job":
			err = json.Unmarshal(object.Spec, &spec)
		default:
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("rendered %s: %w", object.Kind, err)
		}
		specs = append(specs, spec.Template.Spec)
	}
	return specs, nil
}

// wantedImages are those that the release's pods will ask for.
func wantedImages(specs []corev1.PodSpec) []string {
	var images []string
	for _, s := range specs {
		for _, c := range append(slices.Clone(s.InitContainers), s.Containers...) {
			images = append(images, c.Image)
		}
	}
	slices.Sort(images)
	return slices.Compact(images)
}

// release is the newest revision that helm has noted.
type release struct {
	revision int
	status   string // deployed, failed, pending-install, …; empty: there is none
	ours     bool
	works    int // the revision that was deployed last; 0: none is
}

func (c *Cluster) findRelease(ctx context.Context) (release, error) {
	secrets, err := c.client.CoreV1().Secrets(c.Namespace).List(ctx, metav1.ListOptions{LabelSelector: "owner=helm,name=" + c.Release})
	if err != nil {
		return release{}, fmt.Errorf("release %s: %w", c.Release, err)
	}
	return newest(secrets.Items), nil
}

func newest(secrets []corev1.Secret) release {
	var last release
	for _, s := range secrets {
		var revision int
		if n, _ := fmt.Sscan(s.Labels["version"], &revision); n != 1 {
			continue
		}
		if revision > last.revision {
			last.revision, last.status, last.ours = revision, s.Labels["status"], s.Labels[madeLabel] == madeBy
		}
		if s.Labels["status"] == "deployed" {
			last.works = max(last.works, revision)
		}
	}
	return last
}

// What Up does with a release that is there already, before it upgrades it.
const (
	leaveIt   = "leave it"   // helm upgrades what is deployed, and what failed after that
	rollBack  = "roll back"  // helm was killed: it upgrades nothing that is pending
	startOver = "start over" // it never worked, so nothing is lost with its volumes
)

func (r release) decide(name, namespace string) (do string, err error) {
	switch {
	case r.status == "":
		return leaveIt, nil
	case !r.ours:
		return leaveIt, fmt.Errorf("release %s: there is one in namespace %s that no lab installed (%s); take another release or namespace", name, namespace, r.status)
	case r.works == 0:
		return startOver, nil
	case strings.HasPrefix(r.status, "pending-"):
		return rollBack, nil
	}
	return leaveIt, nil
}

func (c *Cluster) installRelease(ctx context.Context) error {
	found, err := c.findRelease(ctx)
	if err != nil {
		return err
	}
	c.installed = found.status == ""
	args, err := c.installArgs()
	if err != nil {
		return err
	}
	switch _, err := c.Helm(ctx, args...); {
	case c.installed || ctx.Err() != nil:
		return err
	case err != nil:
		return fmt.Errorf("%w; release %s stays, with its volumes: lab down takes them away", err, c.Release)
	}
	return c.restartLoaded(ctx)
}

// restartLoaded starts pods again whose image is another under the same name,
// which an upgrade does not see.
func (c *Cluster) restartLoaded(ctx context.Context) error {
	stale := func(t corev1.PodTemplateSpec) bool {
		return slices.ContainsFunc(wantedImages([]corev1.PodSpec{t.Spec}), func(image string) bool { return slices.Contains(c.loaded, image) })
	}
	patch := fmt.Appendf(nil, `{"spec":{"template":{"metadata":{"annotations":{"warren.example/loaded":%q}}}}}`, time.Now().Format(time.RFC3339))
	ofRelease := metav1.ListOptions{LabelSelector: c.selector()}
	deployments, err := c.client.AppsV1().Deployments(c.Namespace).List(ctx, ofRelease)
	if err != nil {
		return err
	}
	for _, d := range deployments.Items {
		if stale(d.Spec.Template) {
			if _, err := c.client.AppsV1().Deployments(c.Namespace).Patch(ctx, d.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
				return err
			}
		}
	}
	sets, err := c.client.AppsV1().StatefulSets(c.Namespace).List(ctx, ofRelease)
	if err != nil {
		return err
	}
	for _, s := range sets.Items {
		if stale(s.Spec.Template) {
			if _, err := c.client.AppsV1().StatefulSets(c.Namespace).Patch(ctx, s.Name, types.MergePatchType, patch, metav1.PatchOptions{}); err != nil {
				return err
			}
		}
	}
	return nil
}

// uninstall takes the release away, with what helm leaves: volumes, for nothing
// is to be left and the next release begins with an empty broker, and Jobs of
// hooks, which would make their pods again.
func (c *Cluster) uninstall(ctx context.Context) error {
	if _, err := c.Helm(ctx, "uninstall", c.Release, "--ignore-not-found"); err != nil {
		return err
	}
	now := int64(0) // a broker would wait for a quorum that is going, too
	ofRelease := metav1.ListOptions{LabelSelector: c.selector()}
	core := c.client.CoreV1()
	err := errors.Join(
		c.client.BatchV1().Jobs(c.Namespace).DeleteCollection(ctx, metav1.DeleteOptions{PropagationPolicy: new(metav1.DeletePropagationBackground)}, ofRelease),
		core.Pods(c.Namespace).DeleteCollection(ctx, metav1.DeleteOptions{GracePeriodSeconds: &now}, ofRelease),
		core.PersistentVolumeClaims(c.Namespace).DeleteCollection(ctx, metav1.DeleteOptions{}, ofRelease))
	if err != nil {
		return err
	}
	return c.await(ctx, 2*time.Minute, func(ctx context.Context) (waits []string, err error) {
		pods, err := core.Pods(c.Namespace).List(ctx, ofRelease)
		if err != nil {
			return nil, err
		}
		claims, err := core.PersistentVolumeClaims(c.Namespace).List(ctx, ofRelease)
		if err != nil {
			return nil, err
		}
		for _, p := range pods.Items {
			waits = append(waits, "pod "+p.Name+" to end")
		}
		for _, v := range claims.Items {
			waits = append(waits, "volume "+v.Name+" to go")
		}
		return waits, nil
	})
}

func (c *Cluster) selector() string { return "app.kubernetes.io/instance=" + c.Release }

// restricted is what the namespace refuses pods by; ours must pass it.
const restricted = "pod-security.kubernetes.io/enforce"

func (c *Cluster) makeNamespace(ctx context.Context) error {
	namespaces := c.client.CoreV1().Namespaces()
	return c.await(ctx, 2*time.Minute, func(ctx context.Context) ([]string, error) {
		n, err := namespaces.Get(ctx, c.Namespace, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(err):
			c.namespaced = true // from here on it may be there
			_, err = namespaces.Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
				Name: c.Namespace, Labels: map[string]string{madeLabel: madeBy, restricted: "restricted"},
			}}, metav1.CreateOptions{})
			return nil, err
		case err != nil:
			return nil, err
		case n.Status.Phase == corev1.NamespaceTerminating:
			return []string{"namespace " + c.Namespace + " to go"}, nil
		}
		return nil, nil
	})
}

func (c *Cluster) deleteNamespace(ctx context.Context) error {
	namespaces := c.client.CoreV1().Namespaces()
	if err := namespaces.Delete(ctx, c.Namespace, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	return c.await(ctx, 2*time.Minute, func(ctx context.Context) ([]string, error) {
		_, err := namespaces.Get(ctx, c.Namespace, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		return []string{"namespace " + c.Namespace + " to go"}, err
	})
}

func (c *Cluster) downRelease(ctx context.Context) (deleted bool, err error) {
	if err := c.useContext(ctx); err != nil {
		return false, err
	}
	if err := c.findHelm(ctx); err != nil {
		return false, err
	}
	found, err := c.findRelease(ctx)
	if err != nil {
		return false, err
	}
	if found.status != "" {
		if !found.ours {
			return false, fmt.Errorf("release %s in namespace %s: no lab installed it", c.Release, c.Namespace)
		}
		if err := c.uninstall(ctx); err != nil {
			return false, err
		}
		deleted = true
	}
	n, err := c.client.CoreV1().Namespaces().Get(ctx, c.Namespace, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err) || err == nil && n.Labels[madeLabel] != madeBy:
		return deleted, nil
	case err != nil:
		return deleted, err
	}
	return true, c.deleteNamespace(ctx)
}

// test runs the chart's own tests.
func (c *Cluster) test(ctx context.Context) error {
	out, err := c.Helm(ctx, "test", c.Release, "--logs")
	if err != nil {
		return fmt.Errorf("%w\n%s", err, lastLines(out, 20))
	}
	return nil
}

// docker runs the engine's client.
func docker(ctx context.Context, args ...string) ([]byte, error) {
	return output(exec.CommandContext(ctx, "docker", args...))
}
