package chart

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	rabbitmqv1beta1 "github.com/rabbitmq/cluster-operator/v2/api/v1beta1"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/yaml"

	"warren.example/messaging/topology"
)

const warrenChart = "../../../charts/warren"

var operated = []string{"--values=../../../k8s/operator.values.yaml", "--api-versions=rabbitmq.com/v1beta1"}

// installs are the ways to install charts/warren, each by the arguments of Helm.
var installs = map[string][]string{
	"defaults":            {"--set=image.registry=registry.example,seed=sixteen-letters-or-more,rabbitmq.auth.seed=sixteen-letters-or-more"},
	"kind":                values("kind"),
	"lab":                 append(values("kind"), "--set=lab.enabled=true"),
	"sqlite":              append(values("kind"), "--set=database.mode=sqlite,server.replicas=1"),
	"production":          append(values("production"), "--set=image.registry=registry.example/team"),
	"operator":            append(values("kind"), operated...),
	"operator, all of it": append(append(values("kind"), operated...), "--set=broker.tls.caSecret=ca,broker.tls.clientSecret=cc,broker.operator.tlsSecret=mq-tls,broker.operator.image=mq,image.pullSecrets[0]=p"),
	"external":            append(values("kind"), "--values=../../../k8s/external.values.yaml"),
	"tls":                 append(values("kind"), "--set=broker.tls.caSecret=ca,broker.tls.clientSecret=cc,broker.tls.serverName=mq,rabbitmq.tls.secret=mq-tls"),
	"env":                 append(values("kind"), "--set=server.env.AUTO_ACK=true,server.env.WORK_DELAY=50ms,client.env.RUN=r1,auditor.env.PREFETCH=1,image.pullSecrets[0]=p"),
}

func values(of string) []string {
	return []string{"--values=" + filepath.Join(warrenChart, "values-"+of+".yaml")}
}

// A release is what an install creates.
type release struct {
	pods    map[string]*corev1.PodTemplateSpec // by name of the workload
	kinds   map[string]string
	objects []any
	secrets map[string]*corev1.Secret
}

func renderWarren(t *testing.T, helm string, args ...string) release {
	t.Helper()
	text, err := template(t, helm, warrenChart, args...)
	if err != nil {
		t.Fatalf("%s: %v", helm, err)
	}
	r := release{pods: map[string]*corev1.PodTemplateSpec{}, kinds: map[string]string{}, secrets: map[string]*corev1.Secret{}}
	for _, o := range decode(t, text) {
		r.objects = append(r.objects, o)
		switch o := o.(type) {
		case *appsv1.Deployment:
			r.pods[o.Name], r.kinds[o.Name] = &o.Spec.Template, "Deployment"
		case *appsv1.StatefulSet:
			r.pods[o.Name], r.kinds[o.Name] = &o.Spec.Template, "StatefulSet"
		case *batchv1.Job:
			r.pods[o.Name], r.kinds[o.Name] = &o.Spec.Template, "Job"
		case *corev1.Pod:
			r.pods[o.Name], r.kinds[o.Name] = &corev1.PodTemplateSpec{ObjectMeta: o.ObjectMeta, Spec: o.Spec}, "Pod"
		case *corev1.Secret:
			r.secrets[o.Name] = o
		}
	}
	return r
}

// Every way to install it renders the same with both Helms, decodes without an
// unknown field, and keeps to Pod Security's restricted.
func TestWarrenRenders(t *testing.T) {
	for name, args := range installs {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			text := map[string]string{}
			for _, helm := range helms {
				var err error
				if text[helm], err = template(t, helm, warrenChart, args...); err != nil {
					t.Fatalf("%s: %v", helm, err)
				}
			}
			if sorted(text[helms[0]]) != sorted(text[helms[1]]) {
				t.Errorf("%v differ in what they render", helms)
			}
			r := renderWarren(t, helms[0], args...)
			for pod, p := range r.pods {
				for _, problem := range restricted(t, p) {
					t.Errorf("%s: %s", pod, problem)
				}
			}
			r.check(t)
		})
	}
}

