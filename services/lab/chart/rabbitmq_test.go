package chart

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	policyv1 "k8s.io/api/policy/v1"
	"sigs.k8s.io/yaml"

	"warren.example/messaging/topology"
)

const (
	rabbitmqChart = "../../../charts/rabbitmq"
	seed          = "--set=auth.seed=sixteen-letters-or-more"
)

// rabbitmqInstalls are the ways to install charts/rabbitmq.
var rabbitmqInstalls = map[string][]string{
	"defaults":   {seed},
	"kind":       {"--values=" + rabbitmqChart + "/values-kind.yaml"},
	"production": {"--values=" + rabbitmqChart + "/values-production.yaml"},
	"one node":   {seed, "--set=replicas=1,spread=hard"},
	"tls":        {seed, "--set=tls.secret=mq-tls,tls.verifyClients=true"},
	"the rest": {seed, "--set=image.registry=registry.example:5000,image.digest=sha256:" + strings.Repeat("0", 64) +
		",image.pullSecrets[0]=pull,persistence.storageClass=fast,networkPolicy.enabled=false,serviceAnnotations.a=b,extraConfig=heartbeat = 30"},
}

// A cluster is what charts/rabbitmq renders.
type cluster struct {
	set      *appsv1.StatefulSet
	config   *corev1.ConfigMap
	services map[string]*corev1.Service
	secrets  map[string]*corev1.Secret
	budget   *policyv1.PodDisruptionBudget
	network  *networkingv1.NetworkPolicy
}

func renderRabbitMQ(t *testing.T, helm string, args ...string) cluster {
	t.Helper()
	text, err := template(t, helm, rabbitmqChart, args...)
	if err != nil {
		t.Fatalf("%s: %v", helm, err)
	}
	c := cluster{services: map[string]*corev1.Service{}, secrets: map[string]*corev1.Secret{}}
	for _, o := range decode(t, text) {
		switch o := o.(type) {
		case *appsv1.StatefulSet:
			c.set = o
		case *corev1.ConfigMap:
			c.config = o
		case *corev1.Service:
			c.services[o.Name] = o
		case *corev1.Secret:
			c.secrets[o.Name] = o
		case *policyv1.PodDisruptionBudget:
			c.budget = o
		case *networkingv1.NetworkPolicy:
			c.network = o
		case *corev1.ServiceAccount:
			if o.AutomountServiceAccountToken == nil || *o.AutomountServiceAccountToken {
				t.Error("the broker needs no token of the Kubernetes API")
			}
		default:
			t.Errorf("renders a %T", o)
		}
	}
	return c
}

func TestRabbitMQRenders(t *testing.T) {
	for name, args := range rabbitmqInstalls {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var texts []string
			for _, helm := range helms {
				text, err := template(t, helm, rabbitmqChart, args...)
				if err != nil {
					t.Fatalf("%s: %v", helm, err)
				}
				texts = append(texts, sorted(text))
			}
			if texts[0] != texts[1] {
				t.Errorf("%v differ in what they render", helms)
			}
			c := renderRabbitMQ(t, helms[1], args...)
			pod := c.set.Spec.Template
			for _, problem := range restricted(t, &pod) {
				t.Error(problem)
			}
			if got := *pod.Spec.TerminationGracePeriodSeconds; got <= waits(t, pod.Spec) {
				t.Errorf("grace period %d s: preStop alone may take %d s", got, waits(t, pod.Spec))
			}
			if c.services[c.set.Spec.ServiceName] == nil {
				t.Errorf("serviceName %s: there is no such Service, so nodes have no names", c.set.Spec.ServiceName)
			}
			if got, want := c.config.Data["definitions.json"], file(t, rabbitmqChart+"/files/definitions.json"); got != want {
				t.Errorf("definitions: got %s, want the chart's file", got)
			}
			own := name != "production"
			for _, user := range users(t) {
				if c.secrets["warren-rabbitmq-"+user] == nil == own {
					t.Errorf("Secret of %s: rendered: %v", user, !own)
				}
			}
			for name, secret := range c.secrets {
				for key, value := range secret.StringData {
					if value == "" || key != "username" && strings.Contains(fmt.Sprint(c.config.Data), value) {
						t.Errorf("Secret %s: %s is empty, or stands in the ConfigMap", name, key)
					}
				}
			}
		})
	}
	t.Run("a pod that is not restricted", func(t *testing.T) {
		pod := renderRabbitMQ(t, helms[1], seed).set.Spec.Template
		pod.Spec.Containers[0].SecurityContext.Capabilities = nil
		if problems := restricted(t, &pod); len(problems) != 1 {
			t.Errorf("capabilities kept: got %v, want one problem", problems)
		}
	})
}

