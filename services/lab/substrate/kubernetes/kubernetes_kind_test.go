//go:build kind

package kubernetes

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"

	"warren.example/lab/cluster"
	"warren.example/lab/ledger"
	"warren.example/lab/scenario"
	"warren.example/lab/substrate"
	"warren.example/lab/substrate/vhost"
	"warren.example/messaging/contract"
	"warren.example/messaging/event"
)

// These tests take the kind cluster that a lab left with --keep, or make one;
// or the cluster of LAB_CONTEXT, in the namespace LAB_NAMESPACE.

var shared struct {
	once sync.Once
	s    *Substrate
	end  func() error
	err  error
}

func TestMain(m *testing.M) {
	code := m.Run()
	if shared.end != nil {
		if err := shared.end(); err != nil {
			println(err.Error())
			code = 1
		}
	}
	os.Exit(code)
}

func release(t *testing.T) *Substrate {
	t.Helper()
	shared.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
		defer cancel()
		o := cluster.Options{
			Context: os.Getenv("LAB_CONTEXT"), Namespace: os.Getenv("LAB_NAMESPACE"), Progress: func(step string) { fmt.Fprintln(os.Stderr, step) },
			Values: append([]string{"server.replicas=0", "client.replicas=0", "auditor.replicas=0"}, strings.Fields(os.Getenv("LAB_VALUES"))...),
		}
		o.Reuse = o.Context == ""
		c, err := cluster.Up(ctx, o)
		if err != nil {
			shared.err = err
			return
		}
		shared.end = func() error {
			if shared.s != nil {
				_ = shared.s.Close(context.Background())
			}
			return c.Close(context.Background())
		}
		shared.s, shared.err = New(ctx, Options{Config: c.Config, Namespace: c.Namespace, Release: c.Release, Cluster: c, Own: c.Ours()})
	})
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.s
}

// lives are the event lines of a room, by life.
type lives struct {
	mu    sync.Mutex
	lines map[string]map[int64][]event.Line
}

func (l *lives) add(line event.Line) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lines == nil {
		l.lines = map[string]map[int64][]event.Line{}
	}
	if l.lines[line.Instance] == nil {
		l.lines[line.Instance] = map[int64][]event.Line{}
	}
	l.lines[line.Instance][line.Start] = append(l.lines[line.Instance][line.Start], line)
}

// check wants every life of an instance numbered without a gap, and so many of
// them to end with eof.
func (l *lives) check(t *testing.T, name string, all, eofs int) {
	t.Helper()
	l.mu.Lock()
	defer l.mu.Unlock()
	ended := 0
	for start, lines := range l.lines[name] {
		for i, line := range lines {
			if line.Seq != uint64(i+1) {
				t.Errorf("%s, life %d: line %d has number %d", name, start, i+1, line.Seq)
			}
		}
		if lines[len(lines)-1].Event == event.EOF {
			ended++
		}
	}
	if len(l.lines[name]) != all || ended != eofs {
		t.Errorf("%s: %d lives with lines, %d with an eof; want %d, %d", name, len(l.lines[name]), ended, all, eofs)
	}
}

func room(t *testing.T, s *Substrate) (*Room, *lives) {
	t.Helper()
	seen := &lives{}
	r, err := s.Open(t.Context(), t.Name(), nil, seen.add)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return r.(*Room), seen
}

func must(t *testing.T, what string, err error) {
	t.Helper()
	if err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}

func call(t *testing.T, r *Room, name string) {
	t.Helper()
	p, err := r.Start(t.Context(), substrate.Service{Kind: substrate.Client, Name: name, Args: []string{"call", "--output", "json", "add", "0.1", "0.2"}})
	must(t, "start "+name, err)
	exit, err := p.Wait(t.Context())
	must(t, "wait for "+name, err)
	var said struct{ Result string }
	if err := json.Unmarshal(bytes.TrimSpace(exit.Stdout), &said); err != nil || said.Result != "0.3" || exit.Code != 0 {
		t.Errorf("%s: printed %q, status %d, %v; want 0.3; log: %q", name, exit.Stdout, exit.Code, err, p.Tail())
	}
}

