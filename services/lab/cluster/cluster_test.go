package cluster

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"sigs.k8s.io/kind/pkg/apis/config/v1alpha4"

	"warren.example/lab/internal/host"
)

func TestValidate(t *testing.T) {
	values := filepath.Join(t.TempDir(), "a=b.yaml")
	if err := os.WriteFile(values, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		o    Options
		want []string // parts of the error; none: valid
	}{
		"nothing":            {Options{}, nil},
		"all of our own":     {Options{Name: "a-1", Namespace: "b", Release: "c", Nodes: 1, Reuse: true, Export: true, Values: []string{"a.b=c", values}}, nil},
		"a named context":    {Options{Context: "kind-theirs", Namespace: "b", Keep: true, Nodes: 3}, nil},
		"two nodes":          {Options{Nodes: 2}, []string{"nodes 2"}},
		"upper case":         {Options{Name: "Warren"}, []string{`name "Warren"`}},
		"a hyphen at an end": {Options{Namespace: "-a", Release: "a-"}, []string{`namespace "-a"`, `release "a-"`}},
		"too long":           {Options{Name: strings.Repeat("a", 49)}, []string{"at most 48"}},
		"no such file":       {Options{Values: []string{"nowhere.yaml"}}, []string{"values nowhere.yaml"}},
		"a context and ours": {Options{Context: "x", Name: "warren", Reuse: true, Images: Images{Node: "y"}}, []string{"name and context x", "reuse and context x", "node image and context x"}},
	} {
		err := tc.o.Validate()
		if (err == nil) != (len(tc.want) == 0) {
			t.Errorf("%s: %v, want an error with %q", name, err, tc.want)
		}
		for _, part := range tc.want {
			if err != nil && !strings.Contains(err.Error(), part) {
				t.Errorf("%s: %v, want it to say %q", name, err, part)
			}
		}
	}
}

func TestWhatToDoWithAKindCluster(t *testing.T) {
	const take, create, replace, refuse = "take", "create", "replace", "refuse"
	theirs, half := kindState{exists: true}, kindState{exists: true, marked: true}
	left := kindState{exists: true, marked: true, finished: true}
	kept := kindState{exists: true, marked: true, finished: true, kept: true}
	given := kindState{exists: true, finished: true} // its nodes were labelled by hand
	for name, tc := range map[string]struct {
		state           kindState
		without, reused string
	}{
		"none":           {kindState{}, create, create},
		"somebody's":     {theirs, refuse, refuse},
		"half made":      {half, replace, replace},
		"left":           {left, replace, take},
		"kept":           {kept, refuse, take},
		"handed over":    {given, replace, take},
		"kept, not ours": {kindState{exists: true, kept: true}, refuse, refuse},
	} {
		for reuse, want := range map[bool]string{false: tc.without, true: tc.reused} {
			got := take
			switch again, err := tc.state.decide("warren", reuse); {
			case err != nil:
				got = refuse
			case again:
				got = replace
			case !tc.state.exists:
				got = create
			}
			if got != want {
				t.Errorf("%s, reuse %v: %s, want %s", name, reuse, got, want)
			}
		}
	}
}

func TestWhatToDoWithARelease(t *testing.T) {
	secret := func(version, status string, made bool) corev1.Secret {
		s := corev1.Secret{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"version": version, "status": status}}}
		if made {
			s.Labels[madeLabel] = madeBy
		}
		return s
	}
	for name, tc := range map[string]struct {
		secrets []corev1.Secret
		do      string
		refuse  bool
	}{
		"none":                    {nil, leaveIt, false},
		"deployed":                {[]corev1.Secret{secret("1", "deployed", true)}, leaveIt, false},
		"half installed":          {[]corev1.Secret{secret("1", "pending-install", true)}, startOver, false},
		"installation failed":     {[]corev1.Secret{secret("1", "failed", true)}, startOver, false},
		"half uninstalled":        {[]corev1.Secret{secret("1", "superseded", true), secret("2", "uninstalling", true)}, startOver, false},
		"upgrade failed":          {[]corev1.Secret{secret("1", "deployed", true), secret("2", "failed", true)}, leaveIt, false},
		"half upgraded":           {[]corev1.Secret{secret("1", "deployed", true), secret("2", "failed", true), secret("3", "pending-upgrade", true)}, rollBack, false},
		"half rolled back":        {[]corev1.Secret{secret("2", "deployed", true), secret("3", "pending-rollback", true)}, rollBack, false},
		"the tenth is the newest": {[]corev1.Secret{secret("10", "pending-upgrade", true), secret("9", "deployed", true)}, rollBack, false},
		"somebody's":              {[]corev1.Secret{secret("1", "deployed", false)}, leaveIt, true},
		"somebody's pending":      {[]corev1.Secret{secret("1", "pending-upgrade", false)}, leaveIt, true},
	} {
		do, err := newest(tc.secrets).decide("warren", "default")
		if do != tc.do || (err != nil) != tc.refuse {
			t.Errorf("%s: %s, %v; want %s, refused %v", name, do, err, tc.do, tc.refuse)
		}
	}
}

