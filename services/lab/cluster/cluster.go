// Package cluster gives the lab a Kubernetes cluster with the suite's release
// in it: a kind cluster of its own, or one that the user named. It takes away
// again what it made, and touches nothing else.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	kind "sigs.k8s.io/kind/pkg/cluster"

	"warren.example/lab/internal/host"
)

// Options says which cluster. Zero: our own kind cluster, created and deleted
// again.
type Options struct {
	Name       string            // of our kind cluster; empty: "warren"
	Context    string            // a kubeconfig context that the user named: somebody's cluster, used and never created or deleted
	Kubeconfig string            // empty: the usual rules
	Export     bool              // let kubectl find our kind cluster: its context goes into the user's kubeconfig
	Namespace  string            // empty: "warren"
	Release    string            // empty: "warren"
	Values     []string          // for the chart: values files, and key=value pairs as --set takes them
	Images     Images            // empty: what is there
	Nodes      int               // RabbitMQ nodes, 1 or 3; 0 is 3
	Keep       bool              // Close leaves the cluster and the release
	Reuse      bool              // a kind cluster of that name that we made may be taken as it is
	Test       bool              // Up ends with the chart's own tests
	LogsTo     string            // folder for logs when something fails; empty: none are collected
	Progress   func(step string) // nil: silent

	kindConfig []byte // tests' own k8s/kind.yaml
	chart      string // tests' own charts/warren
}

// Images are looked for in this order: here, in the environment
// (KIND_NODE_IMAGE, RABBITMQ_IMAGE, POSTGRES_IMAGE), on the engine under the
// names that scripts/airgap gives them; else they are kind's and the charts'.
type Images struct{ Node, RabbitMQ, PostgreSQL string }

const defaultName = "warren"

// A name becomes a host name with "-control-plane" behind it, a namespace, and
// a part of every object's name.
var validName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

// Validate names everything that is wrong. It asks neither engine nor cluster.
func (o *Options) Validate() error {
	var errs []error
	for _, n := range []struct {
		field, value string
		longest      int
	}{
		{"name", o.Name, 48}, {"namespace", o.Namespace, 63}, {"release", o.Release, 53},
	} {
		if n.value != "" && (len(n.value) > n.longest || !validName.MatchString(n.value)) {
			errs = append(errs, fmt.Errorf("%s %q: want a-z, 0-9 and -, at most %d characters, no - at the ends", n.field, n.value, n.longest))
		}
	}
	if o.Nodes != 0 && o.Nodes != 1 && o.Nodes != 3 {
		errs = append(errs, fmt.Errorf("nodes %d: want 1 or 3; two lose their quorum with the first that dies", o.Nodes))
	}
	if o.Context != "" {
		for field, set := range map[string]bool{"name": o.Name != "", "reuse": o.Reuse, "export": o.Export, "node image": o.Images.Node != ""} {
			if set {
				errs = append(errs, fmt.Errorf("%s and context %s: the first is about the lab's own kind cluster; give one of them", field, o.Context))
			}
		}
	}
	for _, v := range o.Values {
		if isPair(v) {
			continue
		}
		if _, err := os.ReadFile(v); err != nil {
			errs = append(errs, fmt.Errorf("values %s: neither key=value nor a values file: %w", v, err))
		}
	}
	return errors.Join(errs...)
}

// isPair tells key=value from the path of a file.
func isPair(value string) bool {
	if _, err := os.Stat(value); err == nil {
		return false
	}
	return strings.Contains(value, "=")
}

func (o *Options) setDefaults() {
	for _, s := range []*string{&o.Name, &o.Namespace, &o.Release} {
		if *s == "" {
			*s = defaultName
		}
	}
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Progress == nil {
		o.Progress = func(string) {}
	}
}

// Cluster is one with the release in it.
type Cluster struct {
	Config             *rest.Config
	Namespace, Release string

	o          Options
	root       string // of the repository
	dir        string // private: kubeconfig, values, archives of images
	helm       string // the program
	kubeconfig string // for helm; empty: the usual rules
	context    string
	manifests  []byte   // of the release
	loaded     []string // images that any node lacked
	client     kubernetes.Interface
	kind       *kind.Provider
	lock       *os.File
	inUse      *os.File // dir, locked

	ours                           bool // the kind cluster, made by this lab or an earlier one
	created, namespaced, installed bool // by this Up: the kind cluster, the namespace, the release
	mu                             sync.Mutex
	stopped                        map[string]bool // nodes, by StopNode
}

// closeTime bounds each step of Close, and the collection of logs: it is enough
// to await the end of every pod.
const closeTime = 3 * time.Minute

// A step of Up. An interrupt ends it, and then what Up made is gone.
type step struct {
	name, does string
	do         func(context.Context) error
}

func (c *Cluster) steps() []step {
	steps := []step{
		{"preflight", "looks for what would be in the way", c.preflight},
		{"images", "builds and pulls what is missing", c.images},
		{"cluster", "gets " + c.context, c.connect},
		{"load", "gives the nodes the images that they lack", c.load},
		{"namespace", "makes " + c.Namespace, c.makeNamespace},
		{"install", "installs release " + c.Release, c.installRelease},
		{"ready", "waits for every pod of the release", c.awaitReady},
	}
	if c.o.Test {
		steps = append(steps, step{"test", "a round trip, and a dead letter that the auditor has", c.test})
	}
	return steps
}

