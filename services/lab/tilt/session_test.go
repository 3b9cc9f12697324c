// Package tilt tests the Tiltfile without Tilt: its built-ins are recorded, and
// what would be seen is compared with the chart, the services and the lab.
package tilt

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"go.starlark.net/lib/json"
	"go.starlark.net/starlark"
	"go.starlark.net/starlarkstruct"
	"go.starlark.net/syntax"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

const root = "../../.."

// What the Tiltfile may use of Tilt's API, as https://docs.tilt.dev/api.html and
// the extensions' READMEs have it; "?" marks what may be left out. Any other name
// or argument is an error, as it is in Tilt.
var builtins = map[string]string{
	"allow_k8s_contexts": "contexts",
	"blob":               "contents",
	"ci_settings":        "k8s_grace_period? timeout? readiness_timeout?",
	"decode_json":        "json",
	"decode_yaml_stream": "yaml",
	"encode_yaml":        "obj",
	"filter_yaml":        "yaml labels? name? namespace? kind? api_version?",
	"helm":               "pathToChartDir name? namespace? values? set? kube_version? skip_crds?",
	"k8s_context":        "",
	"k8s_resource":       "workload? new_name? port_forwards? extra_pod_selectors? trigger_mode? resource_deps? objects? auto_init? pod_readiness? links? labels? discovery_strategy?",
	"k8s_yaml":           "yaml allow_duplicates?",
	"local":              "command quiet? command_bat? echo_off? env? dir? stdin?",
	"local_resource":     "name cmd deps? trigger_mode? resource_deps? ignore? auto_init? serve_cmd? cmd_bat? serve_cmd_bat? allow_parallel? links? labels? env? serve_env? readiness_probe? dir? serve_dir?",
	"port_forward":       "local_port container_port? name? link_path? host?",
	"secret_settings":    "disable_scrub?",
	"sync":               "local_path remote_path",
	"watch_file":         "file_path",
}

var modules = map[string]map[string]string{
	"config": {
		"define_string":      "name args? usage?",
		"define_string_list": "name args? usage?",
		"parse":              "",
	},
	"os": {
		"getcwd": "",
		"getenv": "key default?",
		"putenv": "key value",
	},
}

var extensions = map[string]map[string]string{
	"ext://restart_process": {
		"docker_build_with_restart": "ref context entrypoint live_update base_suffix? restart_file? trigger? exit_policy? " +
			"build_args? dockerfile? match_in_env_vars? ignore? only? ssh? network? secret? extra_tag? container_args? cache_from? pull? platform? extra_hosts?",
	},
	"ext://uibutton": {
		"cmd_button":   "name resource? argv? text? location? icon_name? icon_svg? inputs? disabled? requires_confirmation?",
		"choice_input": "name label? choices?",
		"text_input":   "name label? default? placeholder?",
	},
}

// blob is YAML or output; Tilt takes a plain string for the name of a file.
type blob string

func (b blob) String() string       { return string(b) }
func (blob) Type() string           { return "blob" }
func (blob) Freeze()                {}
func (b blob) Truth() starlark.Bool { return b != "" }
func (blob) Hash() (uint32, error)  { return 0, errors.New("unhashable type: blob") }

// call is one of a built-in, its arguments by name.
type call struct {
	fn  string
	arg map[string]any
}

func (c call) text(arg string) string { s, _ := c.arg[arg].(string); return s }
func (c call) yes(arg string) bool    { b, _ := c.arg[arg].(bool); return b }
func (c call) list(arg string) []any  { l, _ := c.arg[arg].([]any); return l }

// words is a list of strings, or one string.
func (c call) words(arg string) []string {
	if s, ok := c.arg[arg].(string); ok {
		return []string{s}
	}
	var words []string
	for _, w := range c.list(arg) {
		words = append(words, fmt.Sprint(w))
	}
	return words
}

// object is what this test reads of a Kubernetes object.
type object struct {
	Kind     string
	Metadata metav1.ObjectMeta
	Spec     struct{ Template corev1.PodTemplateSpec }
}

// session is one evaluation.
type session struct {
	t        *testing.T
	context  string         // of the kubeconfig
	settings map[string]any // behind `tilt up --`
	env      map[string]string
	source   string
	calls    []call
	objects  []object // of every k8s_yaml
}

func (s *session) all(fn string) (calls []call) {
	for _, c := range s.calls {
		if c.fn == fn {
			calls = append(calls, c)
		}
	}
	return calls
}

