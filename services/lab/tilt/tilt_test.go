package tilt

import (
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"warren.example/lab/scenario"
)

func readTiltfile(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "Tiltfile"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

const ourContext = "kind-warren"

// checks return what is wrong.
var checks = []func(*session) []string{
	checkGuard, checkNamespace, checkImages, checkWorkloads, checkForwards, checkDependencies,
	checkFolders, checkSources, checkLiveUpdate, checkButtons, checkCommands,
}

func (s *session) problems() (all []string) {
	for _, check := range checks {
		all = append(all, check(s)...)
	}
	return all
}

func TestTiltfile(t *testing.T) {
	for name, settings := range map[string]map[string]any{
		"as it is": {},
		"sqlite":   {"database": "sqlite"},
		"set":      {"set": []any{"rabbitmq.replicas=1", "client.rate=1"}},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := evaluate(t, readTiltfile(t), ourContext, settings)
			if err != nil {
				t.Fatal(err)
			}
			for _, problem := range s.problems() {
				t.Error(problem)
			}
		})
	}
}

func TestTiltfileRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		context  string
		settings map[string]any
		want     string
	}{
		"somebody's cluster":     {"production", nil, "context production: only kind-warren is ever touched"},
		"another kind cluster":   {"kind-other", nil, "context kind-other: only kind-warren is ever touched"},
		"another database":       {ourContext, map[string]any{"database": "mysql"}, "--database=mysql: want bundled or sqlite"},
		"an unknown setting":     {ourContext, map[string]any{"broker": "x"}, "settings"},
		"an unknown chart value": {ourContext, map[string]any{"set": []any{"rabbit.replicas=1"}}, "rabbit"},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := evaluate(t, readTiltfile(t), c.context, c.settings)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v, want one with %q", err, c.want)
			}
			if did := slices.IndexFunc(s.calls, acts); did >= 0 {
				t.Errorf("%s was called before the refusal", s.calls[did].fn)
			}
		})
	}
}

// acts says whether a call tells Tilt to build or install something.
func acts(c call) bool {
	return slices.Contains([]string{"docker_build_with_restart", "k8s_yaml", "local_resource", "cmd_button"}, c.fn) && !isNamespace(c)
}

func isNamespace(c call) bool { return strings.Contains(fmt.Sprint(c.arg["yaml"]), "kind: Namespace") }