// sorted makes two renderings comparable: the Helms order documents differently.
func sorted(text string) string {
	documents := strings.Split(text, "\n---\n")
	for i, d := range documents {
		documents[i] = strings.TrimSpace(strings.TrimPrefix(d, "---\n"))
	}
	slices.Sort(documents)
	return strings.Join(documents, "\n---\n")
}

// check is what holds for every install.
func (r release) check(t *testing.T) {
	known := settings(t)
	for name, p := range r.pods {
		bad := func(format string, args ...any) { t.Errorf("%s: "+format, append([]any{name}, args...)...) }
		spec, c := p.Spec, p.Spec.Containers[0]
		component := p.Labels["app.kubernetes.io/component"]
		if c.Name != component {
			bad("container %s, component %s: want one name", c.Name, component)
		}
		if spec.EnableServiceLinks == nil || *spec.EnableServiceLinks {
			bad("enableServiceLinks: a Service named warren-… would inject settings that no service knows")
		}
		if spec.AutomountServiceAccountToken == nil || *spec.AutomountServiceAccountToken != strings.HasSuffix(name, "-lab") {
			bad("automountServiceAccountToken: only the lab asks the API server")
		}
		if len(spec.ImagePullSecrets) != len(r.pods["warren-server"].Spec.ImagePullSecrets) && component != "rabbitmq" {
			bad("imagePullSecrets: %v", spec.ImagePullSecrets)
		}
		if c.Resources.Limits.Memory().IsZero() || c.Resources.Requests.Cpu().IsZero() {
			bad("resources: %v", c.Resources)
		}
		ports := map[string]int32{}
		for _, port := range c.Ports {
			ports[port.Name] = port.ContainerPort
		}
		for what, probe := range map[string]*corev1.Probe{"startup": c.StartupProbe, "readiness": c.ReadinessProbe, "liveness": c.LivenessProbe} {
			if probe == nil || probe.HTTPGet == nil {
				continue
			}
			if _, ok := ports[probe.HTTPGet.Port.StrVal]; !ok && probe.HTTPGet.Port.Type == intstr.String {
				bad("%s probe of port %s, which there is not", what, probe.HTTPGet.Port.StrVal)
			}
			if component != "rabbitmq" && (probe.HTTPGet.Path == "/readyz") != (what == "readiness") {
				bad("%s probe of %s: only readiness may know of the broker", what, probe.HTTPGet.Path)
			}
		}
		mounted := files(spec, c)
		seen := map[string]bool{}
		for _, e := range c.Env {
			setting, ours := strings.CutPrefix(e.Name, "WARREN_")
			if !ours {
				continue
			}
			if !known[component][setting] {
				bad("%s: %s does not know it, see docs/settings.md", e.Name, component)
			}
			if seen[e.Name] {
				bad("%s: set twice", e.Name)
			}
			seen[e.Name] = true
			if strings.HasSuffix(e.Name, "_FILE") && !mounted[e.Value] {
				bad("%s=%s: not mounted; there are %v", e.Name, e.Value, slices.Sorted(maps.Keys(mounted)))
			}
			for suffix, port := range map[string]string{"_ADMIN_ADDR": "admin", "_HTTP_ADDR": "http"} {
				if strings.HasSuffix(e.Name, suffix) && e.Value != fmt.Sprintf("0.0.0.0:%d", ports[port]) {
					bad("%s=%s, container port %s is %d", e.Name, e.Value, port, ports[port])
				}
			}
		}
		for _, s := range secretsOf(spec) {
			allowed := regexp.MustCompile(map[string]string{
				"calculator-server":   `^(warren-rabbitmq-calc-server/password|warren-postgresql/server|broker-calc-server/uri|warren-database/server-(uri|password)|(ca|cc)/.*)$`,
				"client":              `^(warren-rabbitmq-calc-client/password|broker-calc-client/uri|(ca|cc)/.*)$`,
				"dead-letter-auditor": `^(warren-rabbitmq-dlq-auditor/password|warren-auditor-token/token|warren-postgresql/auditor|broker-dlq-auditor/uri|warren-database/auditor-(uri|password)|(ca|cc)/.*)$`,
				"lab":                 `^(warren-rabbitmq-.*/password|warren-rabbitmq-default-user/username|warren-auditor-token/token|broker-(calc-client|topology)/uri|(ca|cc)/.*)$`,
				"postgresql":          `^warren-postgresql/`,
				"rabbitmq":            `^(warren-rabbitmq-|mq-tls)`,
			}[component])
			if !allowed.MatchString(s) {
				bad("reads Secret %s: not its own", s)
			}
		}
	}
	r.checkReferences(t)
}

