package kubernetes

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"warren.example/lab/substrate"
)

const prefix = "WARREN_"

// clone makes a pod of the installed release's own template, so that what runs
// in a room is what the chart says and nothing else. Env are settings without
// their prefix; an empty value takes the template's away.
func clone(template corev1.PodTemplateSpec, room, name string, svc substrate.Service, env map[string]string) *corev1.Pod {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}, Annotations: template.Annotations},
		Spec:       *template.Spec.DeepCopy(),
	}
	for key, value := range template.Labels {
		pod.Labels[key] = value
	}
	// The release's Services, budgets and controllers select by instance: they
	// shall not take the pod for theirs.
	pod.Labels[instance], pod.Labels[roomLabel] = room, room
	pod.Spec.RestartPolicy = corev1.RestartPolicyNever
	if svc.Restart {
		pod.Spec.RestartPolicy = corev1.RestartPolicyAlways
	}
	pod.Spec.TopologySpreadConstraints = nil // they count the release's pods
	if svc.Machine != "" {
		pod.Spec.NodeSelector = map[string]string{corev1.LabelHostname: svc.Machine}
	}
	c := &pod.Spec.Containers[0]
	// A restart that no scenario ordered would end a life in the middle of a line.
	c.LivenessProbe, c.StartupProbe = nil, nil
	c.Env = overlay(c.Env, env)
	if svc.Args != nil {
		c.Args = svc.Args
	}
	withoutClaims(&pod.Spec)
	return pod
}

// overlay sets variables, and removes those with an empty value.
func overlay(vars []corev1.EnvVar, env map[string]string) []corev1.EnvVar {
	var all []corev1.EnvVar
	for _, v := range vars {
		if _, replaced := env[strings.TrimPrefix(v.Name, prefix)]; !replaced || !strings.HasPrefix(v.Name, prefix) {
			all = append(all, v)
		}
	}
	names := make([]string, 0, len(env))
	for name := range env {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if env[name] != "" {
			all = append(all, corev1.EnvVar{Name: prefix + name, Value: env[name]})
		}
	}
	return all
}

// withoutClaims gives the pod folders of its own in place of the release's
// volumes: two pods must not open one SQLite file.
func withoutClaims(spec *corev1.PodSpec) {
	have := map[string]bool{}
	for i, v := range spec.Volumes {
		have[v.Name] = true
		if v.PersistentVolumeClaim != nil {
			spec.Volumes[i].VolumeSource = corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}
		}
	}
	for _, m := range spec.Containers[0].VolumeMounts {
		if !have[m.Name] { // a StatefulSet's volumeClaimTemplate
			have[m.Name] = true
			spec.Volumes = append(spec.Volumes, corev1.Volume{Name: m.Name, VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}})
		}
	}
}

// setting is what a template gives a service; one that comes from a Secret or
// from the pod has no value here.
func setting(template corev1.PodTemplateSpec, name string) string {
	for _, v := range template.Spec.Containers[0].Env {
		if v.Name == prefix+name {
			return v.Value
		}
	}
	return ""
}

// withPath is a URL with another virtual host or database in it.
func withPath(rawURL, name string) (string, error) {
	u, err := url.Parse(rawURL)
	if err != nil || u.Host == "" {
		return "", fmt.Errorf("%q: no URL with a host", rawURL)
	}
	u.Path, u.RawPath = "/"+name, ""
	return u.String(), nil
}