func TestInotifyJudgement(t *testing.T) {
	for _, tc := range []struct {
		instances, used, watches int
		ok                       bool
	}{
		{128, 10, 8192, true}, {128, 68, 8192, true}, {128, 69, 8192, false}, {512, 100, 2999, false}, {512, 100, 3000, true},
	} {
		c := judgeInotify(tc.instances, tc.used, tc.watches, 60, 3000)
		if c.OK != tc.ok {
			t.Errorf("%d of %d instances in use, %d watches: %v, want %v", tc.used, tc.instances, tc.watches, c.OK, tc.ok)
		}
		if (c.err() == nil) != tc.ok || !tc.ok && !strings.Contains(c.err().Error(), "sysctl -w fs.inotify.max_user_instances=512") {
			t.Errorf("error %v, want one with what to do only if it is not enough", c.err())
		}
	}
}

// The least counts, and the user is told which it was and what to do.
func TestMemory(t *testing.T) {
	const unknown = -1
	for name, tc := range map[string]struct {
		machine, group, engine int
		want                   string // the error; empty: enough
	}{
		"enough everywhere":   {3072, 3072, 3072, ""},
		"nobody knows":        {unknown, unknown, unknown, ""},
		"this machine's":      {3071, 4096, 8192, "kind memory: MemAvailable 3071 MiB, need 3072; end something"},
		"the container's":     {8192, 2048, 4096, "kind memory: the control group's limit 2048 MiB, need 3072; raise that of the container that the lab is in"},
		"another machine's":   {8192, unknown, 1987, "kind memory: the Docker engine's MemTotal 1987 MiB, need 3072; give the Docker engine more memory"},
		"no /proc":            {unknown, unknown, 2000, "kind memory: the Docker engine's MemTotal 2000 MiB, need 3072; give the Docker engine more memory"},
		"two lack, one worse": {3000, unknown, 2000, "kind memory: the Docker engine's MemTotal 2000 MiB, need 3072; give the Docker engine more memory"},
	} {
		all := slices.Clone(memories)
		for i, mib := range []int{tc.machine, tc.group, tc.engine} {
			all[i].mib = func(context.Context) (int, bool) { return mib, mib != unknown }
		}
		err := leastMemory(t.Context(), all).err()
		if got := fmt.Sprint(err); got != tc.want && (err != nil || tc.want != "") {
			t.Errorf("%s: %s, want %s", name, got, tc.want)
		}
	}
	for _, tc := range []struct {
		file, text string
		want       int
	}{
		{"memory.max", "2147483648\n", 2048}, {"memory.max", "max\n", unknown},
		{"memory/memory.limit_in_bytes", "2147483648\n", 2048}, {"memory/memory.limit_in_bytes", "9223372036854771712\n", unknown},
		{"cpu.max", "max 100000\n", unknown},
	} {
		dir := t.TempDir()
		if err := errors.Join(os.Mkdir(filepath.Join(dir, "memory"), 0o700), os.WriteFile(filepath.Join(dir, tc.file), []byte(tc.text), 0o600)); err != nil {
			t.Fatal(err)
		}
		mib, known := groupMemory(dir)
		if known != (tc.want != unknown) || known && mib != tc.want {
			t.Errorf("%s %q: %d, %v; want %d", tc.file, tc.text, mib, known, tc.want)
		}
	}
}

