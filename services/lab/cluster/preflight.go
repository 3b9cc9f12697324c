package cluster

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/kind/pkg/apis/config/v1alpha4"

	"warren.example/lab/internal/host"
	"warren.example/lab/substrate/local"
)

// Check is one thing that a kind cluster needs of this machine.
type Check struct {
	Name  string
	OK    bool
	Found string // what there is
	Mend  string // what to do if that will not do
}

func (c Check) err() error {
	if c.OK {
		return nil
	}
	return fmt.Errorf("%s: %s; %s", c.Name, c.Found, c.Mend)
}

// preflight finds everything that would be in the way before anything is
// created.
func (c *Cluster) preflight(ctx context.Context) error {
	where := c.preflightKind
	if c.o.Context != "" {
		where = c.preflightContext
	}
	err := where(ctx)
	if c.o.Context != "" && c.client == nil {
		return err // the charts would complain of a cluster that they cannot see
	}
	if why := c.findHelm(ctx); why != nil {
		return errors.Join(err, why)
	}
	if c.client != nil {
		err = errors.Join(err, c.preflightRelease(ctx))
	}
	return errors.Join(err, c.render(ctx))
}

// preflightRelease brings a release into a state that helm upgrades. What once
// worked keeps its volumes.
func (c *Cluster) preflightRelease(ctx context.Context) error {
	found, err := c.findRelease(ctx)
	if err != nil {
		return err
	}
	if found.status == "" && c.o.Context != "" {
		return c.preflightVolumes(ctx)
	}
	do, err := found.decide(c.Release, c.Namespace)
	switch {
	case err != nil:
		return err
	case do == rollBack:
		c.o.Progress(fmt.Sprintf("  rolls release %s back, which is %s", c.Release, found.status))
		_, err = c.Helm(ctx, "rollback", c.Release, fmt.Sprint(found.works), "--force-conflicts")
	case do == startOver:
		c.o.Progress(fmt.Sprintf("  removes release %s, which is %s", c.Release, found.status))
		err = c.uninstall(ctx)
	}
	return err
}

// preflightVolumes looks in somebody's cluster for what a release of our name
// left: ours would take it, and delete it in the end.
func (c *Cluster) preflightVolumes(ctx context.Context) error {
	claims, err := c.client.CoreV1().PersistentVolumeClaims(c.Namespace).List(ctx, metav1.ListOptions{LabelSelector: c.selector()})
	if err != nil || len(claims.Items) == 0 {
		return err
	}
	return fmt.Errorf("release %s: an earlier one left volumes in namespace %s, such as %s; take another release or namespace, "+
		"or delete them: kubectl --context %[4]s --namespace %[2]s delete pvc --selector %[5]s",
		c.Release, c.Namespace, claims.Items[0].Name, c.context, c.selector())
}

// preflightKind deletes what a killed lab left, before it looks at memory and
// ports: they would be counted twice.
func (c *Cluster) preflightKind(ctx context.Context) error {
	config, err := c.readKindConfig()
	if err != nil {
		return err
	}
	if engine := checkEngine(ctx); !engine.OK {
		return errors.Join(engine.err(), checkMemory(ctx).err(), checkInotify(len(config.Nodes)).err())
	}
	if err := c.lockName(); err != nil {
		return err
	}
	state, err := c.kindState(ctx)
	if err != nil {
		return err
	}
	replace, err := state.decide(c.o.Name, c.o.Reuse)
	if err != nil {
		return err
	}
	if err := c.chooseImages(ctx); err != nil {
		return err
	}
	if state.exists && !replace {
		c.o.Progress("  takes kind cluster " + c.o.Name + " as it is")
		c.ours = true
		return c.takeKind(ctx)
	}
	if replace {
		c.o.Progress("  deletes kind cluster " + c.o.Name + ", left by a lab that was killed")
		if err := c.deleteKind(ctx); err != nil {
			return err
		}
	}
	var errs []error
	for _, check := range machineChecks(ctx, config) {
		errs = append(errs, check.err())
	}
	return errors.Join(errs...)
}