// A service that is killed ends with 137 and is started again by the kubelet;
// its lines are complete up to the kill, and those of a drain up to eof.
func TestServiceLives(t *testing.T) {
	t.Parallel()
	r, seen := room(t, release(t))
	server, err := r.Start(t.Context(), substrate.Service{Kind: substrate.CalculatorServer, Name: "server-0", Restart: true})
	must(t, "start", err)
	must(t, "ready", server.WaitReady(t.Context()))
	call(t, r, "client-0")
	must(t, "crash", server.Crash(t.Context()))
	pod, err := r.s.client.CoreV1().Pods(r.s.Namespace).Get(t.Context(), r.name+"-server-0", metav1.GetOptions{})
	must(t, "get the pod", err)
	if end := ended(pod, 0); end == nil || end.ExitCode != killedCode {
		t.Errorf("the API tells of the first life: %+v, want exit code %d", end, killedCode)
	}
	must(t, "ready again", server.WaitReady(t.Context()))
	if server.Restarts() != 1 || server.Crashes() != 1 {
		t.Errorf("%d restarts, %d crashes; want one of each", server.Restarts(), server.Crashes())
	}
	call(t, r, "client-1")
	must(t, "terminate", server.Terminate(t.Context()))
	if exit, err := server.Wait(t.Context()); err != nil || exit.Code != 0 || exit.Killed {
		t.Errorf("after SIGTERM: %+v, %v; want status 0; log: %q", exit, err, server.Tail())
	}
	seen.check(t, "server-0", 2, 1)
	seen.check(t, "client-0", 1, 1)
	seen.check(t, "client-1", 1, 1)
	if told := r.Disturbances(); len(told) > 0 {
		t.Errorf("disturbances %q, want none: all of it was ordered", told)
	}
}

// What is stopped by SIGSTOP holds its sockets and says nothing, on any machine of
// a cluster of ours, until it goes on; on somebody else's it is not possible.
func TestPause(t *testing.T) {
	t.Parallel()
	s := release(t)
	r, _ := room(t, s)
	nodes, err := s.client.CoreV1().Nodes().List(t.Context(), metav1.ListOptions{})
	must(t, "list nodes", err)
	for i, node := range nodes.Items {
		server, err := r.Start(t.Context(), substrate.Service{Kind: substrate.CalculatorServer, Name: fmt.Sprintf("server-%d", i), Machine: node.Name})
		must(t, "start", err)
		must(t, "ready", server.WaitReady(t.Context()))
		if err := server.Pause(t.Context()); !s.Own {
			if !errors.Is(err, substrate.ErrUnsupported) {
				t.Errorf("Pause in somebody else's cluster: %v, want %v", err, substrate.ErrUnsupported)
			}
			return
		} else if err != nil {
			t.Fatalf("pause on %s: %v", node.Name, err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if _, err := server.Admin(ctx, "GET", "/livez", nil); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a stopped server on %s: %v, want no answer", node.Name, err)
		}
		cancel()
		must(t, "resume", server.Resume(t.Context()))
		must(t, "ready again", server.WaitReady(t.Context()))
	}
	if told := r.Disturbances(); len(told) > 0 {
		t.Errorf("disturbances %q, want none: all of it was ordered", told)
	}
}

// A command of the auditor's program finds the auditor, and has what it is given.
func TestCommand(t *testing.T) {
	t.Parallel()
	r, _ := room(t, release(t))
	auditor, err := r.Start(t.Context(), substrate.Service{Kind: substrate.DeadLetterAuditor, Name: "auditor-0"})
	must(t, "start", err)
	must(t, "ready", auditor.WaitReady(t.Context()))
	for given, want := range map[string]substrate.Exit{
		"": {Stdout: []byte("0 confirmed: 0 ended, 0 on record as dead letters, 0 gaps\n")},
		`{"event":"confirmed","seq":1,"request":"r"}`: {Code: 1, Stdout: []byte("1 confirmed: 0 ended, 0 on record as dead letters, 1 gaps\nr\n")},
	} {
		got, err := auditor.Command(t.Context(), strings.NewReader(given), "reconcile", "-")
		if err != nil || got.Code != want.Code || !bytes.Equal(got.Stdout, want.Stdout) {
			t.Errorf("%q: got status %d, %q, %v; want %d, %q; log: %q", given, got.Code, got.Stdout, err, want.Code, want.Stdout, auditor.Tail())
		}
	}
}

// What somebody else deletes is told.
func TestSomebodyDeletesAPod(t *testing.T) {
	r, _ := room(t, release(t))
	server, err := r.Start(t.Context(), substrate.Service{Kind: substrate.CalculatorServer, Name: "server-0", Restart: true})
	must(t, "start", err)
	must(t, "ready", server.WaitReady(t.Context()))
	must(t, "delete", r.s.client.CoreV1().Pods(r.s.Namespace).Delete(t.Context(), r.name+"-server-0", metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}))
	_, err = server.Wait(t.Context())
	must(t, "wait", err)
	if told := strings.Join(r.Disturbances(), "; "); !strings.Contains(told, "server-0 was deleted, and not by the lab") {
		t.Errorf("disturbances %q, want the pod's deletion", told)
	}
}