func TestTakenPort(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	config := &v1alpha4.Cluster{Nodes: []v1alpha4.Node{{ExtraPortMappings: []v1alpha4.PortMapping{{ListenAddress: "127.0.0.1", HostPort: int32(port)}, {HostPort: 0}}}}}
	if c := checkPorts(config); c.OK || !strings.Contains(c.err().Error(), fmt.Sprint(port)) {
		t.Errorf("with %d taken: %+v", port, c)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if c := checkPorts(config); !c.OK {
		t.Errorf("with %d free: %+v", port, c)
	}
}

func TestKindConfigIsMarked(t *testing.T) {
	root, err := host.Repository()
	if err != nil {
		t.Fatal(err)
	}
	config, err := (&Cluster{root: root}).readKindConfig()
	if err != nil {
		t.Fatal(err)
	}
	if len(config.Nodes) < 3 {
		t.Errorf("k8s/kind.yaml has %d nodes, want room for three brokers", len(config.Nodes))
	}
	for i, n := range config.Nodes {
		if !slices.ContainsFunc(n.ExtraMounts, func(m v1alpha4.Mount) bool { return m.ContainerPath == markMount }) {
			t.Errorf("node %d has no mark", i)
		}
	}
	if _, err := (&Cluster{o: Options{kindConfig: []byte("nodez: []")}}).readKindConfig(); err == nil {
		t.Error("an unknown field is not refused")
	}
}

func TestImageValues(t *testing.T) {
	for image, want := range map[string]map[string]string{
		"rabbitmq":                         {"repository": "rabbitmq", "digest": ""},
		"rabbitmq:4-management":            {"repository": "rabbitmq", "tag": "4-management", "digest": ""},
		"example.com:5000/a/rabbitmq":      {"registry": "example.com:5000", "repository": "a/rabbitmq", "digest": ""},
		"localhost:5000/rabbitmq:4":        {"registry": "localhost:5000", "repository": "rabbitmq", "tag": "4", "digest": ""},
		"bitnami/rabbitmq:4@sha256:012345": {"repository": "bitnami/rabbitmq", "tag": "4", "digest": "sha256:012345"},
	} {
		if got := imageValues(image); !maps.Equal(got, want) {
			t.Errorf("%s: %v, want %v", image, got, want)
		}
	}
}

func TestWantedImages(t *testing.T) {
	specs, err := podSpecs([]byte(`---
apiVersion: v1
kind: Service
spec: {template: not a pod's}
---
apiVersion: v1
kind: Pod
spec: {containers: [{name: a, image: one}]}
---
apiVersion: apps/v1
kind: StatefulSet
spec:
  template:
    spec:
      initContainers: [{name: a, image: two}]
      containers: [{name: b, image: one}, {name: c, image: three}]
`))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := wantedImages(specs), []string{"one", "three", "two"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}

func TestPodState(t *testing.T) {
	waiting := func(reason, message string) corev1.ContainerStatus {
		return corev1.ContainerStatus{Name: "c", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}}
	}
	running := corev1.ContainerStatus{Name: "c", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}}
	for want, status := range map[string]corev1.PodStatus{
		"":                                {Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}},
		"Pending":                         {Phase: corev1.PodPending},
		"Unschedulable: no room":          {Conditions: []corev1.PodCondition{{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: "Unschedulable", Message: "no room. preemption: no"}}},
		"c: ContainerCreating":            {ContainerStatuses: []corev1.ContainerStatus{waiting("ContainerCreating", "")}},
		"c: ImagePullBackOff: no such":    {ContainerStatuses: []corev1.ContainerStatus{waiting("ImagePullBackOff", "no such")}},
		"c: runs, not ready":              {ContainerStatuses: []corev1.ContainerStatus{running}},
		"c: CrashLoopBackOff: back-off 5": {InitContainerStatuses: []corev1.ContainerStatus{waiting("CrashLoopBackOff", "back-off 5")}, ContainerStatuses: []corev1.ContainerStatus{waiting("PodInitializing", "")}},
	} {
		if got := podState(corev1.Pod{Status: status}); got != want {
			t.Errorf("%+v: %q, want %q", status, got, want)
		}
	}
	if got := podState(corev1.Pod{Status: corev1.PodStatus{Phase: corev1.PodSucceeded}}); got != "" {
		t.Errorf("a pod that has ended well: %q", got)
	}
}

// The pod of a test that failed stays, and must not keep the next Up waiting.
func TestWhatAReleaseWaitsFor(t *testing.T) {
	labels := map[string]string{"app.kubernetes.io/instance": "warren"}
	pod := func(name string, phase corev1.PodPhase, code int32) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "ns", Labels: labels}, Status: corev1.PodStatus{
			Phase: phase, ContainerStatuses: []corev1.ContainerStatus{{Name: "lab", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code}}}},
		}}
	}
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Name: "broker", Namespace: "ns", Labels: labels}}
	c := &Cluster{Namespace: "ns", Release: "warren", client: fake.NewClientset(pod("test", corev1.PodFailed, 1), pod("job", corev1.PodSucceeded, 0), set)}
	got, err := c.releaseWaits(t.Context())
	if want := []string{"broker: 0 of 1 pods up to date, 0 ready"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("waits for %q, %v; want %q", got, err, want)
	}
	if got, want := c.explain(t.Context()), "test: lab: exit code 1\n"; !strings.HasPrefix(got, want) {
		t.Errorf("explains %q, want it to begin with %q", got, want)
	}
}

