package chart

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"

	rabbitmqv1beta1 "github.com/rabbitmq/cluster-operator/v2/api/v1beta1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/policy"
)

// helms are the Helms that users have.
var helms = []string{"helm.sh/helm/v3/cmd/helm", "helm.sh/helm/v4/cmd/helm"}

var programs struct {
	sync.Mutex
	paths map[string]string
}

// program is the pinned Helm, built once.
func program(t *testing.T, helm string) string {
	t.Helper()
	programs.Lock()
	defer programs.Unlock()
	if programs.paths[helm] == "" {
		cmd := exec.Command("go", "tool", "-n", "-modfile=../../../scripts/tools/go.mod", helm)
		cmd.Env = append(os.Environ(), "GOWORK=off")
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		path, err := cmd.Output()
		if err != nil {
			t.Fatalf("go tool -n %s: %v: %s", helm, err, stderr.String())
		}
		if programs.paths == nil {
			programs.paths = map[string]string{}
		}
		programs.paths[helm] = strings.TrimSpace(string(path))
	}
	return programs.paths[helm]
}

// template renders as release warren in namespace calc, without a cluster.
func template(t *testing.T, helm, chart string, args ...string) (string, error) {
	t.Helper()
	return templateAs(t, "warren", helm, chart, args...)
}

func templateAs(t *testing.T, release, helm, chart string, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command(program(t, helm), append([]string{"template", release, chart, "--namespace=calc", "--kube-version=1.34.2"}, args...)...)
	cmd.Env = append(os.Environ(), "KUBECONFIG=/dev/null")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("helm template %s: %w: %s", strings.Join(args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// decode reads a rendering as the API server does, unknown and repeated fields
// refused; of the kinds that are not Kubernetes' own it knows the RabbitmqCluster.
func decode(t *testing.T, text string) (objects []any) {
	t.Helper()
	kinds := runtime.NewScheme()
	if err := errors.Join(scheme.AddToScheme(kinds), rabbitmqv1beta1.AddToScheme(kinds)); err != nil {
		t.Fatal(err)
	}
	strict := serializer.NewCodecFactory(kinds, serializer.EnableStrict).UniversalDeserializer()
	for document := range strings.SplitSeq("\n"+text, "\n---\n") {
		if strings.TrimSpace(document) == "" {
			continue
		}
		o, _, err := strict.Decode([]byte(document), nil, nil)
		if err != nil {
			t.Fatalf("%v in\n%s", err, document)
		}
		objects = append(objects, o)
	}
	return objects
}

// restricted says what Pod Security's restricted refuses about a pod.
func restricted(t *testing.T, p *corev1.PodTemplateSpec) (problems []string) {
	t.Helper()
	evaluator, err := policy.NewEvaluator(policy.DefaultChecks(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, result := range evaluator.EvaluatePod(api.LevelVersion{Level: api.LevelRestricted, Version: api.LatestVersion()}, &p.ObjectMeta, &p.Spec) {
		if !result.Allowed {
			problems = append(problems, result.ForbiddenReason+": "+result.ForbiddenDetail)
		}
	}
	return problems
}