// evaluate is `tilt up -- settings` without Tilt.
func evaluate(t *testing.T, source, context string, settings map[string]any) (*session, error) {
	t.Helper()
	s := &session{t: t, context: context, settings: settings, source: source, env: map[string]string{"PATH": os.Getenv("PATH")}}
	thread := &starlark.Thread{
		Name: "Tiltfile",
		Load: func(_ *starlark.Thread, module string) (starlark.StringDict, error) {
			names, ok := extensions[module]
			if !ok {
				return nil, fmt.Errorf("no extension of that name is known here")
			}
			loaded := s.names(names)
			if module == "ext://uibutton" {
				loaded["location"] = starlarkstruct.FromStringDict(starlarkstruct.Default, starlark.StringDict{"RESOURCE": starlark.String("resource"), "NAV": starlark.String("nav")})
			}
			return loaded, nil
		},
		Print: func(*starlark.Thread, string) {},
	}
	predeclared := s.names(builtins)
	for name, members := range modules {
		predeclared[name] = &starlarkstruct.Module{Name: name, Members: s.names(members)}
	}
	predeclared["TRIGGER_MODE_MANUAL"] = starlark.String("manual")
	_, err := starlark.ExecFileOptions(&syntax.FileOptions{TopLevelControl: true, GlobalReassign: true}, thread, "Tiltfile", source, predeclared)
	return s, err
}

func (s *session) names(signatures map[string]string) starlark.StringDict {
	names := starlark.StringDict{}
	for name, signature := range signatures {
		names[name] = starlark.NewBuiltin(name, func(thread *starlark.Thread, _ *starlark.Builtin, args starlark.Tuple, kwargs []starlark.Tuple) (starlark.Value, error) {
			parameters := strings.Fields(signature)
			values := make([]starlark.Value, len(parameters))
			var pairs []any
			for i, p := range parameters {
				pairs = append(pairs, p, &values[i])
			}
			if err := starlark.UnpackArgs(name, args, kwargs, pairs...); err != nil {
				return nil, err
			}
			c := call{name, map[string]any{}}
			for i, p := range parameters {
				if values[i] != nil {
					c.arg[strings.TrimSuffix(p, "?")] = toGo(values[i])
				}
			}
			s.calls = append(s.calls, c)
			result, err := s.answer(thread, c)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			return result, nil
		})
	}
	return names
}

func toGo(v starlark.Value) any {
	switch v := v.(type) {
	case starlark.String:
		return string(v)
	case starlark.Bool:
		return bool(v)
	case starlark.Int:
		i, _ := v.Int64()
		return int(i)
	case *starlark.Dict:
		m := map[string]any{}
		for _, item := range v.Items() {
			m[fmt.Sprint(toGo(item[0]))] = toGo(item[1])
		}
		return m
	case starlark.Iterable: // lists and tuples
		list := []any{}
		for e := range starlark.Elements(v) {
			list = append(list, toGo(e))
		}
		return list
	case *starlarkstruct.Struct: // a call whose result is an argument of another
		fields := map[string]any{}
		for _, name := range v.AttrNames() {
			field, _ := v.Attr(name)
			fields[name] = toGo(field)
		}
		return fields
	}
	return v // blob, None
}

// fromGo goes through JSON, as Tilt does.
func fromGo(thread *starlark.Thread, v any) (starlark.Value, error) {
	text, err := yaml.Marshal(v)
	if err == nil {
		text, err = yaml.YAMLToJSON(text)
	}
	if err != nil {
		return nil, err
	}
	return starlark.Call(thread, json.Module.Members["decode"], starlark.Tuple{starlark.String(text)}, nil)
}

// answer does what Tilt would do at once.
func (s *session) answer(thread *starlark.Thread, c call) (starlark.Value, error) {
	switch c.fn {
	case "k8s_context":
		return starlark.String(s.context), nil
	case "parse":
		known := map[string]any{}
		for _, c := range s.calls {
			if strings.HasPrefix(c.fn, "define_") {
				if v, ok := s.settings[c.text("name")]; ok {
					known[c.text("name")] = v
				}
			}
		}
		if len(known) != len(s.settings) {
			return nil, fmt.Errorf("settings %v: only %v are defined", s.settings, known)
		}
		return fromGo(thread, known)
	case "getcwd":
		dir, err := filepath.Abs(root)
		return starlark.String(dir), err
	case "getenv":
		return starlark.String(s.env[c.text("key")]), nil
	case "putenv":
		s.env[c.text("key")] = c.text("value")
	case "local":
		out, err := s.run(c.words("command"), c.text("dir"), c.arg["env"])
		return blob(out), err
	case "decode_json":
		return starlark.Call(thread, json.Module.Members["decode"], starlark.Tuple{starlark.String(fmt.Sprint(c.arg["json"]))}, nil)
	case "blob":
		return blob(c.text("contents")), nil
	case "encode_yaml":
		text, err := yaml.Marshal(c.arg["obj"])
		return blob(text), err
	case "decode_yaml_stream":
		documents, err := decode(fmt.Sprint(c.arg["yaml"]))
		if err != nil {
			return nil, err
		}
		return fromGo(thread, documents)
	case "filter_yaml":
		return filter(c)
	case "helm":
		text, err := s.helm(c)
		return blob(text), err
	case "k8s_yaml":
		text, ok := c.arg["yaml"].(blob)
		if !ok {
			return nil, fmt.Errorf("a string is the name of a file; want a blob")
		}
		for _, document := range split(string(text)) {
			var o object
			if err := yaml.Unmarshal([]byte(document), &o); err != nil {
				return nil, err
			}
			s.objects = append(s.objects, o)
		}
	case "port_forward", "sync", "choice_input", "text_input":
		fields := starlark.StringDict{}
		for name, v := range c.arg {
			field, err := fromGo(thread, v)
			if err != nil {
				return nil, err
			}
			fields[name] = field
		}
		return starlarkstruct.FromStringDict(starlark.String(c.fn), fields), nil
	}
	return starlark.None, nil
}

