package kubernetes

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"warren.example/lab/substrate"
)

func template() corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{partOf: suite, instance: "warren", component: "dead-letter-auditor"}},
		Spec: corev1.PodSpec{
			TopologySpreadConstraints: []corev1.TopologySpreadConstraint{{MaxSkew: 1}},
			Containers: []corev1.Container{{
				Name: "dead-letter-auditor", Args: []string{"serve"},
				Env: []corev1.EnvVar{
					{Name: "WARREN_AMQP_URL", Value: "amqp://warren-rabbitmq.warren.svc:5672/calc"},
					{Name: "WARREN_PREFETCH", Value: "100"},
					{Name: "WARREN_ADMIN_ADDR", Value: "0.0.0.0:9101"},
					{Name: "PREFETCH", Value: "somebody else's"},
					{Name: "WARREN_INSTANCE", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}},
				},
				LivenessProbe: &corev1.Probe{}, StartupProbe: &corev1.Probe{}, ReadinessProbe: &corev1.Probe{},
				VolumeMounts: []corev1.VolumeMount{{Name: "credentials"}, {Name: "data"}, {Name: "claimed"}},
			}},
			Volumes: []corev1.Volume{
				{Name: "credentials", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
					{Secret: &corev1.SecretProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "the-token"}, Items: []corev1.KeyToPath{{Key: "token", Path: "token"}}}},
				}}}},
				{Name: "claimed", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "warren-server"}}},
			},
		},
	}
}

// A room's pod is the release's, with another virtual host and the scenario's
// settings, and nothing of the release takes it for its own.
func TestClone(t *testing.T) {
	svc := substrate.Service{Kind: substrate.DeadLetterAuditor, Name: "auditor-0", Restart: true}
	pod := clone(template(), "lab-x-1-poison", "lab-x-1-poison-auditor-0", svc, map[string]string{
		"PREFETCH": "1", "INSTANCE": "auditor-0", "AMQP_URL": "amqp://warren-rabbitmq.warren.svc:5672/lab-x-1-poison", "ADMIN_ADDR": "",
	})
	var env []string
	c := pod.Spec.Containers[0]
	for _, v := range c.Env {
		env = append(env, fmt.Sprintf("%s=%s", v.Name, v.Value))
	}
	want := []string{"PREFETCH=somebody else's", "WARREN_AMQP_URL=amqp://warren-rabbitmq.warren.svc:5672/lab-x-1-poison", "WARREN_INSTANCE=auditor-0", "WARREN_PREFETCH=1"}
	if !slices.Equal(env, want) {
		t.Errorf("environment %q, want %q", env, want)
	}
	if l := pod.Labels; l[instance] != "lab-x-1-poison" || l[roomLabel] != "lab-x-1-poison" || l[partOf] != suite {
		t.Errorf("labels %v: the release's Services and budgets select by %s", l, instance)
	}
	if pod.Spec.RestartPolicy != corev1.RestartPolicyAlways || !slices.Equal(c.Args, []string{"serve"}) {
		t.Errorf("restart policy %s, arguments %q; want Always and the template's", pod.Spec.RestartPolicy, c.Args)
	}
	if c.LivenessProbe != nil || c.StartupProbe != nil || c.ReadinessProbe == nil {
		t.Errorf("probes: %v, %v, %v; want the readiness probe alone", c.LivenessProbe, c.StartupProbe, c.ReadinessProbe)
	}
	for _, v := range pod.Spec.Volumes {
		if v.PersistentVolumeClaim != nil || v.Name == "data" && v.EmptyDir == nil {
			t.Errorf("volume %s: %+v, want a folder of the pod's own", v.Name, v.VolumeSource)
		}
	}
	if n := len(pod.Spec.Volumes); n != 3 {
		t.Errorf("%d volumes, want one for each mount", n)
	}

	once := clone(template(), "r", "r-client-0", substrate.Service{Kind: substrate.Client, Args: []string{"call"}}, nil)
	if once.Spec.RestartPolicy != corev1.RestartPolicyNever || !slices.Equal(once.Spec.Containers[0].Args, []string{"call"}) {
		t.Errorf("a command: restart policy %s, arguments %q; want Never and its own", once.Spec.RestartPolicy, once.Spec.Containers[0].Args)
	}
	if n := len(template().Spec.Containers[0].Env); n != 5 {
		t.Errorf("the template itself was changed")
	}
}