// checkReferences is about names and labels in one object that mean another.
func (r release) checkReferences(t *testing.T) {
	selects := func(what string, selector map[string]string) *corev1.PodTemplateSpec {
		for _, p := range r.pods {
			if labels.SelectorFromSet(selector).Matches(labels.Set(p.Labels)) {
				return p
			}
		}
		t.Errorf("%s: selects no pod: %v", what, selector)
		return nil
	}
	for _, o := range r.objects {
		switch o := o.(type) {
		case *policyv1.PodDisruptionBudget:
			selects("PodDisruptionBudget "+o.Name, o.Spec.Selector.MatchLabels)
		case *corev1.Service:
			p := selects("Service "+o.Name, o.Spec.Selector)
			for _, port := range o.Spec.Ports {
				if p != nil && port.TargetPort.StrVal != "" && !slices.ContainsFunc(p.Spec.Containers[0].Ports, func(c corev1.ContainerPort) bool { return c.Name == port.TargetPort.StrVal }) {
					t.Errorf("Service %s: port %s means %s, which the pod has not", o.Name, port.Name, port.TargetPort.StrVal)
				}
			}
		case *appsv1.Deployment:
			r.checkWorkload(t, o.Name, o.Spec.Selector, o.Spec.Template)
		case *appsv1.StatefulSet:
			r.checkWorkload(t, o.Name, o.Spec.Selector, o.Spec.Template)
		case *rbacv1.ClusterRole, *rbacv1.ClusterRoleBinding:
			t.Errorf("%T: the chart keeps to its namespace", o)
		}
	}
}

func (r release) checkWorkload(t *testing.T, name string, selector *metav1.LabelSelector, p corev1.PodTemplateSpec) {
	if !labels.SelectorFromSet(selector.MatchLabels).Matches(labels.Set(p.Labels)) {
		t.Errorf("%s: its selector %v is not in its pods' labels %v", name, selector.MatchLabels, p.Labels)
	}
	for _, changing := range []string{"helm.sh/chart", "app.kubernetes.io/version"} {
		if _, ok := p.Labels[changing]; ok {
			t.Errorf("%s: pods have the label %s: an upgrade of the chart would restart them for nothing", name, changing)
		}
	}
}

// files are the paths that the projected volumes of a pod show to c.
func files(spec corev1.PodSpec, c corev1.Container) map[string]bool {
	all := map[string]bool{}
	for _, m := range c.VolumeMounts {
		for _, v := range spec.Volumes {
			if v.Name != m.Name || v.Projected == nil {
				continue
			}
			for _, s := range v.Projected.Sources {
				if s.Secret != nil {
					for _, item := range s.Secret.Items {
						all[m.MountPath+"/"+item.Path] = true
					}
				}
			}
		}
	}
	return all
}

// secretsOf lists secret/key of all that a pod reads.
func secretsOf(spec corev1.PodSpec) (all []string) {
	for _, v := range spec.Volumes {
		if v.Secret != nil {
			all = append(all, v.Secret.SecretName+"/")
		}
		if v.Projected != nil {
			for _, s := range v.Projected.Sources {
				if s.Secret != nil {
					for _, item := range s.Secret.Items {
						all = append(all, s.Secret.Name+"/"+item.Key)
					}
				}
			}
		}
	}
	for _, e := range spec.Containers[0].Env {
		if e.ValueFrom != nil && e.ValueFrom.SecretKeyRef != nil {
			all = append(all, e.ValueFrom.SecretKeyRef.Name+"/"+e.ValueFrom.SecretKeyRef.Key)
		}
	}
	return all
}