// waits adds up the timeouts of the preStop hook.
func waits(t *testing.T, pod corev1.PodSpec) (sum int64) {
	t.Helper()
	for line := range strings.Lines(pod.Containers[0].Lifecycle.PreStop.Exec.Command[2]) {
		var seconds int64
		if _, after, ok := strings.Cut(line, "--timeout "); ok {
			if _, err := fmt.Sscan(after, &seconds); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
		}
		sum += seconds
	}
	return sum
}

// A wait in vain is no reason to leave clients connected.
func TestRabbitMQDrainsWithoutAQuorumToo(t *testing.T) {
	bin := t.TempDir()
	if err := os.WriteFile(bin+"/rabbitmq-upgrade", []byte("#!/bin/sh\necho $1\n[ $1 = drain ]\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	hook := renderRabbitMQ(t, helms[1], seed).set.Spec.Template.Spec.Containers[0].Lifecycle.PreStop.Exec.Command
	cmd := exec.Command(hook[0], hook[1:]...)
	cmd.Env = []string{"PATH=" + bin}
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "await_online_quorum_plus_one\ndrain\n" {
		t.Errorf("with a wait that fails: got %q, %v; want the wait, then the drain", out, err)
	}
}

func users(t *testing.T) []string {
	t.Helper()
	names := []string{topology.Admin}
	for _, u := range topology.Users() {
		names = append(names, u.Name)
	}
	return names
}

func file(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestRabbitMQFollowsItsValues(t *testing.T) {
	conf := func(c cluster) string { return c.config.Data["rabbitmq.conf"] }
	for what, tc := range map[string]struct {
		args []string
		got  func(cluster) any
		want any
	}{
		"target of one node":      {[]string{"--set=replicas=1"}, func(c cluster) any { return strings.Contains(conf(c), "target_cluster_size_hint = 1\n") }, true},
		"80% of the memory":       {[]string{"--set=resources.limits.memory=2000Mi"}, func(c cluster) any { return strings.Contains(conf(c), fmt.Sprintf("override_value = %d\n", 1600<<20)) }, true},
		"last line is the user's": {[]string{"--set=extraConfig=heartbeat = 30"}, func(c cluster) any { return strings.HasSuffix(conf(c), "\nheartbeat = 30\n") }, true},
		"no AMQP without TLS":     {[]string{"--set=tls.secret=s"}, func(c cluster) any { return strings.Contains(conf(c), "listeners.tcp = none\n") }, true},
		"port of clients":         {nil, func(c cluster) any { return c.services["warren-rabbitmq"].Spec.Ports[0].Port }, int32(5672)},
		"port of clients, TLS":    {[]string{"--set=tls.secret=s"}, func(c cluster) any { return c.services["warren-rabbitmq"].Spec.Ports[0].Port }, int32(5671)},
		"uri, TLS": {[]string{"--set=tls.secret=s"}, func(c cluster) any {
			return strings.HasPrefix(c.secrets["warren-rabbitmq-monitor"].StringData["uri"], "amqps://monitor:")
		}, true},
		"host of the uri": {nil, func(c cluster) any {
			return strings.HasSuffix(c.secrets["warren-rabbitmq-calc-client"].StringData["uri"], "@warren-rabbitmq.calc.svc:5672/calc")
		}, true},
		"volumes stay":             {nil, func(c cluster) any { return c.set.Spec.PersistentVolumeClaimRetentionPolicy.WhenDeleted }, appsv1.RetainPersistentVolumeClaimRetentionPolicyType},
		"volumes go":               {[]string{"--set=persistence.retain=false"}, func(c cluster) any { return c.set.Spec.PersistentVolumeClaimRetentionPolicy.WhenDeleted }, appsv1.DeletePersistentVolumeClaimRetentionPolicyType},
		"never two on one machine": {[]string{"--set=spread=hard"}, func(c cluster) any { return *c.set.Spec.Template.Spec.TopologySpreadConstraints[0].MinDomains }, int32(3)},
		"image without a registry": {[]string{"--set=image.tag=t"}, func(c cluster) any { return c.set.Spec.Template.Spec.Containers[0].Image }, "rabbitmq:t"},
		"image with a registry":    {[]string{"--set=image.tag=t,image.registry=r:1"}, func(c cluster) any { return c.set.Spec.Template.Spec.InitContainers[0].Image }, "r:1/rabbitmq:t"},
		"evicted one at a time":    {nil, func(c cluster) any { return c.budget.Spec.MaxUnavailable.IntValue() }, 1},
		"no network policy":        {[]string{"--set=networkPolicy.enabled=false"}, func(c cluster) any { return c.network == nil }, true},
		"clients by label": {nil, func(c cluster) any {
			return c.network.Spec.Ingress[0].From[0].PodSelector.MatchLabels["app.kubernetes.io/part-of"]
		}, "warren"},
		"metrics for everybody":       {nil, func(c cluster) any { return len(c.network.Spec.Ingress[1].From) }, 0},
		"peers before they are ready": {nil, func(c cluster) any { return c.services["warren-rabbitmq-nodes"].Spec.PublishNotReadyAddresses }, true},
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			if got := tc.got(renderRabbitMQ(t, helms[1], append([]string{seed}, tc.args...)...)); got != tc.want {
				t.Errorf("got %v, want %v", got, tc.want)
			}
		})
	}
}

// A changed setting restarts the nodes; another version of the chart does not.
func TestRabbitMQRestartsForItsConfiguration(t *testing.T) {
	pod := func(args ...string) corev1.PodTemplateSpec {
		return renderRabbitMQ(t, helms[1], append([]string{seed}, args...)...).set.Spec.Template
	}
	checksum := func(p corev1.PodTemplateSpec) string { return p.Annotations["checksum/config"] }
	plain := pod()
	if checksum(plain) != checksum(pod("--set=serviceAnnotations.a=b")) || checksum(plain) == checksum(pod("--set=statisticsInterval=1000")) {
		t.Error("checksum/config: want it to change with the configuration and with nothing else")
	}
	if version := plain.Labels["helm.sh/chart"]; version != "" {
		t.Errorf("pods are labelled %s: each version of the chart would restart them", version)
	}
}

// The passwords of a rendering without a cluster come from the seed alone.
func TestRabbitMQPasswordsComeFromTheSeed(t *testing.T) {
	cookie := func(args ...string) string {
		return renderRabbitMQ(t, helms[0], args...).secrets["warren-rabbitmq-cookie"].StringData["cookie"]
	}
	first := cookie(seed)
	if again := cookie(seed); again != first {
		t.Errorf("the second rendering has another cookie: %s, %s", first, again)
	}
	if other := cookie("--set=auth.seed=another-sixteen-letters"); other == first {
		t.Error("another seed gives the same cookie")
	}
	all := map[string]string{}
	for name, secret := range renderRabbitMQ(t, helms[0], seed).secrets {
		password := secret.StringData["password"] + secret.StringData["cookie"]
		if all[password] != "" {
			t.Errorf("%s and %s have one password", name, all[password])
		}
		all[password] = name
	}
}

func TestRabbitMQRefuses(t *testing.T) {
	for args, want := range map[string]string{
		"":                                 "set auth.seed, set auth.existingSecrets=true, or install with helm",
		"replicas=2":                       "the majority of two is two",
		"replicas=5":                       "at '/replicas': maximum: got 5, want 3",
		"replica=3":                        "additional properties 'replica' not allowed",
		"image.version=4":                  "at '/image': additional properties 'version' not allowed",
		"image.digest=4.3":                 "at '/image/digest'",
		"image.pullPolicy=Sometimes":       "at '/image/pullPolicy': value must be one of 'Always', 'IfNotPresent', 'Never'",
		"auth.seed=short":                  "at '/auth/seed': 'short' does not match",
		"auth.password=x":                  "at '/auth': additional properties 'password' not allowed",
		"persistence.size=8G":              "at '/persistence/size': '8G' does not match",
		"persistence.enabled=false":        "at '/persistence': additional properties 'enabled' not allowed",
		"resources.limits.memory=null":     "at '/resources/limits': missing property 'memory'",
		"resources.limits.memory=512M":     "at '/resources/limits/memory': '512M' does not match",
		"resources.limits.disk=1Gi":        "at '/resources/limits': additional properties 'disk' not allowed",
		"tls.verifyClients=true":           "tls.verifyClients: true without tls.secret",
		"tls.enabled=true":                 "at '/tls': additional properties 'enabled' not allowed",
		"spread=firm":                      "at '/spread': value must be one of 'soft', 'hard'",
		"drainTimeoutSeconds=0":            "at '/drainTimeoutSeconds': minimum: got 0, want 1",
		"networkPolicy.from=all":           "at '/networkPolicy': additional properties 'from' not allowed",
		"global.image=x":                   "at '/global': additional properties 'image' not allowed",
		"serviceAnnotations.port=15692":    "at '/serviceAnnotations/port': got number, want string",
		"statisticsInterval=5s":            "at '/statisticsInterval': got string, want integer",
		"quorumTimeoutSeconds=99999999999": "at '/quorumTimeoutSeconds': maximum",
	} {
		t.Run(args, func(t *testing.T) {
			t.Parallel()
			set := []string{}
			if args != "" {
				set = []string{seed, "--set=" + args}
			}
			for _, helm := range helms {
				if _, err := template(t, helm, rabbitmqChart, set...); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s: got %v, want %q", helm, err, want)
				}
			}
		})
	}
}