// Up creates the cluster if it is ours to create, loads images, makes the
// namespace, installs or upgrades the release, and returns when all of it is
// ready. If it fails or ctx ends, what it made is gone when it returns.
func Up(ctx context.Context, o Options) (c *Cluster, err error) {
	if err := o.Validate(); err != nil {
		return nil, err
	}
	if c, err = newCluster(o); err != nil {
		return nil, err
	}
	defer func() {
		if err == nil {
			return
		}
		c.o.Keep = false
		if ctx.Err() == nil && c.client != nil && c.manifests != nil { // else the cluster has no part in it
			err = errors.Join(err, c.Failed(ctx))
		}
		err = errors.Join(err, c.Close(ctx))
		c = nil
	}()
	for _, step := range c.steps() {
		c.o.Progress(step.name + ": " + step.does)
		err := step.do(ctx)
		if ctx.Err() != nil {
			err = ctx.Err() // a program that was interrupted says it in words of its own
		}
		if err != nil {
			return c, fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return c, nil
}

func newCluster(o Options) (*Cluster, error) {
	o.setDefaults()
	c := &Cluster{Namespace: o.Namespace, Release: o.Release, o: o, stopped: map[string]bool{}}
	c.kind = kind.NewProvider(kind.ProviderWithDocker(), kind.ProviderWithLogger(&logger{progress: o.Progress}))
	var err error
	if c.root, err = host.Repository(); err != nil {
		return nil, err
	}
	if c.dir, err = os.MkdirTemp("", folderPrefix); err != nil {
		return nil, err
	}
	if c.inUse, err = os.Open(c.dir); err == nil {
		err = flock(c.inUse)
	}
	if err != nil {
		return nil, errors.Join(err, c.removeFolder())
	}
	if o.Context != "" {
		c.context, c.kubeconfig = o.Context, o.Kubeconfig
	} else {
		c.context, c.kubeconfig = "kind-"+o.Name, filepath.Join(c.dir, "kubeconfig")
	}
	return c, nil
}

// Ours says whether it is a kind cluster that a lab created.
func (c *Cluster) Ours() bool { return c.ours }

// Failed collects logs, if they are wanted. Each time into the same folder: what
// is gone at the next failure stays in it.
func (c *Cluster) Failed(ctx context.Context) error {
	if c.o.LogsTo == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, closeTime)
	defer cancel()
	return c.collectLogs(ctx)
}

// Close takes away what Up made unless it is to be kept; also after ctx has
// ended.
func (c *Cluster) Close(ctx context.Context) error {
	var errs []error
	do := func(step func(context.Context) error) { // each has its time: what takes too long must not keep the cluster
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTime)
		defer cancel()
		errs = append(errs, step(ctx))
	}
	for node := range c.stopped { // of a cluster that lives on
		if c.o.Keep || !c.created {
			do(func(ctx context.Context) error { return c.StartNode(ctx, node) })
		}
	}
	switch {
	case c.o.Keep && c.ours:
		do(func(ctx context.Context) error { return c.labelNodes(ctx, keptLabel, "true") })
	case c.o.Keep:
	case c.created:
		do(c.deleteKind)
	default:
		if c.installed {
			do(c.uninstall)
		}
		if c.namespaced {
			do(c.deleteNamespace)
		}
	}
	c.unlock()
	return errors.Join(append(errs, c.removeFolder())...)
}

const folderPrefix = "lab-cluster-"

func (c *Cluster) removeFolder() error {
	err := os.RemoveAll(c.dir)
	_ = c.inUse.Close()
	return err
}

// sweepFolders removes those of labs that were killed, which hold the access to
// a cluster, and says whether there was any.
func sweepFolders() (swept bool, err error) {
	folders, err := filepath.Glob(filepath.Join(os.TempDir(), folderPrefix+"*"))
	if err != nil {
		return false, err
	}
	for _, folder := range folders {
		f, err := os.Open(folder)
		if err != nil {
			continue // another user's, or gone
		}
		if flock(f) == nil {
			swept = true
			err = os.RemoveAll(folder)
		}
		if err = errors.Join(err, f.Close()); err != nil {
			return swept, err
		}
	}
	return swept, nil
}

// Down takes away what was kept: our kind cluster, or our release in the
// cluster that the user named; and the folders of labs that were killed. It says
// whether there was anything.
func Down(ctx context.Context, o Options) (deleted bool, err error) {
	o.Export = o.Context == "" // out of the user's kubeconfig, too
	if err := o.Validate(); err != nil {
		return false, err
	}
	c, err := newCluster(o)
	if err != nil {
		return false, err
	}
	defer func() {
		c.unlock()
		swept, why := sweepFolders()
		deleted = deleted || swept
		err = errors.Join(err, why, c.removeFolder())
	}()
	if o.Context == "" {
		return c.downKind(ctx)
	}
	return c.downRelease(ctx)
}

// await looks until there is nothing left to wait for, and says every five
// seconds what there is. An error of look is what is waited for, too: an API
// server that starts or restarts refuses for a while.
func (c *Cluster) await(ctx context.Context, limit time.Duration, look func(context.Context) ([]string, error)) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %s", limit))
	defer cancel()
	said := time.Now()
	for {
		waits, err := look(ctx)
		if err != nil {
			waits = []string{err.Error()}
		}
		if len(waits) == 0 {
			return nil
		}
		if time.Since(said) >= 5*time.Second {
			said = time.Now()
			for _, w := range waits {
				c.o.Progress("  " + w)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %s", context.Cause(ctx), strings.Join(waits, "; "))
		case <-time.After(500 * time.Millisecond):
		}
	}
}