// Each check has something that it finds.
func TestBrokenTiltfiles(t *testing.T) {
	for name, c := range map[string]struct{ old, new, want string }{
		"a context more":                    {"allow_k8s_contexts('kind-warren')", "allow_k8s_contexts(['kind-warren', 'production'])", "allow_k8s_contexts"},
		"the context is not looked at":      {"if k8s_context() != 'kind-warren':", "if False:", "k8s_context is never asked"},
		"too late":                          {"allow_k8s_contexts('kind-warren')", "watch_file('charts/rabbitmq')\nallow_k8s_contexts('kind-warren')", "is called first"},
		"an unknown argument":               {"allow_parallel=True, labels=['chaos']", "parallel=True, labels=['chaos']", `unexpected keyword argument "parallel"`},
		"an unknown built-in":               {"watch_file(", "watch_folder(", "undefined: watch_folder"},
		"a string for a blob":               {"k8s_yaml(blob(str(ours)", "k8s_yaml((str(ours)", "want a blob"},
		"without pod security":              {"'pod-security.kubernetes.io/enforce': 'restricted'", "", "pod-security.kubernetes.io/enforce"},
		"two namespaces":                    {"namespace=namespace, kube", "namespace='elsewhere', kube", "elsewhere"},
		"another release":                   {"name='warren', namespace", "name='other', namespace", "warren-rabbitmq-admin"},
		"without a seed":                    {"settings.get('set', [])", "settings.get('set', []) + ['seed=']", "no cluster in sight"},
		"another image":                     {"'localhost/warren/' + service", "'warren/' + service", "localhost/warren/client"},
		"an image too many":                 {"('client', 'warren-client', []),", "('client', 'warren-client', []), ('lab', 'warren-client', []),", "no pod has image localhost/warren/lab"},
		"an unknown workload":               {"'warren-auditor', [port", "'warren-audit', [port", "warren-audit: the chart renders no such workload"},
		"a workload without labels":         {"k8s_resource('warren-postgresql', labels=['database'])", "pass", "warren-postgresql: no k8s_resource"},
		"a port twice":                      {"port_forward(15672, 15672", "port_forward(5672, 15672", "5672: forwarded twice"},
		"a port for everybody":              {"name='amqp', host='127.0.0.1'", "name='amqp', host='0.0.0.0'", "want 127.0.0.1"},
		"the default host":                  {"name='amqp', host='127.0.0.1'", "name='amqp'", "want 127.0.0.1"}, // `tilt up --host` changes it
		"a port of nobody":                  {"port_forward(8080, 8080", "port_forward(8080, 8081", "8081"},
		"a forward less":                    {"    port_forward(15672, 15672, name='management', host='127.0.0.1'),\n", "", "want map[amqp:5672 dead letters:8080 management:15672]"},
		"an unknown dependency":             {"stores = ['warren-rabbitmq']", "stores = ['rabbitmq']", "rabbitmq: no such resource"},
		"a circle":                          {"k8s_resource('warren-rabbitmq', labels", "k8s_resource('warren-rabbitmq', resource_deps=['check'], labels", "circle"},
		"a build is not awaited":            {"resource_deps=['build-' + service] + stores", "resource_deps=stores", "does not depend on what builds"},
		"a folder that is not there":        {"watch_file('charts/rabbitmq')", "watch_file('charts/rabbit')", "charts/rabbit: "},
		"the broker's chart is not watched": {"watch_file('charts/rabbitmq')", "pass", "not watched"},
		"an edit without a build":           {"deps=['services/messaging', ", "deps=[", "services/messaging"},
		"ignored sources":                   {"ignore=['**/*_test.go',", "ignore=['**/*.go',", "ignore"},
		"the whole tree as context":         {"service, '.bin/tilt', dockerfile", "service, '.', dockerfile", "only"},
		"a program of another place":        {"sync(program, '/app/service')", "sync(program, '/service')", "/service"},
		"another entrypoint":                {"entrypoint=['/app/service']", "entrypoint=['/service']", "ENTRYPOINT"},
		"an entrypoint that loses the args": {"entrypoint=['/app/service']", "entrypoint='/app/service'", "a list"},
		"a restart file of root":            {"restart_file='/tmp/.restart-proc'", "restart_file='/.restart-proc'", "/.restart-proc"},
		"the release image":                 {"services/Dockerfile.dev", "services/Dockerfile", "no shell"},
		"a root that is read-only":          {".replace('readOnlyRootFilesystem: true', 'readOnlyRootFilesystem: false')", "", "read-only"},
		"a broker that is not":              {"k8s_yaml(others)", "k8s_yaml(blob(str(others).replace('readOnlyRootFilesystem: true', 'readOnlyRootFilesystem: false')))", "warren-rabbitmq: its root"},
		"a program for this machine":        {"'CGO_ENABLED': '0', 'GOOS': 'linux', ", "'GOOS': 'linux', ", "CGO_ENABLED"},
		"an unknown package":                {"'go', 'run', './services/lab', 'run'", "'go', 'run', './services/laboratory', 'run'", "laboratory"},
		"an unknown flag":                   {"'--reuse', ", "'--recycle', ", "unknown flag: --recycle"},
		"a flag of another place":           {"'--on=kind', '--reuse'", "'--on=local', '--reuse'", ": only with --on kind"},
		"up with an unknown flag":           {"--on kind --namespace scenarios --detach", "--on kind --namespace scenarios --background", "unknown flag: --background"},
		"the namespace of scenarios":        {"'--namespace=scenarios'", "'--namespace=warren'", "namespace warren is Tilt's own"},
		"an unknown scenario":               {"[s['name'] for s in", "['nosuch'] + [s['name'] for s in", "nosuch"},
		"an input that is not asked for":    {"text_input('RATE', ", "text_input('SPEED', ", `"--rate"`},
		"a program that is not required":    {"['docker', 'exec', 'warren-control-plane', 'sh', '-euc', '''", "['kubectl', 'exec', 'warren-control-plane', 'sh', '-euc', '''", "kubectl: not in PATH"},
		"another node":                      {"'exec', 'warren-control-plane'", "'exec', 'other-control-plane'", "other-control-plane"},
		"pods of nobody":                    {"all calculator-server | head", "all server | head", "app.kubernetes.io/component=server"},
		"a script that is none":             {"done; for job", "for job", "Syntax error"},
		"a process of nobody":               {"head -n 1)\" service", "head -n 1)\" server", "kills none"},
		"no question asked":                 {"requires_confirmation=True", "requires_confirmation=False", "requires_confirmation"},
		"a button on nothing":               {"cmd_button('load', 'warren-client'", "cmd_button('load', 'client'", "client: no such resource"},
		"a button less":                     {"    ('delete-server', 'Delete a server pod', '$kubectl delete \"$(all calculator-server | head -n 1)\"'),\n", "", `want ["all-scenarios"`},
		"a name twice":                      {"cmd_button('load', ", "cmd_button('scenario', ", "scenario: two buttons"},
		"trigger nothing":                   {"'trigger', 'scenarios'", "'trigger', 'all'", "all: no such resource"},
		"scenarios at every start":          {"local_resource('scenarios', run + ['--all'], auto_init=False", "local_resource('scenarios', run + ['--all'], auto_init=True", "scenarios: starts by itself"},
	} {
		t.Run(name, func(t *testing.T) {
			source := readTiltfile(t)
			if !strings.Contains(source, c.old) {
				t.Fatalf("the Tiltfile does not contain %q", c.old)
			}
			s, err := evaluate(t, strings.Replace(source, c.old, c.new, 1), ourContext, nil)
			var found []string
			if err != nil {
				found = append(found, err.Error())
			} else {
				found = s.problems()
			}
			if text := strings.Join(found, "\n"); !strings.Contains(text, c.want) {
				t.Errorf("found:\n%s\nwant: %s", text, c.want)
			}
		})
	}
}

