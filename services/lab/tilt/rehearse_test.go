package tilt

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// The programs that a command finds. Go runs the real lab and the real client,
// with one more flag that they refuse after they have accepted all others.
var programs = map[string]string{
	"go": `case "$1 $2" in
"build -o") exit ;;
"run ./services/lab" | "run ./services/client") program=${2##*/} ;;
*) echo "go $*: not expected" >&2 && exit 1 ;;
esac
shift 2
echo "$program $*" >>"$LOG"
case "$program $1" in
"lab run") refuse "--output nonsense" "$@" ;;
"lab up") refuse "--servers 0" "$@" ;;
"lab check") refuse "--timeout -1s" "$@" ;;
"client load") refuse "--confirm nonsense" "$@" ;;
*) echo "$program $1: not expected" >&2 && exit 1 ;;
esac`,
	"docker": `[ "$1" = exec ] || { echo "docker $*: not expected" >&2 && exit 1; }
echo "docker $2" >>"$LOG"
shift 2
PATH=$PATH:$BIN/node exec "$@"`,
	"bin/node/kubectl": `echo "kubectl $*" >>"$LOG"
case "$*" in
*--output=name*) for a; do case $a in --selector=*) echo "pod/${a##*=}" ;; esac done ;; # called as its component
*--output=jsonpath*) echo 0 ;;
esac`,
	"tilt": `echo "tilt $*" >>"$LOG"`,
}

const refuse = `#!/bin/sh
refuse() { # FLAG PROGRAM'S ARGUMENTS
	flag=$1
	shift
	said=$("$BIN/$program" "$@" $flag 2>&1 >/dev/null)
	case $said in
	*";"* | *"
--"*) ;; # more than one complaint
	*"$flag: "*) exit 0 ;;
	esac
	echo "$said" >&2 && exit 1
}
`

func TestMain(m *testing.M) {
	status := m.Run()
	if staged != "" {
		_ = os.RemoveAll(staged)
	}
	os.Exit(status)
}

var staged string

// stage is the folder of those programs.
var stage = sync.OnceValues(func() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "tilt-test-"); err != nil {
		return "", err
	}
	staged = dir
	if err := os.MkdirAll(filepath.Join(dir, "bin", "node"), 0o755); err != nil { // what is on a kind node alone
		return "", err
	}
	for name, script := range programs {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(refuse+script), 0o755); err != nil {
			return "", err
		}
	}
	for _, name := range []string{"sh", "head", "base64"} { // and nothing else: a command needs no more
		real, err := exec.LookPath(name)
		if err != nil {
			return "", err
		}
		if err := os.Symlink(real, filepath.Join(dir, name)); err != nil {
			return "", err
		}
	}
	for _, service := range []string{"lab", "client"} {
		build := exec.Command("go", "build", "-o", filepath.Join(dir, "bin", service), ".")
		build.Dir = filepath.Join(root, "services", service)
		build.Env = append(os.Environ(), "GOWORK=off")
		if out, err := build.CombinedOutput(); err != nil {
			return "", fmt.Errorf("build %s: %w: %s", service, err, out)
		}
	}
	return dir, nil
})

// rehearse runs a command and returns the programs that it called. Inputs are
// the user's, as Tilt gives them: in the environment.
func (s *session) rehearse(argv []string, inputs []any, env any) ([]string, error) {
	key := fmt.Sprintf("rehearse %q %v %v", argv, inputs, env)
	if called, ok := printed.Load(key); ok {
		return called.([]string), nil
	}
	dir, err := stage()
	if err != nil {
		return nil, err
	}
	program, err := find(argv[0], dir)
	if err != nil {
		return nil, err
	}
	log := filepath.Join(s.t.TempDir(), "log")
	cmd := exec.CommandContext(s.t.Context(), program, argv[1:]...)
	cmd.Dir = root
	cmd.Env = []string{"PATH=" + dir, "BIN=" + filepath.Join(dir, "bin"), "LOG=" + log, "HOME=" + s.t.TempDir()}
	for _, i := range inputs {
		input := i.(map[string]any)
		value := input["default"]
		if choices, ok := input["choices"].([]any); ok {
			value = choices[0]
		}
		cmd.Env = append(cmd.Env, fmt.Sprintf("%v=%v", input["name"], value))
	}
	more, _ := env.(map[string]any)
	for name, value := range more {
		cmd.Env = append(cmd.Env, fmt.Sprintf("%s=%v", name, value))
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, strings.TrimSpace(string(out)))
	}
	text, err := os.ReadFile(log)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	called := strings.FieldsFunc(string(text), func(r rune) bool { return r == '\n' })
	printed.Store(key, called)
	return called, nil
}
