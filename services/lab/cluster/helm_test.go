package cluster

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/fake"
)

// Helm's own variables would lead it past the context that the user named.
func TestHelmIsToldByUsAlone(t *testing.T) {
	for _, name := range []string{"HELM_KUBEAPISERVER", "HELM_KUBETOKEN", "HELM_KUBECONTEXT", "HELM_KUBEASUSER", "HELM_NAMESPACE", "HELM_DRIVER"} {
		t.Setenv(name, "theirs")
	}
	t.Setenv("KUBECONFIG", "ours") // by the same rules as client-go's
	env, err := exec.LookPath("env")
	if err != nil {
		t.Fatal(err)
	}
	out, err := (&Cluster{helm: env}).offline(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range strings.Fields(string(out)) {
		if strings.HasPrefix(v, "HELM_") {
			t.Errorf("helm is told %s", v)
		}
	}
	if !slices.Contains(strings.Fields(string(out)), "KUBECONFIG=ours") {
		t.Error("helm is not told KUBECONFIG=ours")
	}
}

// withHelm is a cluster whose helm notes what it is told in the file told.
func withHelm(t *testing.T, objects ...runtime.Object) (c *Cluster, told string) {
	t.Helper()
	dir := t.TempDir()
	c = &Cluster{
		Namespace: "ns", Release: "warren", context: "theirs", helm: filepath.Join(dir, "helm"),
		client: fake.NewClientset(objects...), o: Options{Context: "theirs", Progress: func(string) {}},
	}
	told = filepath.Join(dir, "told")
	if err := os.WriteFile(c.helm, []byte("#!/bin/sh\necho \"$@\" >>"+told+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return c, told
}

// Ctrl-C ends the context that Up and Close are given.
func TestCloseAfterAnInterrupt(t *testing.T) {
	c, told := withHelm(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}})
	c.installed, c.namespaced = true, true
	ctx, interrupt := context.WithCancel(t.Context())
	interrupt()
	if err := c.Close(ctx); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(told); err != nil || !strings.HasPrefix(string(text), "uninstall warren ") {
		t.Errorf("helm was told %q, %v; want uninstall warren", text, err)
	}
	if _, err := c.client.CoreV1().Namespaces().Get(t.Context(), "ns", metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("the namespace is left: %v", err)
	}
}