// Tilt allows every kind cluster unasked, so the first line alone would not do.
func checkGuard(s *session) (problems []string) {
	if len(s.calls) == 0 || s.calls[0].fn != "allow_k8s_contexts" {
		problems = append(problems, "allow_k8s_contexts is called first: it is not")
	}
	for _, c := range s.all("allow_k8s_contexts") {
		if got := c.words("contexts"); !slices.Equal(got, []string{ourContext}) {
			problems = append(problems, fmt.Sprintf("allow_k8s_contexts(%q): want %s alone", got, ourContext))
		}
	}
	if len(s.all("k8s_context")) == 0 {
		problems = append(problems, "k8s_context is never asked")
	}
	return problems
}

func (s *session) namespace() (o object) {
	for _, o := range s.objects {
		if o.Kind == "Namespace" {
			return o
		}
	}
	return o
}

func checkNamespace(s *session) (problems []string) {
	ns := s.namespace().Metadata
	if ns.Labels["pod-security.kubernetes.io/enforce"] != "restricted" {
		problems = append(problems, fmt.Sprintf("namespace %q: pod-security.kubernetes.io/enforce is not restricted", ns.Name))
	}
	for _, o := range s.objects {
		if o.Kind != "Namespace" && o.Metadata.Namespace != ns.Name {
			problems = append(problems, fmt.Sprintf("%s %s: namespace %s, which nothing makes", o.Kind, o.Metadata.Name, o.Metadata.Namespace))
		}
	}
	return problems
}

// workloads are the pod templates by the name of their workload, which is the
// name of their Tilt resource.
func (s *session) workloads() map[string]corev1.PodTemplateSpec {
	found := map[string]corev1.PodTemplateSpec{}
	for _, o := range s.objects {
		if len(o.Spec.Template.Spec.Containers) > 0 {
			found[o.Metadata.Name] = o.Spec.Template
		}
	}
	return found
}

// built is the workload that has a built image.
func (s *session) built(ref string) (workload string, container corev1.Container) {
	for name, w := range s.workloads() {
		for _, c := range w.Spec.Containers {
			if image, _, _ := strings.Cut(c.Image, ":"); image == ref {
				return name, c
			}
		}
	}
	return "", container
}