// settings is docs/settings.md: what each service knows, without WARREN_. What
// runs the lab's image takes the common ones.
func settings(t *testing.T) map[string]map[string]bool {
	t.Helper()
	known := map[string]map[string]bool{}
	var service string
	for line := range strings.Lines(read(t, "../../../docs/settings.md")) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			continue
		}
		name := strings.Trim(strings.TrimSpace(cells[1]), "`")
		if setting, ok := strings.CutPrefix(name, "WARREN_"); ok {
			known[service][setting] = true
		} else if !strings.HasPrefix(name, "-") {
			service = name
			known[service] = map[string]bool{}
		}
	}
	common := known["every service"]
	for _, own := range known {
		maps.Copy(own, common)
	}
	known["lab"] = common
	if len(known) != 5 || !known["client"]["AMQP_URL"] || !known["client"]["ADMIN_ADDR"] {
		t.Fatalf("docs/settings.md: read %v", slices.Sorted(maps.Keys(known)))
	}
	return known
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// What cannot work is refused with the field, the value and what to do.
func TestWarrenRefuses(t *testing.T) {
	const external = "broker.mode=external,rabbitmq.enabled=false"
	for name, tc := range map[string]struct {
		from string // values file
		set  string
		want string
	}{
		"unknown value":                      {"kind", "servers.replicas=1", "additional properties 'servers' not allowed"},
		"unknown value of the server":        {"kind", "server.replica=1", "'/server': additional properties 'replica' not allowed"},
		"unknown value three levels down":    {"kind", "broker.external.secrets.servr=x", "'/broker/external/secrets': additional properties 'servr' not allowed"},
		"unknown value of the broker's pods": {"kind", "rabbitmq.replica=1", "additional properties 'replica' not allowed"},
		"the same where there are none":      {"kind", external + ",rabbitmq.replica=1", "'/rabbitmq': additional properties 'replica' not allowed"},
		"unknown global value":               {"kind", "global.registry=x", "'/global': additional properties 'registry' not allowed"},
		"unknown resource":                   {"kind", "client.resources.limits.memry=1Mi", "'/client/resources/limits': additional properties 'memry' not allowed"},
		"unknown setting":                    {"kind", "server.env.PREFECH=1", "'/server/env': additional properties 'PREFECH' not allowed"},
		"setting that is a value":            {"kind", "server.env.PREFETCH=1", "'/server/env': additional properties 'PREFETCH' not allowed"},
		"unknown mode":                       {"kind", "broker.mode=cloud", "'/broker/mode': value must be one of 'bundled', 'operator', 'external'"},
		"unknown database":                   {"kind", "database.mode=mysql", "'/database/mode': value must be one of"},
		"prefetch 0":                         {"kind", "server.prefetch=0", "'/server/prefetch': minimum: got 0, want 1"},
		"rate 0":                             {"kind", "client.rate=0", "'/client/rate': exclusiveMinimum"},
		"drain too long":                     {"kind", "server.drainTimeoutSeconds=601", "'/server/drainTimeoutSeconds': maximum: got 601, want 600"},
		"two operator nodes":                 {"kind", "broker.operator.replicas=2", "'/broker/operator/replicas': value must be one of 1, 3, 5, 7"},
		"seed too short":                     {"kind", "seed=short", "'/seed'"},
		"no registry":                        {"kind", "image.registry=", "image.registry: empty: push the images by `scripts/images --push REGISTRY`"},
		"two broker nodes":                   {"kind", "rabbitmq.replicas=2", "replicas: 2"},
		"external and bundled":               {"kind", "broker.mode=external", "rabbitmq.enabled=true: with broker.mode=external set it to false"},
		"neither":                            {"kind", "rabbitmq.enabled=false", "rabbitmq.enabled=false: with broker.mode=bundled set it to true"},
		"external without Secrets":           {"kind", external + ",broker.external.secrets.server=s", "broker.external.secrets.client: empty: name the Secret"},
		"operator without its CRD":           {"kind", "broker.mode=operator,rabbitmq.enabled=false", "the cluster does not know rabbitmq.com/v1beta1: install RabbitMQ's cluster operator first"},
		"TLS at one end":                     {"kind", "broker.tls.caSecret=ca", "rabbitmq.tls.secret: one is empty"},
		"a certificate and no TLS":           {"kind", "broker.tls.clientSecret=cc", "broker.tls.caSecret: empty"},
		"sqlite and two servers":             {"kind", "database.mode=sqlite", "server.replicas=2: database.mode=sqlite is one file, and pods share none: at most 1"},
		"sqlite and two auditors":            {"kind", "database.mode=sqlite,server.replicas=1,auditor.replicas=2", "auditor.replicas=2: database.mode=sqlite"},
		"external database without a Secret": {"kind", "database.mode=external", "database.external.secret: empty"},
		"no seed and no cluster":             {"kind", "seed=", "seed: empty, and no cluster in sight"},
		"production without a registry":      {"production", "", "image.registry: empty"},
		"lab in production":                  {"production", "image.registry=r,lab.enabled=true", "lab.enabled=true: with production=true"},
		"faults in production":               {"production", "image.registry=r,faults=true", "faults=true: with production=true"},
		"seed in production":                 {"production", "image.registry=r,seed=sixteen-letters-", "seed: set: with production=true"},
		"lesson in production":               {"production", "image.registry=r,server.env.DRAIN=false", "server.env.DRAIN: a lesson"},
		"no key in production":               {"production", "image.registry=r,auditor.env.UNIQUE_KEY=false", "auditor.env.UNIQUE_KEY: a lesson"},
		"made-up token in production":        {"production", "image.registry=r,auditor.tokenSecret=", "auditor.tokenSecret: empty: with production=true"},
		"made-up broker users in production": {"production", "image.registry=r,rabbitmq.auth.existingSecrets=false,rabbitmq.auth.seed=sixteen-letters-or-more", "rabbitmq.auth.existingSecrets=false: with production=true"},
		"made-up database in production":     {"production", "image.registry=r,database.mode=bundled", "database.passwordSecret: empty: with production=true"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, helm := range helms {
				_, err := template(t, helm, warrenChart, append(values(tc.from), "--set="+tc.set)...)
				if err == nil || !strings.Contains(err.Error(), tc.want) {
					t.Errorf("%s: got %v, want %q", helm, err, tc.want)
				}
			}
		})
	}
}

