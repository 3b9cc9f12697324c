package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"

	"warren.example/messaging/event"
)

// kubelet has one pod with one container, and keeps the logs of its last two
// lives, as the real one does.
type kubelet struct {
	t      *testing.T
	client *fake.Clientset

	mu    sync.Mutex
	lives []string // logs, a letter for each line
	lost  string   // what is answered in place of a dead life's log
	cuts  []cut    // of the streams to come; after them none is cut
	pod   *corev1.Pod
}

// cut is what happens while a stream is read, which then breaks in the middle or,
// if whole, ends in peace; or, if refused, before there is one.
type cut struct {
	happens        func()
	whole, refused bool
}

const namespace = "warren"

func newKubelet(t *testing.T, log string) *kubelet {
	k := &kubelet{t: t, lives: []string{log}, pod: &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: "it", Namespace: namespace, UID: "1", Labels: map[string]string{partOf: suite, instance: "room", roomLabel: "room"}},
		Status:     corev1.PodStatus{Phase: corev1.PodRunning, ContainerStatuses: []corev1.ContainerStatus{{State: running()}}},
	}}
	k.client = fake.NewClientset(k.pod.DeepCopy())
	return k
}

func running() corev1.ContainerState {
	return corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
}

func dead(code int32) corev1.ContainerState {
	return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code}}
}

// change is called with the lock held.
func (k *kubelet) change(f func(*corev1.Pod)) {
	f(k.pod)
	if _, err := k.client.CoreV1().Pods(namespace).UpdateStatus(context.Background(), k.pod.DeepCopy(), metav1.UpdateOptions{}); err != nil {
		k.t.Error(err)
	}
}

// restart begins the next life, with this log.
func (k *kubelet) restart(log string) {
	k.lives = append(k.lives, log)
	k.change(func(p *corev1.Pod) {
		s := &p.Status.ContainerStatuses[0]
		s.RestartCount++
		s.State, s.LastTerminationState = running(), dead(killedCode)
	})
}

// end ends the last life and the pod.
func (k *kubelet) end() {
	k.change(func(p *corev1.Pod) {
		p.Status.Phase = corev1.PodSucceeded
		p.Status.ContainerStatuses[0].State = dead(0)
	})
}

func (k *kubelet) remove() {
	k.pod = nil
	if err := k.client.CoreV1().Pods(namespace).Delete(context.Background(), "it", metav1.DeleteOptions{}); err != nil {
		k.t.Error(err)
	}
}

// open is a stream of the log: all lines of a life, after its end or after what
// happens when it breaks.
func (k *kubelet) open(_ context.Context, o *corev1.PodLogOptions) (io.ReadCloser, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.pod == nil {
		return nil, apierrors.NewNotFound(schema.GroupResource{Resource: "pods"}, "it")
	}
	life := len(k.lives) - 1
	if o.Previous {
		life--
	}
	var text strings.Builder
	for i, line := range strings.Split(k.lives[life], "") {
		fmt.Fprintf(&text, "2026-11-24T03:00:%02d.%09dZ %s\n", life, i, line)
	}
	if dead := k.pod.Status.ContainerStatuses[0].State.Terminated != nil; (o.Previous || dead) && k.lost != "" {
		return io.NopCloser(strings.NewReader(strings.TrimPrefix(k.lost, "-"))), nil
	}
	whole := io.NopCloser(strings.NewReader(text.String()))
	if o.Previous || len(k.cuts) == 0 {
		return whole, nil
	}
	c := k.cuts[0]
	k.cuts = k.cuts[1:]
	c.happens()
	if c.refused {
		return nil, errors.New("connection refused")
	}
	if c.whole {
		return whole, nil
	}
	half := text.String()[:text.Len()/2]
	return io.NopCloser(io.MultiReader(strings.NewReader(half), broken{})), nil
}

func nothing() {}

type broken struct{}

func (broken) Read([]byte) (int, error) { return 0, errors.New("connection reset by peer") }