func checkImages(s *session) (problems []string) {
	refs := map[string]bool{}
	for _, c := range s.all("docker_build_with_restart") {
		refs[c.text("ref")] = true
		if workload, _ := s.built(c.text("ref")); workload == "" {
			problems = append(problems, "no pod has image "+c.text("ref"))
		}
	}
	for name, w := range s.workloads() {
		for _, c := range slices.Concat(w.Spec.InitContainers, w.Spec.Containers) {
			if image, _, _ := strings.Cut(c.Image, ":"); strings.HasPrefix(image, "localhost/") && !refs[image] {
				problems = append(problems, fmt.Sprintf("%s: nothing builds %s", name, image))
			}
		}
	}
	return problems
}

func checkWorkloads(s *session) (problems []string) {
	seen := map[string]bool{}
	for _, c := range s.all("k8s_resource") {
		name := c.text("workload")
		seen[name] = true
		if _, ok := s.workloads()[name]; !ok {
			problems = append(problems, name+": the chart renders no such workload")
		}
		if len(c.words("labels")) != 1 {
			problems = append(problems, fmt.Sprintf("%s: labels %q, want one group", name, c.words("labels")))
		}
	}
	for name := range s.workloads() {
		if !seen[name] {
			problems = append(problems, name+": no k8s_resource, so no group")
		}
	}
	return problems
}

// What the page shows beside a workload: links, and what a button needs.
var forwards = map[any]any{"management": 15672, "amqp": 5672, "dead letters": 8080}

func checkForwards(s *session) (problems []string) {
	taken, named := map[any]bool{}, map[any]any{}
	for _, c := range s.all("k8s_resource") {
		var declared []any
		for _, container := range s.workloads()[c.text("workload")].Spec.Containers {
			for _, p := range container.Ports {
				declared = append(declared, int(p.ContainerPort))
			}
		}
		for _, f := range c.list("port_forwards") {
			forward := f.(map[string]any)
			port := forward["local_port"]
			if taken[port] {
				problems = append(problems, fmt.Sprintf("port %v: forwarded twice", port))
			}
			taken[port], named[forward["name"]] = true, port
			if forward["host"] != "127.0.0.1" {
				problems = append(problems, fmt.Sprintf("port %v: host %v, want 127.0.0.1", port, forward["host"]))
			}
			if !slices.Contains(declared, forward["container_port"]) {
				problems = append(problems, fmt.Sprintf("port %v: %s declares %v, not %v", port, c.text("workload"), declared, forward["container_port"]))
			}
		}
	}
	if !maps.Equal(named, forwards) {
		problems = append(problems, fmt.Sprintf("forwards %v, want %v", named, forwards))
	}
	return problems
}

// resources are what each resource depends on.
func (s *session) resources() map[string][]string {
	found := map[string][]string{}
	for _, c := range s.all("k8s_resource") {
		found[c.text("workload")] = c.words("resource_deps")
	}
	for _, c := range s.all("local_resource") {
		found[c.text("name")] = c.words("resource_deps")
	}
	return found
}

func checkDependencies(s *session) (problems []string) {
	resources := s.resources()
	var visit func(path []string, name string)
	visit = func(path []string, name string) {
		if slices.Contains(path, name) {
			problems = append(problems, "a circle: "+strings.Join(append(path, name), " → "))
			return
		}
		deps, ok := resources[name]
		if !ok {
			problems = append(problems, name+": no such resource")
		}
		for _, d := range deps {
			visit(append(slices.Clone(path), name), d)
		}
	}
	for name := range resources {
		visit(nil, name)
	}
	// An image is built from what a local_resource has compiled.
	outputs := map[string]string{}
	for _, c := range s.compilers() {
		outputs[output(c)] = c.text("name")
	}
	for _, c := range s.all("docker_build_with_restart") {
		workload, _ := s.built(c.text("ref"))
		for _, file := range only(c) {
			if !slices.Contains(resources[workload], outputs[file]) || outputs[file] == "" {
				problems = append(problems, fmt.Sprintf("%s: does not depend on what builds %s, the only file of its image", workload, file))
			}
		}
	}
	return problems
}