// A new release name, namespace or component is other Secrets; the same is the same.
func TestWarrenSecretsFollowFromTheSeed(t *testing.T) {
	secret := func(name, key string, args ...string) string {
		s := renderWarren(t, helms[0], append(values("kind"), args...)...).secrets[name]
		if s == nil || len(s.Data[key]) < 16 {
			t.Fatalf("Secret %s: %v, want 16 bytes or more under %s", name, s, key)
		}
		return string(s.Data[key])
	}
	token := secret("warren-auditor-token", "token")
	if again := secret("warren-auditor-token", "token"); again != token {
		t.Errorf("two renderings: tokens %s and %s: applying the second would lock everybody out", token, again)
	}
	others := map[string]bool{token: true}
	for _, other := range []string{
		secret("warren-auditor-token", "token", "--namespace=other"), secret("warren-auditor-token", "token", "--set=seed=another-sixteen-letters"),
		secret("warren-postgresql", "postgres"), secret("warren-postgresql", "server"), secret("warren-postgresql", "auditor"),
	} {
		if others[other] {
			t.Errorf("%s: a secret of two things", other)
		}
		others[other] = true
	}
}

func TestWarrenGracePeriodIsLongerThanTheDrain(t *testing.T) {
	for _, drain := range []int{0, 20, 599} {
		r := renderWarren(t, helms[0], append(values("kind"), fmt.Sprintf("--set=server.drainTimeoutSeconds=%d,client.timeoutSeconds=%d", drain, drain+1))...)
		for pod, want := range map[string]int{"warren-server": drain + 10, "warren-client": drain + 11} {
			if got := int(*r.pods[pod].Spec.TerminationGracePeriodSeconds); got != want {
				t.Errorf("%s: grace period %d s, want %d", pod, got, want)
			}
		}
		env := r.pods["warren-server"].Spec.Containers[0].Env
		if !slices.Contains(env, corev1.EnvVar{Name: "WARREN_DRAIN_TIMEOUT", Value: fmt.Sprintf("%ds", drain)}) {
			t.Errorf("WARREN_DRAIN_TIMEOUT is not %ds in %v", drain, env)
		}
	}
}