// However streams end, each line is taken once and in order, and a life that
// could not be read is told.
func TestFollow(t *testing.T) {
	for name, tc := range map[string]struct {
		log    string
		happen func(*kubelet) // before the log is followed
		want   string
		missed []int
	}{
		"nothing happens": {"abcd", func(k *kubelet) { k.end() }, "abcd", nil},
		"a stream breaks": {"abcd", func(k *kubelet) {
			k.cuts = []cut{{happens: nothing}, {happens: nothing}, {happens: k.end}}
		}, "abcd", nil},
		"a stream ends in peace before the container does": {"abcd", func(k *kubelet) {
			k.cuts = []cut{{happens: nothing, whole: true}, {happens: k.end}}
		}, "abcd", nil},
		"it restarts while nobody reads": {"abcd", func(k *kubelet) {
			k.cuts = []cut{{happens: func() { k.restart("efgh") }}, {happens: k.end, whole: true}}
		}, "abcdefgh", nil},
		"it restarts twice while nobody reads": {"abcd", func(k *kubelet) {
			k.cuts = []cut{{happens: func() { k.restart("efgh"); k.restart("ijkl") }}, {happens: k.end, whole: true}}
		}, "abefghijkl", []int{0}},
		"it is deleted after its last line was read": {"abcd", func(k *kubelet) {
			k.cuts = []cut{{happens: k.remove, whole: true}}
		}, "abcd", nil},
		"it is deleted while nobody reads": {"abcd", func(k *kubelet) {
			k.cuts = []cut{{happens: k.remove}}
		}, "ab", []int{0}},
		"it is deleted after a stream that ended in peace before it": {"abcd", func(k *kubelet) {
			k.cuts = []cut{{happens: nothing, whole: true}, {happens: k.remove, refused: true}}
		}, "abcd", []int{0}},
		"it is deleted after its last word": {"abc.", func(k *kubelet) {
			k.cuts = []cut{{happens: nothing, whole: true}, {happens: k.remove, refused: true}}
		}, "abc.", nil},
		"it is deleted unread after the last word of another life": {"abc.", func(k *kubelet) {
			k.cuts = []cut{{happens: func() { k.restart("efgh") }, whole: true}, {happens: k.remove, refused: true}}
		}, "abc.", []int{1}},
		"the kubelet has no log of the dead life": {"abcd", func(k *kubelet) {
			k.lost = "unable to retrieve container logs for containerd://1"
			k.cuts = []cut{{happens: func() { k.restart("efgh") }}, {happens: nothing, whole: true}, {happens: k.end}}
		}, "abefgh", []int{0, 1}},
		"the kubelet has an empty log of the dead life": {"abcd", func(k *kubelet) {
			k.lost = "-"
			k.cuts = []cut{{happens: func() { k.restart("efgh") }}, {happens: nothing, whole: true}, {happens: k.end}}
		}, "abefgh", []int{0, 1}},
		"its log was rotated while nobody read": {"abcd", func(k *kubelet) {
			k.cuts = []cut{{happens: nothing}, {happens: func() {
				k.lives[0] = "wxyz"
				k.end()
			}, refused: true}}
		}, "ab", []int{0}},
		"the kubelet is a life ahead of the API": {"abcd", func(k *kubelet) {
			k.cuts = []cut{{happens: func() { k.lives = append(k.lives, "efgh") }}, {happens: nothing, whole: true}, {happens: func() {
				k.lives = k.lives[:1]
				k.restart("efgh")
			}, refused: true}, {happens: k.end, whole: true}}
		}, "abcdefgh", nil},
		"the kubelet is a life ahead of the API when it is asked for the dead one": {"abcd", func(k *kubelet) {
			k.cuts = []cut{{happens: func() { k.restart("efgh"); k.lives = append(k.lives, "ijkl") }}, {happens: func() {
				k.lives = k.lives[:2]
				k.restart("ijkl")
			}, refused: true}, {happens: k.end, whole: true}}
		}, "abefghijkl", []int{0}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			k := newKubelet(t, tc.log)
			p, err := watchPods(ctx, k.client, namespace, "warren", "room")
			if err != nil {
				t.Fatal(err)
			}
			defer p.close()
			k.mu.Lock()
			tc.happen(k)
			k.mu.Unlock()
			var got strings.Builder
			var missed []int
			f := newFollower(p, "it", func(line []byte) bool {
				word := strings.TrimSpace(string(line))
				got.WriteString(word)
				return word == "."
			}, func(life int) { missed = append(missed, life) })
			f.open = k.open
			f.run(ctx)
			if got.String() != tc.want || !slices.Equal(missed, tc.missed) {
				t.Errorf("took %q, missed lives %v; want %q, %v", got.String(), missed, tc.want, tc.missed)
			}
		})
	}
}

