package kubernetes

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"

	"warren.example/lab/substrate/vhost"
)

// stage is a release without services, whose broker answers unless it is scaled
// to zero.
type stage struct {
	*Substrate
	mu     sync.Mutex
	vhosts map[string]bool
}

func newStage(t *testing.T, vhosts []string, objects ...runtime.Object) *stage {
	set := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: "broker", Namespace: namespace, Annotations: map[string]string{nodesKept: "3"}},
		Spec:       appsv1.StatefulSetSpec{Replicas: new(int32(0))}, // as CrashAll leaves it
	}
	s := &stage{vhosts: map[string]bool{}, Substrate: &Substrate{
		Options: Options{Namespace: namespace, Release: "warren", Own: true},
		client:  fake.NewClientset(append(objects, set)...), rooms: map[*Room]bool{},
	}}
	for _, v := range vhosts {
		s.vhosts[v] = true
	}
	api := httptest.NewServer(http.HandlerFunc(s.answer))
	t.Cleanup(api.Close)
	s.broker = &Broker{s: s.Substrate, set: "broker", nodes: nodesOf(set), api: vhost.API{URL: api.URL}}
	var err error
	if s.pods, err = watchPods(t.Context(), s.client, namespace, "warren", "lab-"); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *stage) set(t *testing.T) *appsv1.StatefulSet {
	set, err := s.client.AppsV1().StatefulSets(namespace).Get(context.Background(), "broker", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return set
}

// answer is the management API's.
func (s *stage) answer(w http.ResponseWriter, r *http.Request) {
	set, err := s.client.AppsV1().StatefulSets(namespace).Get(r.Context(), "broker", metav1.GetOptions{})
	if err != nil || *set.Spec.Replicas == 0 {
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.Method == http.MethodDelete {
		delete(s.vhosts, strings.TrimPrefix(r.URL.Path, "/api/vhosts/"))
		return
	}
	all := []map[string]string{}
	for v := range s.vhosts {
		all = append(all, map[string]string{"name": v})
	}
	_ = json.NewEncoder(w).Encode(all)
}

// Ctrl-C may come while a scenario has the broker away.
func TestCloseBringsTheBrokerBack(t *testing.T) {
	for name, closed := range map[string]func(context.Context, *stage, *Room) error{
		"a room":      func(ctx context.Context, _ *stage, r *Room) error { return r.Close(ctx) },
		"a substrate": func(ctx context.Context, s *stage, _ *Room) error { return s.Close(ctx) },
		"one of no room": func(ctx context.Context, s *stage, r *Room) error {
			s.forget(r)
			return s.Close(ctx)
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			s := newStage(t, []string{"lab-ab12c-1-poison"})
			r := &Room{s: s.Substrate, name: "lab-ab12c-1-poison"}
			r.ctx, r.end = context.WithCancel(t.Context())
			s.rooms[r] = true
			if err := closed(ctx, s, r); err != nil {
				t.Error(err)
			}
			set := s.set(t)
			if kept := set.Annotations[nodesKept]; *set.Spec.Replicas != 3 || kept != "" {
				t.Errorf("the StatefulSet has %d replicas and keeps %q, want 3 and nothing", *set.Spec.Replicas, kept)
			}
			if s.vhosts[r.name] && name != "one of no room" {
				t.Errorf("virtual host %s is left", r.name)
			}
		})
	}
}

// What a lab keeps on the StatefulSet counts while that is scaled to zero: later
// the chart may want another number.
func TestNodesOf(t *testing.T) {
	kept := map[string]string{nodesKept: "3"}
	for name, tc := range map[string]struct {
		kept     map[string]string
		replicas *int32
		want     int
	}{
		"the chart's":          {nil, new(int32(3)), 3},
		"Kubernetes' own":      {nil, nil, 1},
		"scaled to zero":       {kept, new(int32(0)), 3},
		"changed by the chart": {kept, new(int32(1)), 1},
	} {
		set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Annotations: tc.kept}, Spec: appsv1.StatefulSetSpec{Replicas: tc.replicas}}
		if got := nodesOf(set); got != tc.want {
			t.Errorf("%s: %d, want %d", name, got, tc.want)
		}
	}
}

// A lab that was killed may have left a room of which there is no pod.
func TestSweep(t *testing.T) {
	secret := func(name string, labels map[string]string) *corev1.Secret {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: namespace, Labels: labels}}
	}
	s := newStage(t, []string{"calc", "lab-theirs", "lab-ab12c-1-poison"},
		secret("lab-ab12c-1-server-database", map[string]string{roomLabel: "lab-ab12c-1-poison"}), secret("warren-cookie", nil),
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "worker"}}, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "theirs"}, Spec: corev1.NodeSpec{Unschedulable: true}})
	defer s.pods.close()
	for what, err := range map[string]error{"scale": s.broker.scale(t.Context(), 3), "cordon": s.cordon(t.Context(), "worker", true)} {
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
	}
	if err := s.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(s.vhosts) != 2 || s.vhosts["lab-ab12c-1-poison"] {
		t.Errorf("virtual hosts %v, want the room's gone and the others left", s.vhosts)
	}
	secrets, err := s.client.CoreV1().Secrets(namespace).List(t.Context(), metav1.ListOptions{})
	if err != nil || len(secrets.Items) != 1 || secrets.Items[0].Name != "warren-cookie" {
		t.Errorf("Secrets %v, %v; want the room's gone and the others left", secrets.Items, err)
	}
	for name, closed := range map[string]bool{"worker": false, "theirs": true} {
		n, err := s.client.CoreV1().Nodes().Get(t.Context(), name, metav1.GetOptions{})
		if err != nil || n.Spec.Unschedulable != closed || len(n.Labels) > 0 {
			t.Errorf("node %s: closed %t, labels %v, %v; want %t, none", name, n.Spec.Unschedulable, n.Labels, err, closed)
		}
	}
}