// compilers are the local_resources that build a program.
func (s *session) compilers() (found []call) {
	for _, c := range s.all("local_resource") {
		if words := c.words("cmd"); len(words) > 3 && words[0] == "go" && words[1] == "build" {
			found = append(found, c)
		}
	}
	return found
}

// only are the files of an image's context.
func only(c call) (files []string) {
	for _, file := range c.words("only") {
		files = append(files, path.Join(c.text("context"), file))
	}
	return files
}

func output(c call) string { return path.Join(c.text("dir"), c.words("cmd")[3]) }

func checkFolders(s *session) (problems []string) {
	var paths, watched []string
	for _, c := range s.all("watch_file") {
		watched = append(watched, c.text("file_path"))
	}
	for _, c := range s.all("helm") {
		watched = append(watched, c.text("pathToChartDir"))
	}
	for _, c := range s.all("local_resource") {
		paths = append(paths, c.text("dir"))
		paths = append(paths, c.words("deps")...)
	}
	for _, c := range s.all("docker_build_with_restart") {
		paths = append(paths, c.text("dockerfile"))
	}
	for _, p := range slices.Concat(paths, watched) {
		if _, err := os.Stat(filepath.Join(root, p)); err != nil {
			problems = append(problems, fmt.Sprintf("%s: %v", p, err))
		}
	}
	// Tilt follows no link when it watches a chart.
	links, _ := filepath.Glob(filepath.Join(root, "charts/warren/charts/*"))
	for _, link := range links {
		if chart := "charts/" + filepath.Base(link); !slices.Contains(watched, chart) {
			problems = append(problems, chart+": not watched")
		}
	}
	return problems
}

// Whatever is compiled into a program is watched.
func checkSources(s *session) (problems []string) {
	here, err := filepath.Abs(root)
	if err != nil {
		return []string{err.Error()}
	}
	for _, c := range s.compilers() {
		out, err := s.run([]string{"go", "list", "-deps", "-f", "{{if not .Standard}}{{.Dir}}{{end}}", "."}, c.text("dir"), c.arg["env"])
		if err != nil {
			problems = append(problems, err.Error())
		}
		for dir := range strings.FieldsSeq(out) {
			source, err := filepath.Rel(here, dir)
			if err != nil || strings.HasPrefix(source, "..") {
				continue // the module cache
			}
			if !slices.ContainsFunc(c.words("deps"), func(d string) bool { return source == d || strings.HasPrefix(source, d+"/") }) {
				problems = append(problems, fmt.Sprintf("%s: compiles %s and does not watch it", c.text("name"), source))
			}
		}
		for _, pattern := range c.words("ignore") {
			if pattern != "**/*_test.go" && pattern != "**/testdata" {
				problems = append(problems, fmt.Sprintf("%s: ignore %s: an edit would go unseen", c.text("name"), pattern))
			}
		}
		env, _ := c.arg["env"].(map[string]any)
		for name, want := range map[string]string{"CGO_ENABLED": "0", "GOOS": "linux", "GOWORK": "off"} {
			if env[name] != want {
				problems = append(problems, fmt.Sprintf("%s: %s=%v, want %s", c.text("name"), name, env[name], want))
			}
		}
	}
	return problems
}