// Whoever closes a room waits for this, also when the pod could not be ended.
func TestFollowEndsWithItsContext(t *testing.T) {
	k := newKubelet(t, "abcd")
	p, err := watchPods(t.Context(), k.client, namespace, "warren", "room")
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	ctx, cancel := context.WithCancel(t.Context())
	f := newFollower(p, "it", func([]byte) bool { cancel(); return false }, func(life int) { t.Errorf("missed life %d", life) })
	f.open = k.open
	f.run(ctx) // the pod runs on
}

// What has no end is not a line: it comes again, or its process died over it.
func TestHalfALine(t *testing.T) {
	var got []string
	f := newFollower(&pods{}, "it", func(line []byte) bool { got = append(got, string(line)); return false }, nil)
	for _, tc := range []struct {
		text string
		want error
	}{{"", errNoEnd}, {"t1 a\nt2 b", errNoEnd}, {"t1 a\nt2 b\nt2 b\nt3 b\n", nil}, {"t4 a\n", errOther}} {
		if err := f.lines(strings.NewReader(tc.text)); !errors.Is(err, tc.want) {
			t.Fatalf("%q: %v, want %v", tc.text, err, tc.want)
		}
	}
	if want := []string{"a\n", "b\n", "b\n"}; !slices.Equal(got, want) {
		t.Errorf("took %q, want %q", got, want)
	}
}

// Kubernetes mixes both outputs of a container.
func TestSorter(t *testing.T) {
	var events []string
	s := sorter{event: func(l event.Line) { events = append(events, fmt.Sprintf("%d %s", l.Seq, l.Event)) }}
	for _, line := range []string{
		`{"run":"r","instance":"i","seq":1,"event":"publishing","request":"a"}`,
		`{"level":"info","ts":"2026-11-24T03:00:00Z","msg":"connected"}`,
		`{"request":"a","result":"0.3","outcome":"answered"}`,
		`answered  500`,
		`{not json`,
	} {
		s.take([]byte(line + "\n"))
	}
	if want := []string{"1 publishing"}; !slices.Equal(events, want) {
		t.Errorf("events %q, want %q", events, want)
	}
	if got, want := string(s.printed()), `{"request":"a","result":"0.3","outcome":"answered"}`+"\n"; got != want {
		t.Errorf("printed %q, want %q", got, want)
	}
	if got := s.tail.Lines(); len(got) != 3 || !strings.Contains(got[0], "connected") || got[1] != "answered  500" || got[2] != "{not json" {
		t.Errorf("log %q, want the three other lines", got)
	}
}