func TestWarrenWorkloadsFollowTheDatabase(t *testing.T) {
	for install, want := range map[string]map[string]string{
		"kind":     {"warren-server": "Deployment", "warren-client": "Deployment", "warren-auditor": "Deployment", "warren-postgresql": "StatefulSet", "warren-rabbitmq": "StatefulSet", "warren-check": "Pod"},
		"sqlite":   {"warren-server": "Deployment", "warren-client": "Deployment", "warren-auditor": "StatefulSet", "warren-rabbitmq": "StatefulSet", "warren-check": "Pod"},
		"external": {"warren-server": "Deployment", "warren-client": "Deployment", "warren-auditor": "Deployment", "warren-topology": "Job", "warren-check": "Pod"},
		"operator": {"warren-server": "Deployment", "warren-client": "Deployment", "warren-auditor": "Deployment", "warren-postgresql": "StatefulSet", "warren-topology-1": "Job", "warren-check": "Pod"},
	} {
		if got := renderWarren(t, helms[0], installs[install]...).kinds; !maps.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", install, got, want)
		}
	}
}

// A release's name is taken over once: warren-warren-server helps nobody.
func TestWarrenNames(t *testing.T) {
	for releaseName, want := range map[string]string{"warren": "warren-server", "my-warren": "my-warren-server", "demo": "demo-warren-server"} {
		text, err := templateAs(t, releaseName, helms[0], warrenChart, values("kind")...)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(text, "\n  name: "+want+"\n") {
			t.Errorf("release %s: no %s", releaseName, want)
		}
	}
}

// The values, as values.yaml and the schema have them.
func TestWarrenValues(t *testing.T) {
	text := read(t, filepath.Join(warrenChart, "values.yaml"))
	var tree map[string]any
	if err := yaml.Unmarshal([]byte(text), &tree); err != nil {
		t.Fatal(err)
	}
	if n := leaves(tree); n >= 60 {
		t.Errorf("%d values, want less than 60", n)
	}
	before := ""
	for line := range strings.Lines(text) {
		key := strings.TrimSpace(line)
		if isKey := key != "" && !strings.HasPrefix(key, "#"); isKey && !strings.HasPrefix(strings.TrimSpace(before), "#") && !strings.HasPrefix(key, "requests:") && !strings.HasPrefix(key, "limits:") {
			t.Errorf("values.yaml: %s: not documented above itself", key)
		}
		before = line
	}

	var schema struct {
		Properties map[string]struct {
			Properties map[string]struct {
				Properties map[string]any `json:"properties"`
			} `json:"properties"`
		} `json:"properties"`
	}
	if err := yaml.Unmarshal([]byte(read(t, filepath.Join(warrenChart, "values.schema.json"))), &schema); err != nil {
		t.Fatal(err)
	}
	known, lessons := settings(t), lessons(t)
	refused := read(t, filepath.Join(warrenChart, "templates/_refuse.tpl"))
	// Those that the chart sets itself, and the name of the process, which every pod needs for itself.
	byChart := regexp.MustCompile(`^(AMQP_(URL|USERNAME|PASSWORD_FILE|CA_FILE|CERT_FILE|KEY_FILE|SERVER_NAME)|EVENTS|FAULTS|INSTANCE|ADMIN_ADDR|HTTP_ADDR|HTTP_TOKEN_FILE|DATABASE|DATABASE_PASSWORD_FILE)$`)
	byServer := regexp.MustCompile(`^(PREFETCH|CONCURRENCY|DRAIN_TIMEOUT)$`)
	for value, service := range map[string]string{"server": "calculator-server", "client": "client", "auditor": "dead-letter-auditor"} {
		var want []string
		for setting := range known[service] {
			if !byChart.MatchString(setting) && !(value == "server" && byServer.MatchString(setting)) {
				want = append(want, setting)
			}
			if lessons[setting] && !strings.Contains(refused, `"`+setting+`"`) {
				t.Errorf("lesson %s: templates/_refuse.tpl does not refuse it with production=true", setting)
			}
		}
		slices.Sort(want)
		if got := slices.Sorted(maps.Keys(schema.Properties[value].Properties["env"].Properties)); !slices.Equal(got, want) {
			t.Errorf("values.schema.json: %s.env allows\n%v, docs/settings.md has\n%v", value, got, want)
		}
	}
}

