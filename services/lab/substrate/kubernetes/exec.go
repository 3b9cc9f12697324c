package kubernetes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/util/exec"
	"k8s.io/streaming/pkg/httpstream"
)

// exec runs a command in a pod's first container and returns what it printed.
// A command that fails is an error with its last words.
func (t *tunnel) exec(ctx context.Context, pod *corev1.Pod, stdin io.Reader, command ...string) ([]byte, error) {
	req := t.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(t.namespace).Name(pod.Name).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{
			Container: pod.Spec.Containers[0].Name, Command: command, Stdin: stdin != nil, Stdout: true, Stderr: true,
		}, scheme.ParameterCodec)
	primary, err := remotecommand.NewWebSocketExecutor(t.config, http.MethodGet, req.URL().String())
	if err != nil {
		return nil, err
	}
	secondary, err := remotecommand.NewSPDYExecutor(t.config, http.MethodPost, req.URL())
	if err != nil {
		return nil, err
	}
	executor, err := remotecommand.NewFallbackExecutor(primary, secondary, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	if err != nil {
		return nil, err
	}
	var out, said bytes.Buffer
	err = executor.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: &out, Stderr: &said})
	if err != nil {
		text := strings.TrimSpace(said.String())
		if text == "" {
			text = strings.TrimSpace(out.String())
		}
		return out.Bytes(), fmt.Errorf("%s in pod %s: %w: %s", command[0], pod.Name, err, text[strings.LastIndexByte(text, '\n')+1:])
	}
	return out.Bytes(), nil
}

// failed says whether a command ran and did not succeed, as opposed to one of
// which nobody knows.
func failed(err error) bool {
	var exit exec.CodeExitError
	return errors.As(err, &exit)
}