// What happens to pods that the lab did not order is told once; what it ordered
// is not, but whoever takes a pod's time to drain away is told all the same.
func TestDisturbances(t *testing.T) {
	pod := func(of string, change ...func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{
			ObjectMeta: metav1.ObjectMeta{Name: "it", Namespace: namespace, UID: "1", Labels: map[string]string{partOf: suite, instance: of}},
			Spec:       corev1.PodSpec{TerminationGracePeriodSeconds: new(int64(30))},
			Status:     corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{State: running()}}},
		}
		for _, f := range change {
			f(p)
		}
		return p
	}
	deleted := func(grace int64) func(*corev1.Pod) {
		return func(p *corev1.Pod) { p.DeletionTimestamp, p.DeletionGracePeriodSeconds = new(metav1.Now()), &grace }
	}
	restarted := func(p *corev1.Pod) { p.Status.ContainerStatuses[0].RestartCount++ }
	over := func(p *corev1.Pod) { p.Status.ContainerStatuses[0].State = dead(0) }
	another := func(p *corev1.Pod) { p.UID = "2" }
	starved := func(p *corev1.Pod) {
		restarted(p)
		p.Status.ContainerStatuses[0].LastTerminationState = corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: killedCode, Reason: "OOMKilled"}}
	}
	crash := func(p *pods) { p.crash(pod(""), true) }
	end := func(p *pods) { p.end(pod("")) }
	replace := func(p *pods) { p.replace([]*corev1.Pod{pod("")}) }
	const wasDeleted = "pod it was deleted, and not by the lab"
	for name, tc := range map[string]struct {
		ordered func(*pods)
		seen    []*corev1.Pod // one state after the other; nil: it is gone
		want    string        // empty: nothing is told
	}{
		"a service dies and starts again":             {nil, []*corev1.Pod{pod("room-1"), pod("room-1", restarted)}, ""},
		"a service is deleted":                        {nil, []*corev1.Pod{pod("room-1"), pod("room-1", deleted(30)), nil}, wasDeleted},
		"by the lab":                                  {end, []*corev1.Pod{pod("room-1"), pod("room-1", deleted(3)), nil}, ""},
		"a service without memory":                    {end, []*corev1.Pod{pod("room-1"), pod("room-1", starved)}, "pod it ran out of memory, and not by the lab"},
		"a broker node restarts":                      {nil, []*corev1.Pod{pod("warren"), pod("warren", restarted)}, "pod it restarted (1), and not by the lab"},
		"crashed by the lab":                          {crash, []*corev1.Pod{pod("warren"), pod("warren", restarted)}, ""},
		"crashed by the lab, deleted by somebody":     {crash, []*corev1.Pod{pod("warren"), pod("warren", deleted(30))}, wasDeleted},
		"crashed by the lab, and back":                {func(p *pods) { crash(p); p.crash(pod(""), false) }, []*corev1.Pod{pod("warren"), pod("warren", restarted)}, "pod it restarted (1), and not by the lab"},
		"replaced":                                    {replace, []*corev1.Pod{pod("warren"), pod("warren", deleted(30)), pod("warren", deleted(30), over), pod("warren", deleted(0), over), nil}, ""},
		"replaced before it ran":                      {replace, []*corev1.Pod{pod("warren", over), pod("warren", deleted(0), over), nil}, ""},
		"to be replaced, deleted by force":            {replace, []*corev1.Pod{pod("warren"), pod("warren", deleted(0)), nil}, wasDeleted},
		"to be replaced, gone with nothing before it": {replace, []*corev1.Pod{pod("warren"), nil}, wasDeleted},
		"drains, deleted by force":                    {replace, []*corev1.Pod{pod("warren"), pod("warren", deleted(30)), pod("warren", deleted(0))}, wasDeleted},
		"another than was to be replaced":             {replace, []*corev1.Pod{pod("warren", another), pod("warren", another, deleted(30))}, wasDeleted},
		"was to be replaced, and was not":             {func(p *pods) { p.replace([]*corev1.Pod{pod("")})() }, []*corev1.Pod{pod("warren"), pod("warren", deleted(30))}, wasDeleted},
		"leaves when all the others are replaced": {func(p *pods) {
			done := p.replace([]*corev1.Pod{pod("")})
			p.see(pod("warren"), pod("warren", deleted(30)))
			done()
		}, []*corev1.Pod{pod("warren", deleted(30)), pod("warren", deleted(0), over), nil}, ""},
		"another has its name, and nobody saw how": {nil, []*corev1.Pod{pod("warren", restarted), pod("warren", another)}, wasDeleted},
		"another lab's": {nil, []*corev1.Pod{pod("elsewhere"), pod("elsewhere", deleted(0)), nil}, ""},
	} {
		p := newPods(nil, namespace, "warren", "room-")
		if tc.ordered != nil {
			tc.ordered(p)
		}
		var before *corev1.Pod
		for _, now := range tc.seen {
			if now == nil {
				p.gone(before)
				break
			}
			p.see(before, now)
			p.see(now, now)
			before = now
		}
		if got := strings.Join(p.disturbances(0), "; "); got != tc.want {
			t.Errorf("%s: %q, want %q", name, got, tc.want)
		}
	}
}