// What is synced is what the image was made of, in the same place, and the
// pod's user may replace it there.
func checkLiveUpdate(s *session) (problems []string) {
	wrong := func(c call, format string, a ...any) {
		problems = append(problems, c.text("ref")+": "+fmt.Sprintf(format, a...))
	}
	writable := map[string]bool{}
	for _, c := range s.all("docker_build_with_restart") {
		text, err := os.ReadFile(filepath.Join(root, c.text("dockerfile")))
		if err != nil {
			wrong(c, "%v", err)
			continue
		}
		dockerfile := string(text)
		args, _ := c.arg["build_args"].(map[string]any)
		for name, value := range args {
			dockerfile = strings.ReplaceAll(dockerfile, "${"+name+"}", fmt.Sprint(value))
		}
		workload, container := s.built(c.text("ref"))
		writable[workload] = true
		user := int64(0)
		if security := s.workloads()[workload].Spec.SecurityContext; security != nil && security.RunAsUser != nil {
			user = *security.RunAsUser
		}
		if security := container.SecurityContext; security == nil || security.ReadOnlyRootFilesystem == nil || *security.ReadOnlyRootFilesystem {
			wrong(c, "%s has a root that is read-only, so nothing can be synced", workload)
		}
		if strings.Contains(dockerfile, "FROM scratch") {
			wrong(c, "%s: no shell and no tar in it to sync with", c.text("dockerfile"))
		}
		for _, step := range c.list("live_update") {
			sync := step.(map[string]any)
			from, to := fmt.Sprint(sync["local_path"]), fmt.Sprint(sync["remote_path"])
			if !slices.Equal(only(c), []string{from}) {
				wrong(c, "only %q, want %s alone: the rest is not synced", only(c), from)
			}
			if _, err := os.Stat(filepath.Join(root, c.text("context"), ".dockerignore")); err == nil {
				wrong(c, "context %s: has a .dockerignore, which is made for the release image", c.text("context"))
			}
			for _, want := range []string{
				fmt.Sprintf("COPY --chown=%d:%[1]d %s %s\n", user, path.Base(from), to),
				fmt.Sprintf("RUN mkdir %s && chown %d:%[2]d %[1]s\n", path.Dir(to), user), // tar removes the old file first
				fmt.Sprintf("USER %d:%[1]d\n", user),
				fmt.Sprintf("ENTRYPOINT [%q]\n", strings.Join(c.words("entrypoint"), " ")),
			} {
				if !strings.Contains(dockerfile, want) {
					wrong(c, "%s has no line %q", c.text("dockerfile"), strings.TrimSpace(want))
				}
			}
			if !slices.Equal(c.words("entrypoint"), []string{to}) {
				wrong(c, "entrypoint %q, want what is synced, %s", c.words("entrypoint"), to)
			}
		}
		if _, ok := c.arg["entrypoint"].([]any); !ok {
			wrong(c, "entrypoint: want a list; a string is run by a shell, which drops the pod's args")
		}
		if path.Dir(c.text("restart_file")) != "/tmp" {
			wrong(c, "restart_file %s: only /tmp can be written by user %d", c.text("restart_file"), user)
		}
	}
	for name, w := range s.workloads() {
		for _, container := range w.Spec.Containers {
			if security := container.SecurityContext; !writable[name] && (security == nil || security.ReadOnlyRootFilesystem == nil || !*security.ReadOnlyRootFilesystem) {
				problems = append(problems, name+": its root is made writable for nothing")
			}
		}
	}
	return problems
}

var buttons = []string{"all-scenarios", "crash-all-nodes", "crash-node", "crash-server", "delete-server", "load", "scenario"}

func checkButtons(s *session) (problems []string) {
	resources, seen := s.resources(), map[string]bool{}
	for _, c := range s.all("cmd_button") {
		name, resource := c.text("name"), c.text("resource")
		if seen[name] {
			problems = append(problems, name+": two buttons of that name")
		}
		seen[name] = true
		if c.text("location") == "nav" {
			if resource != "" || c.text("icon_name") == "" {
				problems = append(problems, name+": in the navigation bar, so an icon and no resource")
			}
		} else if _, ok := resources[resource]; !ok {
			problems = append(problems, fmt.Sprintf("button %s: %s: no such resource", name, resource))
		}
		for _, input := range c.list("inputs") {
			if choices, ok := input.(map[string]any)["choices"].([]any); ok {
				problems = append(problems, checkChoices(name, choices)...)
			}
		}
	}
	if names := slices.Sorted(maps.Keys(seen)); !slices.Equal(names, buttons) {
		problems = append(problems, fmt.Sprintf("buttons %q, want %q", names, buttons))
	}
	for _, c := range s.all("local_resource") { // what plays scenarios or shows pods is a button, too
		if words := strings.Join(c.words("cmd"), " "); strings.Contains(words, "lab run") && (c.arg["auto_init"] != false || c.arg["trigger_mode"] != "manual") {
			problems = append(problems, c.text("name")+": starts by itself, also in tilt ci")
		}
	}
	return problems
}