func split(text string) (documents []string) {
	for d := range strings.SplitSeq("\n"+text, "\n---\n") {
		if strings.TrimSpace(d) != "" {
			documents = append(documents, d)
		}
	}
	return documents
}

func decode(text string) (documents []map[string]any, err error) {
	for _, d := range split(text) {
		var m map[string]any
		if err := yaml.UnmarshalStrict([]byte(d), &m); err != nil {
			return nil, fmt.Errorf("%w in\n%s", err, d)
		}
		documents = append(documents, m)
	}
	return documents, nil
}

func encode(documents []map[string]any) blob {
	var texts []string
	for _, d := range documents {
		text, _ := yaml.Marshal(d) // it was decoded from YAML
		texts = append(texts, string(text))
	}
	return blob(strings.Join(texts, "\n---\n"))
}

func filter(c call) (starlark.Value, error) {
	for name := range c.arg {
		if name != "yaml" && name != "name" {
			return nil, fmt.Errorf("%s: not known to this test", name)
		}
	}
	name, err := regexp.Compile("(?i)" + c.text("name"))
	if err != nil {
		return nil, err
	}
	documents, err := decode(fmt.Sprint(c.arg["yaml"]))
	if err != nil {
		return nil, err
	}
	var matching, rest []map[string]any
	for _, d := range documents {
		if name.MatchString(fmt.Sprint(d["metadata"].(map[string]any)["name"])) {
			matching = append(matching, d)
		} else {
			rest = append(rest, d)
		}
	}
	return starlark.Tuple{encode(matching), encode(rest)}, nil
}

// helm does what Tilt 0.35 does: it calls the helm in PATH by its name, leaves
// out what stands in a folder called tests, and sets the namespace.
func (s *session) helm(c call) (string, error) {
	version, err := s.run([]string{"helm", "version", "--client", "--short"}, "", nil)
	if err != nil || !strings.HasPrefix(version, "v3.") {
		return "", fmt.Errorf("version %q: %w", version, err)
	}
	args := []string{"helm", "template", c.text("name"), c.text("pathToChartDir"), "--include-crds", "--namespace", c.text("namespace")}
	if version := c.text("kube_version"); version != "" {
		args = append(args, "--kube-version", version)
	}
	for _, v := range c.words("values") {
		args = append(args, "--values", v)
	}
	for _, v := range c.words("set") {
		args = append(args, "--set", v)
	}
	text, err := s.run(args, "", nil)
	if err != nil {
		return "", err
	}
	var kept []string
	for d := range strings.SplitSeq(text, "---\n") {
		if !regexp.MustCompile(`(?m)^# Source: .*/tests/`).MatchString(d) {
			kept = append(kept, d)
		}
	}
	documents, err := decode(strings.Join(kept, "\n---\n"))
	for _, d := range documents {
		if metadata := d["metadata"].(map[string]any); metadata["namespace"] == nil {
			metadata["namespace"] = c.text("namespace")
		}
	}
	return string(encode(documents)), err
}

// What commands printed: at load time they change nothing that matters here.
var printed sync.Map

// run runs a command as Tilt does, unless it has been run before. Its program
// is looked for in the PATH that the Tiltfile has set.
func (s *session) run(argv []string, dir string, env any) (string, error) {
	key := fmt.Sprint(argv, dir, env, s.env)
	if out, ok := printed.Load(key); ok {
		return out.(string), nil
	}
	program, err := find(argv[0], s.env["PATH"])
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(s.t.Context(), program, argv[1:]...)
	cmd.Dir = filepath.Join(root, dir)
	cmd.Env = append(os.Environ(), "GOWORK=", "PATH="+s.env["PATH"]) // the tests themselves may run without the workspace
	more, _ := env.(map[string]any)
	for name, value := range more {
		cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%v", name, value))
	}
	var said strings.Builder
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(argv, " "), err, said.String())
	}
	printed.Store(key, string(out))
	return string(out), nil
}

func find(program, path string) (string, error) {
	for _, dir := range filepath.SplitList(path) {
		if found := filepath.Join(dir, program); filepath.IsAbs(found) {
			if info, err := os.Stat(found); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return found, nil
			}
		}
	}
	return "", fmt.Errorf("%s: not in PATH", program)
}
