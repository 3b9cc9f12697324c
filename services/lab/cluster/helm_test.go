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
	clienttesting "k8s.io/client-go/testing"
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

// In somebody's cluster a broker's messages are not the lab's to delete.
func TestVolumesSurviveAnUpgrade(t *testing.T) {
	ofRelease := map[string]string{"app.kubernetes.io/instance": "warren"}
	volume := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "data-0", Namespace: "ns", Labels: ofRelease}}
	revision := func(version, status string) runtime.Object {
		return &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "v" + version, Namespace: "ns", Labels: map[string]string{
			"owner": "helm", "name": "warren", "version": version, "status": status, madeLabel: madeBy,
		}}}
	}
	for name, tc := range map[string]struct {
		objects []runtime.Object
		told    string // how it begins
		keeps   bool
		err     string
	}{
		"an upgrade failed":          {[]runtime.Object{revision("1", "deployed"), revision("2", "failed")}, "", true, ""},
		"helm was killed":            {[]runtime.Object{revision("1", "deployed"), revision("2", "pending-upgrade")}, "rollback warren 1 --force-conflicts ", true, ""},
		"killed while installing":    {[]runtime.Object{revision("1", "pending-install")}, "uninstall warren ", false, ""},
		"a release that is no more":  {nil, "", true, "kubectl --context theirs --namespace ns delete pvc --selector app.kubernetes.io/instance=warren"},
		"a release that is all well": {[]runtime.Object{revision("1", "deployed")}, "", true, ""},
	} {
		c, told := withHelm(t, append(tc.objects, volume)...)
		client := c.client.(*fake.Clientset)
		client.PrependReactor("delete-collection", "persistentvolumeclaims", func(a clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, client.Tracker().Delete(a.GetResource(), "ns", "data-0")
		}) // by itself the fake deletes no collections
		if err := c.preflightRelease(t.Context()); (err == nil) != (tc.err == "") || err != nil && !strings.Contains(err.Error(), tc.err) {
			t.Errorf("%s: %v, want %q", name, err, tc.err)
		}
		if text, _ := os.ReadFile(told); !strings.HasPrefix(string(text), tc.told) || tc.told == "" && len(text) > 0 {
			t.Errorf("%s: helm was told %q, want %q", name, text, tc.told)
		}
		claims, err := c.client.CoreV1().PersistentVolumeClaims("ns").List(t.Context(), metav1.ListOptions{})
		if err != nil || (len(claims.Items) > 0) != tc.keeps {
			t.Errorf("%s: %d volumes, %v; want them kept: %v", name, len(claims.Items), err, tc.keeps)
		}
	}
}

// What a scenario scaled is the scenario's field to the API server; without
// force the next lab's upgrade is a conflict.
func TestInstallTakesItsFieldsBack(t *testing.T) {
	c, told := withHelm(t)
	c.dir, c.o.chart = t.TempDir(), "chart"
	if err := c.installRelease(t.Context()); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(told); err != nil || !strings.HasPrefix(string(text), "upgrade --install warren chart --force-conflicts ") {
		t.Errorf("helm was told %q, %v; want upgrade --install with --force-conflicts", text, err)
	}
}