func checkChoices(name string, choices []any) (problems []string) {
	known := map[any]bool{}
	for _, s := range scenario.All() {
		known[s.Name] = true
	}
	for _, c := range choices {
		if !known[c] {
			problems = append(problems, fmt.Sprintf("button %s: scenario %v: unknown", name, c))
		}
		delete(known, c)
	}
	for _, missing := range slices.Collect(maps.Keys(known)) {
		problems = append(problems, fmt.Sprintf("button %s: scenario %v is not offered", name, missing))
	}
	return problems
}

// checkCommands runs what the buttons and resources run, with programs in PATH
// that write down how they were called and do nothing.
func checkCommands(s *session) (problems []string) {
	run := func(name string, destructive bool, argv []string, inputs []any, env any) {
		log, err := s.rehearse(argv, inputs, env)
		if err != nil {
			problems = append(problems, fmt.Sprintf("%s: %v", name, err))
			return
		}
		for _, line := range log {
			problem := s.checkCall(line)
			if !destructive && regexp.MustCompile(`^kubectl \S+ (delete|exec) `).MatchString(line) {
				problem = "destroys something, so requires_confirmation"
			}
			if problem != "" {
				problems = append(problems, fmt.Sprintf("%s: %s: %s", name, line, problem))
			}
		}
	}
	for _, line := range regexp.MustCompile(`(?m)^#   (.*)$`).FindAllStringSubmatch(s.source, -1) {
		run("first comment", false, strings.Fields(line[1]), nil, nil)
	}
	for _, c := range s.all("local_resource") {
		argv := c.words("cmd")
		if len(argv) == 1 { // a string is a script
			argv = []string{"sh", "-c", argv[0]}
		}
		run("resource "+c.text("name"), false, argv, nil, c.arg["env"])
	}
	for _, c := range s.all("cmd_button") {
		run("button "+c.text("name"), c.yes("requires_confirmation"), c.words("argv"), c.list("inputs"), nil)
	}
	return problems
}

// checkCall looks at one line of a rehearsal: a program, and what it was given.
func (s *session) checkCall(line string) string {
	words := strings.Fields(line)
	switch words[0] {
	case "docker":
		text, err := os.ReadFile(filepath.Join(root, "k8s", "kind.yaml"))
		var kind struct{ Name string }
		if err == nil {
			err = yaml.Unmarshal(text, &kind)
		}
		if words[1] != kind.Name+"-control-plane" || err != nil {
			return fmt.Sprintf("want the node %s-control-plane (%v)", kind.Name, err)
		}
	case "tilt":
		if _, ok := s.resources()[words[2]]; words[1] == "trigger" && !ok {
			return words[2] + ": no such resource"
		}
	case "lab":
		if i := slices.IndexFunc(words, func(w string) bool { return w == "--namespace="+s.namespace().Metadata.Name }); i > 0 {
			return "namespace " + s.namespace().Metadata.Name + " is Tilt's own"
		}
	case "kubectl":
		if want := "--namespace=" + s.namespace().Metadata.Name; words[1] != want {
			return "want " + want
		}
		for _, w := range words {
			if selector, ok := strings.CutPrefix(w, "--selector="); ok && !s.selects(selector) {
				return "no pod has " + selector
			}
		}
		if words[2] == "exec" {
			return s.checkKill(line)
		}
	}
	return ""
}

func (s *session) selects(selector string) bool {
	label, value, _ := strings.Cut(selector, "=")
	for _, w := range s.workloads() {
		if w.Labels[label] == value {
			return true
		}
	}
	return false
}

// checkKill looks for a process that the pod has.
func (s *session) checkKill(line string) string {
	processes := map[string]string{"pod/rabbitmq": "beam.smp"} // the Erlang VM
	for _, c := range s.all("docker_build_with_restart") {
		processes["pod/"+path.Base(c.text("ref"))] = path.Base(c.words("entrypoint")[0])
	}
	m := regexp.MustCompile(`exec (\S+) -- sh -c kill -9 \$\(grep -lx (\S+) /proc/`).FindStringSubmatch(line)
	if m == nil || processes[m[1]] != m[2] {
		return fmt.Sprintf("kills none of %v", processes)
	}
	return ""
}