// Examine looks at this machine as Up would before it creates a kind cluster.
func Examine(ctx context.Context) []Check {
	engine := checkEngine(ctx)
	var c Cluster
	var err error
	if c.root, err = host.Repository(); err != nil {
		return []Check{{Name: "kind", Found: err.Error(), Mend: "work in a clone of the repository"}}
	}
	config, err := c.readKindConfig()
	if err != nil {
		return []Check{{Name: "kind", Found: err.Error(), Mend: "repair it"}}
	}
	if engine.OK {
		if err := c.chooseImages(ctx); err != nil {
			engine.OK, engine.Found, engine.Mend = false, err.Error(), "see docker info"
		} else if image := c.o.Images.Node; !local.HasImage(ctx, image) {
			engine.Found += ", without " + image + ": it is pulled, or scripts/airgap/node-image makes one"
		} else {
			engine.Found += " with " + image
		}
	}
	return append([]Check{engine}, machineChecks(ctx, config)...)
}

func machineChecks(ctx context.Context, config *v1alpha4.Cluster) []Check {
	return []Check{checkMemory(ctx), checkDisk(ctx), checkInotify(len(config.Nodes)), checkPorts(config)}
}

func checkEngine(ctx context.Context) Check {
	c := Check{Name: "kind", Mend: "install Docker and start it; as root on Debian: scripts/airgap/docker-engine"}
	version, err := local.FindEngine(ctx)
	if err != nil {
		c.Found = err.Error()
		return c
	}
	c.OK, c.Found = true, "Docker "+version
	return c
}

// memory is what one of those who can say it says there is.
type memory struct {
	field string
	mib   func(context.Context) (mib int, known bool)
	mend  string
}

// memories: any of them may be the least. This machine's is not the engine's if
// that is a virtual or another machine, and neither is the container's that the
// lab may be in, with an engine of its own.
var memories = []memory{
	{"MemAvailable", func(context.Context) (int, bool) { return host.MemAvailable() }, "end something"},
	{"the control group's limit", func(context.Context) (int, bool) { return groupMemory("/sys/fs/cgroup") }, "raise that of the container that the lab is in"},
	{"the Docker engine's MemTotal", engineMemory, "give the Docker engine more memory"},
}

func checkMemory(ctx context.Context) Check { return leastMemory(ctx, memories) }

func leastMemory(ctx context.Context, memories []memory) Check {
	const need = 3 << 10 // MiB: three nodes, three brokers, the services
	c, least := Check{Name: "kind memory", OK: true, Found: "unknown on this system"}, math.MaxInt
	for _, m := range memories {
		if mib, known := m.mib(ctx); known && mib < least {
			least, c.OK, c.Found, c.Mend = mib, mib >= need, fmt.Sprintf("%s %d MiB, need %d", m.field, mib, need), m.mend
		}
	}
	return c
}

// groupMemory is the limit of a control group of version 2 or 1, if it has one.
func groupMemory(folder string) (mib int, known bool) {
	for _, file := range []string{"memory.max", "memory/memory.limit_in_bytes"} {
		b, err := os.ReadFile(filepath.Join(folder, file))
		if err != nil {
			continue
		}
		bytes, err := strconv.ParseInt(strings.TrimSpace(string(b)), 10, 64) // or "max"; in version 1 that is a number
		return int(bytes >> 20), err == nil && bytes < math.MaxInt64>>1
	}
	return 0, false
}

func engineMemory(ctx context.Context) (mib int, known bool) {
	out, err := docker(ctx, "info", "--format", "{{.MemTotal}}")
	if err != nil {
		return 0, false
	}
	bytes, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	return int(bytes >> 20), err == nil && bytes > 0 // 0: the client cannot ask
}

func checkDisk(ctx context.Context) Check {
	const need = 5 << 10 // MiB: each node keeps every image for itself
	c := Check{Name: "kind disk", OK: true, Found: "unknown"}
	root, err := docker(ctx, "info", "--format", "{{.DockerRootDir}}")
	if err != nil {
		return c
	}
	folder := strings.TrimSpace(string(root))
	free, err := host.DiskFree(folder)
	if err != nil { // the engine's, on another machine
		return c
	}
	c.OK, c.Found, c.Mend = free >= need, fmt.Sprintf("%d MiB free for %s, need %d", free, folder, need), "docker system prune removes what no container uses"
	return c
}