func TestReadTemplate(t *testing.T) {
	if got := setting(template(), "PREFETCH"); got != "100" {
		t.Errorf("PREFETCH %q, want 100", got)
	}
	if got := setting(template(), "INSTANCE"); got != "" {
		t.Errorf("INSTANCE %q, want none: it comes from the pod", got)
	}
	if name, key := secretOf(template(), "token"); name != "the-token" || key != "token" {
		t.Errorf("Secret of the token %q, key %q; want the-token, token", name, key)
	}
	if name, _ := secretOf(template(), "password"); name != "" {
		t.Errorf("Secret of what is not mounted: %q, want none", name)
	}
	for rawURL, want := range map[string]string{
		"amqp://host:5672/calc": "amqp://host:5672/room",
		"postgres://warren_server@db:5432/warren_server?sslmode=disable": "postgres://warren_server@db:5432/room?sslmode=disable",
		"": "", "/var/lib/server.db": "",
	} {
		got, err := withPath(rawURL, "room")
		if got != want || (err == nil) != (want != "") {
			t.Errorf("withPath(%q): %q, %v; want %q", rawURL, got, err, want)
		}
	}
}

// A pod's name is a host name, and the room's name is the longest part of it.
func TestRoomName(t *testing.T) {
	for name, want := range map[string]string{
		"killed-before-ack":        "lab-ab12c-7-killed-before-ack",
		"Test/control: auto ack":   "lab-ab12c-7-test-control-auto-ack",
		strings.Repeat("long", 40): "lab-ab12c-7-" + strings.Repeat("long", 8),
	} {
		if got := roomName("ab12c", 7, name); got != want {
			t.Errorf("room %q: %s, want %s", name, got, want)
		}
	}
}

// Roles cannot select by label: this is what keeps the lab from others' pods.
func TestGuard(t *testing.T) {
	p := &pods{release: "warren", rooms: "lab-me-"}
	for name, tc := range map[string]struct {
		labels map[string]string
		ours   bool
	}{
		"the release's broker":      {map[string]string{partOf: suite, instance: "warren"}, true},
		"a pod in a room":           {map[string]string{partOf: suite, instance: "lab-x-1-poison", roomLabel: "lab-x-1-poison"}, true},
		"a pod of a room's release": {map[string]string{partOf: suite, instance: "lab-me-1-server"}, true},
		"another release":           {map[string]string{partOf: suite, instance: "production"}, false},
		"somebody else's":           {map[string]string{instance: "warren"}, false},
		"somebody else's, a room":   {map[string]string{roomLabel: "x"}, false},
		"no labels":                 {nil, false},
	} {
		err := p.guard(&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "it", Labels: tc.labels}})
		if (err == nil) != tc.ours {
			t.Errorf("%s: %v, want ours=%v", name, err, tc.ours)
		}
	}
}

func TestLinkPodIsTheReleasesOwnWithAnotherProgram(t *testing.T) {
	release := template()
	release.Spec.Containers[0].Image = "registry.example.com/warren/calculator-server:0.1.0"
	pod := linkPod(clone(release, "room", "room-link-1", substrate.Service{}, nil), "warren-rabbitmq.warren.svc:5672")
	c := pod.Spec.Containers[0]
	if want := "registry.example.com/warren/lab:0.1.0"; c.Image != want {
		t.Errorf("image %s, want %s", c.Image, want)
	}
	if got, want := strings.Join(c.Args, " "), "link --listen :5672 --target warren-rabbitmq.warren.svc:5672 --control :9101"; got != want {
		t.Errorf("args %q, want %q", got, want)
	}
	if len(c.Env) > 0 { // settings that the lab does not know
		t.Errorf("environment %v, want none", c.Env)
	}
	if got, want := pod.Labels[component], "link"; got != want || pod.Labels[partOf] != suite { // the broker's NetworkPolicy lets the suite in
		t.Errorf("labels %v, want component %s, part of %s", pod.Labels, want, suite)
	}
}