// Nobody keeps others from deleting a pod by force, at any time and of any kind:
// no promise breaks for it, and each deletion is told.
func TestSomebodyDeletesByForce(t *testing.T) {
	s := release(t)
	before := len(s.pods.disturbances(0))
	var victims []string
	deleteByForce := func(pod string) {
		victims = append(victims, pod)
		if err := s.client.CoreV1().Pods(s.Namespace).Delete(t.Context(), pod, metav1.DeleteOptions{GracePeriodSeconds: new(int64(0))}); err != nil {
			t.Error(err)
		}
	}
	result := scenario.Runner{Substrate: s, Tell: func(_, _, step string) { t.Log(step) }}.Run(t.Context(), scenario.Scenario{
		Name: "by-force", Run: func(w *scenario.World) {
			// ARRANGE
			workload := w.Deploy(substrate.CalculatorServer, 1, nil)
			w.Serve(nil)
			w.Audit(nil)
			w.Load("--endless", "--in-flight", "4", "--timeout", "60s")
			w.Until("calls are answered", func(l *ledger.Ledger) bool { return len(l.With(event.Answered)) >= 50 })
			// BREAK
			room := s.roomNames()[0]
			old := workload.Pods()[0].Name()
			of := s.pods.get(old).Labels
			var somebody sync.WaitGroup
			somebody.Go(func() {
				_ = s.pods.awaitAny(t.Context(), func() bool { return len(s.pods.list(labels.Set{instance: of[instance], component: of[component]})) > 1 })
				deleteByForce(old) // while its successor starts
			})
			workload.Upgrade(scenario.Settings{"LOG_LEVEL": "warn"})
			somebody.Wait()
			for _, pod := range []string{
				s.pods.list(labels.Set{instance: s.Release, component: "postgresql"})[0].Name,
				s.broker.pod(0), room + "-server-0", room + "-auditor-0", room + "-client-0",
			} {
				deleteByForce(pod)
			}
			// OBSERVE
			v := w.Settle()
			// VERDICT
			v.Same("every call is answered", v.With(event.Answered), v.With(event.Publishing))
		},
	})
	t.Logf("%s: %s", result.Verdict, result.Reason)
	if result.Verdict != scenario.Held && result.Verdict != scenario.Inconclusive {
		t.Errorf("got %s: %s; want %s or %s", result.Verdict, result.Reason, scenario.Held, scenario.Inconclusive)
	}
	told := s.pods.disturbances(before)
	for _, pod := range victims {
		if !slices.Contains(told, "pod "+pod+" was deleted, and not by the lab") {
			t.Errorf("the deletion of %s is not told: %q", pod, told)
		}
	}
}

// drained reads what the broker's nodes write, to their ends, and then wants each
// to have drained, by a preStop hook that did not fail.
func drained(t *testing.T, b *Broker) (check func()) {
	const drain = "Node is ready to be shut down for maintenance or upgrade"
	logs := map[types.UID]*bytes.Buffer{}
	var read sync.WaitGroup
	for i := range b.Nodes() {
		pod := b.s.pods.get(b.pod(i))
		said := &bytes.Buffer{}
		logs[pod.UID] = said
		log, err := b.s.client.CoreV1().Pods(b.s.Namespace).GetLogs(pod.Name, &corev1.PodLogOptions{Follow: true}).Stream(t.Context())
		must(t, "read the log of "+pod.Name, err)
		read.Go(func() {
			defer log.Close()
			_, _ = said.ReadFrom(log)
		})
	}
	return func() {
		t.Helper()
		read.Wait()
		for uid, log := range logs {
			if !strings.Contains(log.String(), drain) {
				t.Errorf("a node went without %q; its last lines: %s", drain, log.Bytes()[max(0, log.Len()-2000):])
			}
			events, err := b.s.client.CoreV1().Events(b.s.Namespace).List(t.Context(), metav1.ListOptions{
				FieldSelector: "reason=FailedPreStopHook,involvedObject.uid=" + string(uid),
			})
			must(t, "list events", err)
			for _, e := range events.Items {
				t.Errorf("%s: %s", e.InvolvedObject.Name, e.Message)
			}
		}
	}
}