// checkInotify: a node whose kubelet, containerd or systemd gets no instance
// never becomes ready, and says why in its own journal only.
func checkInotify(nodes int) Check {
	const instances, watches = 20, 1000 // of one node, by counting
	var max [2]int
	for i, name := range []string{"max_user_instances", "max_user_watches"} {
		b, err := os.ReadFile("/proc/sys/fs/inotify/" + name)
		if err != nil {
			return Check{Name: "inotify", OK: true, Found: "unknown on this system"}
		}
		_, _ = fmt.Sscan(string(b), &max[i])
	}
	return judgeInotify(max[0], usedInotify(), max[1], nodes*instances, nodes*watches)
}

func judgeInotify(instances, used, watches, needInstances, needWatches int) Check {
	return Check{
		Name: "inotify", OK: instances-used >= needInstances && watches >= needWatches,
		Found: fmt.Sprintf("%d of max_user_instances %d in use, need %d; max_user_watches %d, need %d", used, instances, needInstances, watches, needWatches),
		Mend:  fmt.Sprintf("sysctl -w fs.inotify.max_user_instances=%d fs.inotify.max_user_watches=%d", max(512, instances), max(524288, watches)),
	}
}

// usedInotify counts the instances that can be seen: all if we are root, whose
// they are in a node.
func usedInotify() (n int) {
	files, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, f := range files {
		if to, err := os.Readlink(f); err == nil && to == "anon_inode:inotify" {
			n++
		}
	}
	return n
}

// checkPorts looks at the ports of this machine that kind.yaml maps.
func checkPorts(config *v1alpha4.Cluster) Check {
	var taken []string
	free := 0
	for _, n := range config.Nodes {
		for _, m := range n.ExtraPortMappings {
			if m.HostPort == 0 { // any
				continue
			}
			address := net.JoinHostPort(m.ListenAddress, fmt.Sprint(m.HostPort))
			l, err := net.Listen("tcp", address)
			if err != nil {
				taken = append(taken, err.Error())
				continue
			}
			_ = l.Close()
			free++
		}
	}
	if len(taken) > 0 {
		return Check{Name: "kind ports", Found: strings.Join(taken, ", "), Mend: "see what listens: ss -ltnp; or change hostPort in k8s/kind.yaml"}
	}
	return Check{Name: "kind ports", OK: true, Found: fmt.Sprintf("%d mapped, all free", free)}
}

func (c *Cluster) preflightContext(ctx context.Context) error {
	return errors.Join(c.chooseImages(ctx), c.useContext(ctx))
}

// useContext gets access to the cluster that the user named.
func (c *Cluster) useContext(ctx context.Context) error {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = c.o.Kubeconfig
	all, err := rules.Load()
	if err != nil {
		return fmt.Errorf("kubeconfig: %w", err)
	}
	if all.Contexts[c.o.Context] == nil {
		names := make([]string, 0, len(all.Contexts))
		for name := range all.Contexts {
			names = append(names, name)
		}
		slices.Sort(names)
		return fmt.Errorf("context %s: the kubeconfig has no such context; it has: %s", c.o.Context, strings.Join(names, ", "))
	}
	config, err := clientcmd.NewNonInteractiveClientConfig(*all, c.o.Context, nil, rules).ClientConfig()
	if err != nil {
		return fmt.Errorf("context %s: %w", c.o.Context, err)
	}
	if err := c.useConfig(config); err != nil {
		return fmt.Errorf("context %s: %w", c.o.Context, err)
	}
	if _, err := c.client.CoreV1().Secrets(c.Namespace).List(ctx, metav1.ListOptions{Limit: 1}); err != nil {
		c.client = nil
		return fmt.Errorf("context %s: %w; the lab needs the rights of an administrator of namespace %s", c.o.Context, err, c.Namespace)
	}
	return nil
}