func TestAwait(t *testing.T) {
	c := &Cluster{o: Options{Progress: func(string) {}}}
	looks := 0
	if err := c.await(t.Context(), time.Minute, func(context.Context) ([]string, error) {
		looks++
		if looks == 1 {
			return nil, errors.New("refused") // the API server starts
		}
		return nil, nil
	}); err != nil || looks != 2 {
		t.Errorf("%d looks, %v; want 2 and no error", looks, err)
	}
	still := func(context.Context) ([]string, error) { return []string{"pod-0: ContainerCreating"}, nil }
	if err := c.await(t.Context(), time.Nanosecond, still); err == nil || !strings.Contains(err.Error(), "pod-0: ContainerCreating") {
		t.Errorf("too late: %v, want what was waited for", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := c.await(ctx, time.Minute, still); !errors.Is(err, context.Canceled) {
		t.Errorf("interrupted: %v, want context.Canceled", err)
	}
}

// Two labs on one name: the second is refused as long as the first lives,
// whatever their temporary folders are.
func TestLock(t *testing.T) {
	name := "warren-t-" + strings.ToLower(rand.Text())
	a, b := &Cluster{o: Options{Name: name}}, &Cluster{o: Options{Name: name}}
	if err := os.WriteFile(lockPath(name), nil, 0o600); err != nil { // of a lab that was killed
		t.Fatal(err)
	}
	if err := a.lockName(); err != nil {
		t.Fatal(err)
	}
	t.Setenv("TMPDIR", t.TempDir())
	if err := b.lockName(); err == nil || !strings.Contains(err.Error(), "name "+name+": another lab") {
		t.Errorf("second lab: %v, want a refusal", err)
	}
	a.unlock()
	if err := b.lockName(); err != nil {
		t.Errorf("after the first has gone: %v", err)
	}
	b.unlock()
	if _, err := os.Stat(lockPath(name)); !os.IsNotExist(err) {
		t.Errorf("the lock is left: %v", err)
	}
}

// A lab that opens the lock's file just before its owner removes it must not
// hold a lock that the next one does not see.
func TestLockIsHeldByOne(t *testing.T) {
	name := "warren-t-" + strings.ToLower(rand.Text())
	var labs sync.WaitGroup
	var holders, took atomic.Int32
	for range 4 {
		labs.Go(func() {
			c := &Cluster{o: Options{Name: name}}
			for range 5000 {
				if c.lockName() != nil {
					continue
				}
				took.Add(1)
				if n := holders.Add(1); n > 1 {
					t.Errorf("%d hold the lock", n)
				}
				runtime.Gosched()
				holders.Add(-1)
				c.unlock()
			}
		})
	}
	labs.Wait()
	if took.Load() == 0 {
		t.Error("nobody ever got the lock")
	}
}

// What a killed lab left is swept; what a living one uses is not.
func TestFoldersOfKilledLabs(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	left := filepath.Join(os.TempDir(), folderPrefix+"left")
	if err := os.Mkdir(left, 0o700); err != nil {
		t.Fatal(err)
	}
	c, err := newCluster(Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []bool{true, false} {
		if swept, err := sweepFolders(); swept != want || err != nil {
			t.Errorf("swept %v, %v; want %v", swept, err, want)
		}
	}
	if _, err := os.Stat(left); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", left, err)
	}
	if _, err := os.Stat(c.dir); err != nil {
		t.Errorf("the folder of a living lab: %v", err)
	}
	if err := c.removeFolder(); err != nil {
		t.Error(err)
	}
}

// A context that the kubeconfig does not have is refused with those it has.
func TestUnknownContext(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "config")
	text := "apiVersion: v1\nkind: Config\ncontexts: [{name: theirs, context: {cluster: c, user: u}}]\ncurrent-context: theirs\n"
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	c := &Cluster{o: Options{Context: "mine", Kubeconfig: kubeconfig}}
	if err := c.useContext(t.Context()); err == nil || !strings.Contains(err.Error(), "context mine") || !strings.Contains(err.Error(), "it has: theirs") {
		t.Errorf("got %v, want the contexts that there are", err)
	}
}
