package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/util/exec"

	"warren.example/lab/substrate"
	"warren.example/lab/substrate/process"
)

// Process is a service in a pod of its own; see substrate.Process.
type Process struct {
	*occupant
	service  substrate.Service
	deployed bool // one of a workload's: its instance is the pod
}

// Name is the instance's.
func (p *Process) Name() string {
	if p.deployed {
		return p.pod
	}
	return p.service.Name
}

// WaitReady polls /readyz, through restarts. The kubelet tells of a restart a
// moment later than the process is ready; then Restarts counts it, too.
func (p *Process) WaitReady(ctx context.Context) error {
	if err := process.WaitReady(ctx, p, 250*time.Millisecond, p.log.closed, p.tail.Last); err != nil {
		return err
	}
	return p.settled(ctx)
}

// Admin asks the admin port.
func (p *Process) Admin(ctx context.Context, method, path string, body any) ([]byte, error) {
	return p.ask(ctx, adminPort, method, path, "", body)
}

// HTTP asks the auditor's own API.
func (p *Process) HTTP(ctx context.Context, method, path string, body any) ([]byte, error) {
	if p.service.Kind != substrate.DeadLetterAuditor {
		return nil, fmt.Errorf("%s %s: %s has no API of its own", method, path, p.Name())
	}
	token, err := p.room.s.auditorToken(ctx)
	if err != nil {
		return nil, err
	}
	return p.ask(ctx, httpPort, method, path, token, body)
}

// Command runs a command of the service's program in its pod; what it says goes to
// the log.
func (p *Process) Command(ctx context.Context, stdin io.Reader, args ...string) (substrate.Exit, error) {
	pod := p.room.s.pods.get(p.pod)
	if pod == nil || p.service.Kind != substrate.DeadLetterAuditor {
		return substrate.Exit{}, fmt.Errorf("%s: %s has no API of its own", args[0], p.Name())
	}
	const program = "/service" // the image's entry point
	command := append([]string{program}, args...)
	command = append(command, "--url", fmt.Sprintf("http://127.0.0.1:%d", httpPort))
	template := corev1.PodTemplateSpec{Spec: pod.Spec}
	if file := setting(template, "HTTP_TOKEN_FILE"); file != "" {
		command = append(command, "--token-file", file)
	}
	out, err := p.room.s.tunnel.exec(ctx, pod, stdin, command...)
	var exit exec.CodeExitError
	if err != nil && !errors.As(err, &exit) {
		return substrate.Exit{}, err
	}
	if err != nil {
		fmt.Fprintln(&p.tail, err)
	}
	return substrate.Exit{Code: exit.Code, Stdout: out}, nil
}

// Crash ends this life by SIGKILL, from inside.
func (p *Process) Crash(ctx context.Context) error { return p.crash(ctx) }

// Terminate ends the pod by a deadline that has passed: the kubelet sends
// SIGTERM, grants the grace period and does not start it again, as for a
// deletion. But a deleted pod takes its log with it, and whoever was cut off in
// that moment would miss the last lines. A workload's pod is deleted all the
// same, since that is the lesson: its last lines are read while they are written.
func (p *Process) Terminate(ctx context.Context) error {
	if p.deployed {
		return p.remove(ctx, nil)
	}
	_, err := p.room.s.client.CoreV1().Pods(p.room.s.Namespace).Patch(ctx, p.pod, types.StrategicMergePatchType,
		[]byte(`{"spec":{"activeDeadlineSeconds":1}}`), metav1.PatchOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("end %s: %w", p.Name(), err)
	}
	return nil
}

// remove deletes the pod with its own grace period, or with this one.
func (p *Process) remove(ctx context.Context, grace *int64) error {
	pod := p.room.s.pods.get(p.pod)
	if pod == nil {
		return nil
	}
	return p.room.s.pods.remove(ctx, pod, grace)
}

// Pause sends SIGSTOP from the machine: in a pod the process is the first, which
// takes it from outside alone.
func (p *Process) Pause(ctx context.Context) error { return p.signal(ctx, "STOP") }

// Resume sends SIGCONT.
func (p *Process) Resume(ctx context.Context) error { return p.signal(ctx, "CONT") }

func (p *Process) signal(ctx context.Context, signal string) error {
	s := p.room.s
	if !s.Own {
		return fmt.Errorf("SIG%s to %s: its machine is not the lab's own: %w", signal, p.Name(), substrate.ErrUnsupported)
	}
	pod := s.pods.get(p.pod)
	if pod == nil {
		return fmt.Errorf("SIG%s to %s: there is no pod %s", signal, p.Name(), p.pod)
	}
	_, container, _ := strings.Cut(status(pod).ContainerID, "://") // containerd://…
	return s.Cluster.Signal(ctx, pod.Spec.NodeName, container, signal)
}

// Wait returns when the pod is over and its log read to the end.
func (p *Process) Wait(ctx context.Context) (substrate.Exit, error) {
	select {
	case <-p.log.closed:
	case <-ctx.Done():
		return substrate.Exit{}, fmt.Errorf("wait for %s to end: %w", p.Name(), ctx.Err())
	}
	code := p.code(p.restarted())
	return substrate.Exit{Code: code, Killed: code == killedCode, Stdout: p.printed()}, nil
}

// Restarts counts the lives after the first.
func (p *Process) Restarts() int { return p.restarted() }

// Crashes counts the lives that ended by SIGKILL.
func (p *Process) Crashes() int { return p.crashes() }

// Tail is the end of the log, over all lives.
func (p *Process) Tail() []string { return p.tail.Lines() }

// runs returns when the pod's process does.
func (p *Process) runs(ctx context.Context) error {
	var last *corev1.Pod
	err := p.room.s.pods.await(ctx, p.pod, func(pod *corev1.Pod) bool {
		last = pod
		return over(pod) || status(pod).State.Running != nil || status(pod).State.Terminated != nil
	})
	if err == nil {
		return nil
	}
	why := "not scheduled"
	if w := status(last).State.Waiting; w != nil {
		why = w.Reason + " " + w.Message
	}
	return fmt.Errorf("wait for pod %s to run: %w: %s", p.pod, err, why)
}