// A chart within a chart does not read its own values files, so charts/warren
// repeats them under rabbitmq.
func TestRabbitMQValuesAreWarrensToo(t *testing.T) {
	for _, name := range []string{"values-kind.yaml", "values-production.yaml"} {
		var own map[string]any
		var warren struct{ RabbitMQ map[string]any }
		if err := errors.Join(yaml.Unmarshal([]byte(file(t, rabbitmqChart+"/"+name)), &own), yaml.Unmarshal([]byte(file(t, warrenChart+"/"+name)), &warren)); err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(warren.RabbitMQ, own) {
			t.Errorf("%s: charts/warren has %v, charts/rabbitmq %v", name, warren.RabbitMQ, own)
		}
	}
}

func TestRabbitMQNamesItself(t *testing.T) {
	for release, want := range map[string]string{"mq": "name: mq-rabbitmq-calc-client\n", "my-rabbitmq": "name: my-rabbitmq-calc-client\n", strings.Repeat("m", 42): "at most 41"} {
		out, err := exec.Command(program(t, helms[1]), "template", release, rabbitmqChart, seed).CombinedOutput()
		if !strings.Contains(string(out), want) {
			t.Errorf("release %s: %v: want %q", release, err, want)
		}
	}
}

// The init container's script runs here, on folders of its own.
func TestRabbitMQFillsInThePasswords(t *testing.T) {
	c := renderRabbitMQ(t, helms[1], seed)
	script := c.set.Spec.Template.Spec.InitContainers[0].Command[2]
	configure := func(passwords map[string]string) (definitions, out string, err error) {
		root := t.TempDir()
		write := func(name, text string) {
			path := filepath.Join(root, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("secrets/cookie", "cookie")
		write("var/lib/rabbitmq/mnesia/x", "")
		write("etc/rabbitmq/x", "")
		for name, text := range c.config.Data {
			write("config/"+name, text)
		}
		for user, password := range passwords {
			write("secrets/users/"+user, password)
		}
		there := strings.NewReplacer(" /secrets/", " "+root+"/secrets/", " /config/", " "+root+"/config/", " /etc/", " "+root+"/etc/", " /var/", " "+root+"/var/")
		output, err := exec.Command("sh", "-euc", there.Replace(script)).CombinedOutput()
		return file(t, root+"/etc/rabbitmq/definitions.json"), string(output), err
	}
	passwords := map[string]string{}
	for _, user := range users(t) {
		passwords[user] = "pw.~_-" + user
	}
	text, out, err := configure(passwords)
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var definitions struct {
		Users []struct{ Name, Password string }
	}
	if err := json.Unmarshal([]byte(text), &definitions); err != nil {
		t.Fatal(err)
	}
	for _, u := range definitions.Users {
		if u.Password != passwords[u.Name] {
			t.Errorf("%s: got password %s, want %s", u.Name, u.Password, passwords[u.Name])
		}
	}
	for _, bad := range []string{"", `a"b`, "a/b", "a&b", "a b", "a\nb"} {
		passwords[topology.Admin] = bad
		if _, out, err := configure(passwords); err == nil || !strings.Contains(out, "Secret warren-rabbitmq-admin, key password: empty, or has characters other than") {
			t.Errorf("password %q: got %v: %s", bad, err, out)
		}
	}
}