// withoutAPeer crashes a node while another is away for good: it must be ready
// again all the same, or two bad machines would be an outage.
func withoutAPeer(t *testing.T, b *Broker) {
	t.Helper()
	peer := b.s.pods.get(b.pod(b.Nodes() - 1))
	b.s.pods.end(peer)
	must(t, "take a node away", b.scale(t.Context(), b.Nodes()-1))
	must(t, "wait for its end", b.s.pods.await(t.Context(), peer.Name, func(p *corev1.Pod) bool { return p == nil }))
	life := restarts(b.s.pods.get(b.pod(0)))
	must(t, "crash a node without it", b.Crash(t.Context(), 0))
	ctx, cancel := context.WithTimeout(t.Context(), 90*time.Second)
	defer cancel()
	must(t, "wait for the node to be ready while its peer is away", b.s.pods.await(ctx, b.pod(0), func(p *corev1.Pod) bool { return restarts(p) > life && ready(p) }))
	must(t, "start all", b.StartAll(t.Context()))
}

// A broker node that is killed ends with 137, comes back by itself, and what it
// had is there; killed all at once, they stay away until they are started.
func TestBrokerCrash(t *testing.T) {
	s := release(t)
	r, _ := room(t, s)
	b := s.broker
	must(t, "crash a node", b.Crash(t.Context(), 0))
	must(t, "start it", b.Start(t.Context(), 0))
	pod := s.pods.get(b.pod(0))
	if end := ended(pod, restarts(pod)-1); end == nil || end.ExitCode != killedCode {
		t.Errorf("the node's last life ended with %+v, want %d", end, killedCode)
	}
	if _, err := r.Queue(t.Context(), contract.RequestQueue); err != nil {
		t.Errorf("the request queue after the crash: %v", err)
	}
	must(t, "crash all", b.CrashAll(t.Context()))
	if conn, err := vhost.Dial(r.AdminURL()); err == nil {
		_ = conn.Close()
		t.Error("a broker of which all nodes were killed answers")
	}
	must(t, "start all", b.StartAll(t.Context()))
	if _, err := r.Queue(t.Context(), contract.RequestQueue); err != nil {
		t.Errorf("the request queue after all were killed: %v", err)
	}
	if b.Nodes() > 2 {
		withoutAPeer(t, b)
	}
	pod = s.pods.get(b.pod(0))
	haveDrained := drained(t, b)
	must(t, "roll", b.Roll(t.Context()))
	haveDrained()
	if now := s.pods.get(b.pod(0)); now.UID == pod.UID || restarts(now) != 0 {
		t.Errorf("pod %s after a roll: UID %s, %d restarts; want another pod", now.Name, now.UID, restarts(now))
	}
	if leader, err := b.Leader(t.Context(), r, contract.RequestQueue); err != nil || leader < 0 || leader >= b.Nodes() {
		t.Errorf("leader %d, %v", leader, err)
	}
	if out, err := b.Command(t.Context(), 0, "list_vhosts", "--quiet"); err != nil || !strings.Contains(string(out), r.name) {
		t.Errorf("rabbitmqctl list_vhosts: %s, %v; want %s in it", out, err, r.name)
	}
	if told := r.Disturbances(); len(told) > 0 {
		t.Errorf("disturbances %q, want none: all of it was ordered", told)
	}
}