// No object takes a key that it does not know, and no value is left unsaid.
func TestSchemasAreClosed(t *testing.T) {
	own := schema(t, rabbitmqChart)["properties"].(map[string]any)
	for _, chart := range []string{warrenChart, rabbitmqChart} {
		closed(t, chart, schema(t, chart), func(path string) bool {
			name, ok := strings.CutPrefix(path, warrenChart+"/properties/rabbitmq/properties/")
			return ok && own[name] != nil // closed in its own schema
		})
	}
	ours := schema(t, warrenChart)["properties"].(map[string]any)["rabbitmq"].(map[string]any)["properties"].(map[string]any)
	if got, want := slices.Sorted(maps.Keys(ours)), slices.Sorted(maps.Keys(own)); !slices.Equal(got, want) {
		t.Errorf("charts/warren's schema has rabbitmq with\n%v, charts/rabbitmq's has\n%v", got, want)
	}
}

func schema(t *testing.T, chart string) (s map[string]any) {
	t.Helper()
	if err := yaml.Unmarshal([]byte(read(t, filepath.Join(chart, "values.schema.json"))), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// closed walks a schema. Which key says what is draft 7's business.
func closed(t *testing.T, path string, s map[string]any, elsewhere func(path string) bool) {
	if elsewhere(path) {
		return
	}
	said := false
	for _, key := range []string{"type", "enum", "$ref", "allOf"} {
		said = said || s[key] != nil
	}
	if !said {
		t.Errorf("%s: takes anything", path)
	}
	others := s["additionalProperties"]
	if values, ok := others.(map[string]any); ok {
		closed(t, path+"/additionalProperties", values, elsewhere)
	} else if s["type"] == "object" && others != false {
		t.Errorf("%s: takes any key", path)
	}
	for _, key := range []string{"properties", "definitions"} {
		children, _ := s[key].(map[string]any)
		for name, child := range children {
			closed(t, path+"/"+key+"/"+name, child.(map[string]any), elsewhere)
		}
	}
	if items, ok := s["items"].(map[string]any); ok {
		closed(t, path+"/items", items, elsewhere)
	} else if s["type"] == "array" {
		t.Errorf("%s: takes any items", path)
	}
}

// leaves counts values: resources and env are one each.
func leaves(v map[string]any) (n int) {
	for key, v := range v {
		if m, ok := v.(map[string]any); ok && key != "resources" && key != "env" {
			n += leaves(m)
		} else {
			n++
		}
	}
	return n
}

// lessons are the settings that take a promise away.
func lessons(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for _, row := range regexp.MustCompile("(?m)^\\| `WARREN_([A-Z_]+)` .*\\b(?:lesson\\.|is a lesson:)").FindAllStringSubmatch(read(t, "../../../docs/settings.md"), -1) {
		all[row[1]] = true
	}
	if !all["AUTO_ACK"] || !all["UNIQUE_KEY"] {
		t.Fatalf("docs/settings.md: found no lessons but %v", all)
	}
	return all
}

// What stands in charts/warren and elsewhere too.
func TestWarrenAgreesWithTheRest(t *testing.T) {
	for _, of := range []string{"kind", "production"} {
		var ours struct{ Rabbitmq map[string]any }
		var theirs map[string]any
		for path, into := range map[string]any{warrenChart: &ours, warrenChart + "/charts/rabbitmq": &theirs} {
			if err := yaml.Unmarshal([]byte(read(t, filepath.Join(path, "values-"+of+".yaml"))), into); err != nil {
				t.Fatal(err)
			}
		}
		if got, want := fmt.Sprint(ours.Rabbitmq), fmt.Sprint(theirs); got != want {
			t.Errorf("values-%s.yaml: rabbitmq is\n%s, charts/rabbitmq has\n%s", of, got, want)
		}
	}

	operator := renderWarren(t, helms[0], installs["operator"]...)
	for _, u := range topology.Users() {
		if s := operator.secrets["warren-rabbitmq-"+u.Name]; s == nil || string(s.Data["username"]) != u.Name {
			t.Errorf("broker.mode=operator: no Secret for the user %s", u.Name)
		}
	}
	if got := len(operator.secrets); got != len(topology.Users())+2 {
		t.Errorf("broker.mode=operator: %d Secrets, want one for each user, the token and the database's", got)
	}

	var bundled string
	for _, o := range renderWarren(t, helms[0], installs["kind"]...).objects {
		if c, ok := o.(*corev1.ConfigMap); ok && c.Name == "warren-rabbitmq" {
			bundled = c.Data["rabbitmq.conf"] + c.Data["advanced.config"]
		}
	}
	var config rabbitmqv1beta1.RabbitmqClusterConfigurationSpec
	for _, o := range operator.objects {
		if c, ok := o.(*rabbitmqv1beta1.RabbitmqCluster); ok {
			config = c.Spec.Rabbitmq
		}
	}
	lines := strings.Split(strings.TrimSpace(config.AdditionalConfig), "\n")
	if len(lines) < 4 || !strings.Contains(config.AdvancedConfig, "{dead_letter_worker_publisher_confirm_timeout, 3000}") {
		t.Errorf("RabbitmqCluster: rabbitmq is %v", config)
	}
	for _, line := range append(lines, "{dead_letter_worker_publisher_confirm_timeout, 3000}") {
		if !strings.Contains(bundled, line) {
			t.Errorf("RabbitmqCluster: %q is not in charts/rabbitmq's configuration", line)
		}
	}
}

// The example's Secrets are those, with the keys, that its values name.
func TestWarrenExternalExample(t *testing.T) {
	given := map[string]bool{}
	for _, o := range decode(t, read(t, "../../../k8s/external.secrets.yaml")) {
		s := o.(*corev1.Secret)
		for key := range s.StringData {
			given[s.Name+"/"+key] = true
		}
	}
	needed := map[string]bool{}
	for _, p := range renderWarren(t, helms[0], installs["external"]...).pods {
		for _, s := range secretsOf(p.Spec) {
			needed[s] = true
		}
	}
	delete(needed, "warren-auditor-token/token") // the chart's own
	if !maps.Equal(given, needed) {
		t.Errorf("external.secrets.yaml has %v, external.values.yaml needs %v", slices.Sorted(maps.Keys(given)), slices.Sorted(maps.Keys(needed)))
	}
}

// A packed chart holds the linked one, and installs without this repository.
func TestWarrenPackage(t *testing.T) {
	for _, helm := range helms {
		dir := t.TempDir()
		if out, err := exec.Command(program(t, helm), "package", warrenChart, "--destination", dir).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", helm, err, out)
		}
		packed, _ := filepath.Glob(filepath.Join(dir, "warren-*.tgz"))
		if len(packed) != 1 {
			t.Fatalf("%s: packed %v, want one chart", helm, packed)
		}
		got, err := template(t, helm, packed[0], values("kind")...)
		want, _ := template(t, helm, warrenChart, values("kind")...)
		if err != nil || got != want {
			t.Errorf("%s: the package renders otherwise than the folder (%v)", helm, err)
		}
	}
}
