package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

const readyTime = 5 * time.Minute

// awaitReady waits for every pod of the release, and says what each waits for.
func (c *Cluster) awaitReady(ctx context.Context) error {
	err := c.await(ctx, readyTime, c.releaseWaits)
	if err == nil || ctx.Err() != nil {
		return err
	}
	return fmt.Errorf("%w\n%s", err, c.explain(ctx))
}

// releaseWaits lists what the release is not ready for: workloads that lack
// pods, and what each unready pod waits for.
func (c *Cluster) releaseWaits(ctx context.Context) ([]string, error) {
	ofRelease := metav1.ListOptions{LabelSelector: c.selector()}
	pods, err := c.client.CoreV1().Pods(c.Namespace).List(ctx, ofRelease)
	if err != nil {
		return nil, err
	}
	deployments, err := c.client.AppsV1().Deployments(c.Namespace).List(ctx, ofRelease)
	if err != nil {
		return nil, err
	}
	sets, err := c.client.AppsV1().StatefulSets(c.Namespace).List(ctx, ofRelease)
	if err != nil {
		return nil, err
	}
	var waits []string
	for _, p := range pods.Items {
		if s := podWaits(p); s != "" {
			waits = append(waits, s)
		}
	}
	if len(waits) > 0 {
		return waits, nil // they say more than counts
	}
	short := func(name string, want *int32, observed bool, updated, ready int32) {
		if want == nil {
			want = new(int32(1))
		}
		if !observed || updated < *want || ready < *want {
			waits = append(waits, fmt.Sprintf("%s: %d of %d pods up to date, %d ready", name, updated, *want, ready))
		}
	}
	for _, d := range deployments.Items {
		short(d.Name, d.Spec.Replicas, d.Status.ObservedGeneration >= d.Generation, d.Status.UpdatedReplicas, d.Status.ReadyReplicas)
	}
	for _, s := range sets.Items {
		short(s.Name, s.Spec.Replicas, s.Status.ObservedGeneration >= s.Generation, s.Status.UpdatedReplicas, s.Status.ReadyReplicas)
	}
	return waits, nil
}

// podWaits says what a pod waits for; nothing if it is ready or has ended. One
// that failed will never be ready: its controller makes another, and that of a
// test stays until the next test.
func podWaits(p corev1.Pod) string {
	why := podState(p)
	if why == "" || p.Status.Phase == corev1.PodFailed {
		return ""
	}
	return fmt.Sprintf("%s: %s, %d s", p.Name, why, int(time.Since(p.CreationTimestamp.Time).Seconds()))
}

// podState says why a pod is not ready; nothing if it is or has ended well.
func podState(p corev1.Pod) string {
	if p.DeletionTimestamp != nil {
		return "Terminating"
	}
	if p.Status.Phase == corev1.PodSucceeded {
		return ""
	}
	for _, cond := range p.Status.Conditions {
		switch {
		case cond.Type == corev1.PodReady && cond.Status == corev1.ConditionTrue:
			return ""
		case cond.Type == corev1.PodScheduled && cond.Status != corev1.ConditionTrue:
			why, _, _ := strings.Cut(cond.Message, ". ") // then comes what preemption would not change
			return cond.Reason + ": " + why
		}
	}
	for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
		switch w, t := s.State.Waiting, s.State.Terminated; {
		case w != nil && w.Message != "":
			return s.Name + ": " + w.Reason + ": " + w.Message
		case w != nil && w.Reason != "PodInitializing":
			return s.Name + ": " + w.Reason
		case t != nil && t.ExitCode != 0:
			return fmt.Sprintf("%s: exit code %d", s.Name, t.ExitCode)
		case s.State.Running != nil && !s.Ready && s.RestartCount > 0:
			return fmt.Sprintf("%s: runs, not ready, %d restarts", s.Name, s.RestartCount)
		case s.State.Running != nil && !s.Ready:
			return s.Name + ": runs, not ready"
		}
	}
	return string(p.Status.Phase)
}

// explain tells of each unready pod what Kubernetes and its containers said
// last.
func (c *Cluster) explain(ctx context.Context) string {
	core := c.client.CoreV1()
	pods, err := core.Pods(c.Namespace).List(ctx, metav1.ListOptions{LabelSelector: c.selector()})
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, p := range pods.Items {
		why := podState(p)
		if why == "" {
			continue
		}
		fmt.Fprintf(&b, "%s: %s\n", p.Name, why)
		events, err := core.Events(c.Namespace).List(ctx, metav1.ListOptions{FieldSelector: "involvedObject.uid=" + string(p.UID)})
		if err == nil {
			for _, e := range events.Items[max(0, len(events.Items)-5):] {
				fmt.Fprintf(&b, "  event %s: %s\n", e.Reason, e.Message)
			}
		}
		for _, s := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
			if s.Ready {
				continue
			}
			log, err := core.Pods(c.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{
				Container: s.Name, Previous: s.State.Running == nil && s.RestartCount > 0, TailLines: new(int64(10)),
			}).DoRaw(ctx)
			if err == nil && len(log) > 0 {
				fmt.Fprintf(&b, "  %s said last:\n    %s\n", s.Name, strings.ReplaceAll(lastLines(log, 10), "\n", "\n    "))
			}
		}
	}
	return strings.TrimSpace(b.String())
}

// collectLogs writes what may explain a failure: what kind collects of its
// nodes, or of somebody's cluster our pods' logs alone.
func (c *Cluster) collectLogs(ctx context.Context) error {
	if err := os.MkdirAll(c.o.LogsTo, 0o755); err != nil {
		return err
	}
	var errs []error
	if c.ours {
		errs = append(errs, commandError(c.kind.CollectLogs(c.o.Name, c.o.LogsTo)))
	}
	if c.client != nil {
		errs = append(errs, os.WriteFile(filepath.Join(c.o.LogsTo, "unready-pods.txt"), []byte(c.explain(ctx)), 0o600))
	}
	if !c.ours && c.client != nil {
		errs = append(errs, c.podLogs(ctx))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("logs to %s: %w", c.o.LogsTo, err)
	}
	return nil
}

func (c *Cluster) podLogs(ctx context.Context) error {
	pods, err := c.client.CoreV1().Pods(c.Namespace).List(ctx, metav1.ListOptions{LabelSelector: c.selector()})
	if err != nil {
		return err
	}
	var errs []error
	for _, p := range pods.Items {
		for _, s := range p.Status.ContainerStatuses {
			for _, previous := range []bool{false, true} {
				if previous && s.RestartCount == 0 {
					continue
				}
				log, err := c.client.CoreV1().Pods(c.Namespace).GetLogs(p.Name, &corev1.PodLogOptions{Container: s.Name, Previous: previous}).DoRaw(ctx)
				if err != nil {
					continue // it never ran
				}
				name := fmt.Sprintf("%s-%s.log", p.Name, s.Name)
				if previous {
					name = fmt.Sprintf("%s-%s-previous.log", p.Name, s.Name)
				}
				errs = append(errs, os.WriteFile(filepath.Join(c.o.LogsTo, name), log, 0o600))
			}
		}
	}
	return errors.Join(errs...)
}