// Nothing of a room is left after Close.
func TestCloseLeavesNothing(t *testing.T) {
	s := release(t)
	r, _ := room(t, s)
	_, err := r.Start(t.Context(), substrate.Service{Kind: substrate.DeadLetterAuditor, Name: "auditor", Restart: true})
	must(t, "start", err)
	must(t, "close", r.Close(t.Context()))
	left, err := s.client.CoreV1().Pods(s.Namespace).List(t.Context(), metav1.ListOptions{LabelSelector: roomLabel + "=" + r.name})
	must(t, "list pods", err)
	if len(left.Items) > 0 {
		t.Errorf("%d pods are left", len(left.Items))
	}
	if _, err := s.broker.api.Queue(t.Context(), r.name, contract.RequestQueue); vhost.Status(err) != 404 {
		t.Errorf("the request queue: %v, want 404", err)
	}
	if _, err := s.psql(t.Context(), `DROP DATABASE "`+r.name+`-auditor"`); err == nil || !strings.Contains(err.Error(), "does not exist") {
		t.Errorf("drop the auditor's database: %v, want it gone already", err)
	}
	if !s.Own {
		return
	}
	const orphan = "lab-zzzzz-1-left" // by a lab that was killed
	_, err = s.psql(t.Context(), `CREATE DATABASE "`+orphan+`-auditor"`)
	must(t, "make a database", err)
	must(t, "make a virtual host", s.broker.api.Create(t.Context(), orphan))
	must(t, "sweep", s.sweep(t.Context()))
	if names, err := s.psql(t.Context(), `SELECT datname FROM pg_database WHERE datname LIKE 'lab-%'`); err != nil || len(names) > 0 {
		t.Errorf("databases after a sweep: %q, %v; want none", names, err)
	}
	if _, err := s.broker.api.Queues(t.Context(), orphan); vhost.Status(err) != 404 {
		t.Errorf("the virtual host after a sweep: %v, want 404", err)
	}
}

// A workload is the chart itself: several pods, scaled, upgraded and deleted,
// and every line of all of them is in the room's ledger.
func TestWorkload(t *testing.T) {
	t.Parallel()
	r, seen := room(t, release(t))
	w, err := substrate.Deploy(t.Context(), r, substrate.Service{Kind: substrate.CalculatorServer, Name: "server", Env: map[string]string{"PREFETCH": "7"}}, 2)
	must(t, "deploy", err)
	first := w.Pods()
	if len(first) != 2 {
		t.Fatalf("%d pods, want 2", len(first))
	}
	call(t, r, "client-0")
	must(t, "delete", first[0].Terminate(t.Context()))
	_, err = first[0].Wait(t.Context())
	must(t, "wait for the deleted pod", err)
	must(t, "ready", w.WaitReady(t.Context()))
	must(t, "crash", first[1].Crash(t.Context()))
	must(t, "ready", w.WaitReady(t.Context()))
	if first[1].Restarts() != 1 {
		t.Errorf("%d restarts of the crashed pod, want 1", first[1].Restarts())
	}
	must(t, "upgrade", w.Upgrade(t.Context(), map[string]string{"WORK_DELAY": "1ms"}))
	second := w.Pods()
	if len(second) != 2 || slices.ContainsFunc(second, func(p substrate.Process) bool { return p.Name() == first[1].Name() }) {
		t.Errorf("pods after the upgrade: %v, want two others than %s", second, first[1].Name())
	}
	call(t, r, "client-1")
	must(t, "scale", w.Scale(t.Context(), 0))
	for _, p := range append(first[1:], second...) {
		_, err := p.Wait(t.Context())
		must(t, "wait for "+p.Name(), err)
	}
	for _, p := range append(first[:1], second...) {
		seen.check(t, p.Name(), 1, 1)
	}
	must(t, "scale back", w.Scale(t.Context(), 1))
	if third := w.Pods(); len(third) != 1 {
		t.Errorf("%d pods after scaling back, want 1", len(third))
	}
	call(t, r, "client-2")
	if told := r.Disturbances(); len(told) > 0 {
		t.Errorf("disturbances %q, want none: all of it was ordered", told)
	}
	must(t, "close", r.Close(t.Context()))
	left := metav1.ListOptions{LabelSelector: instance + "=" + w.(*Workload).release}
	deployments, err := r.s.client.AppsV1().Deployments(r.s.Namespace).List(t.Context(), left)
	must(t, "list deployments", err)
	secrets, err := r.s.client.CoreV1().Secrets(r.s.Namespace).List(t.Context(), left)
	must(t, "list secrets", err)
	if len(deployments.Items)+len(secrets.Items) > 0 {
		t.Errorf("after Close: %d Deployments, %d Secrets of the workload", len(deployments.Items), len(secrets.Items))
	}
}
