package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"warren.example/lab/substrate/vhost"
	"warren.example/messaging/topology"
)

// launcher is how a node of ours runs: as a process or as a container. Both
// run it in the foreground, so that the child's end is the node's end, and
// both see the node's folder under the same path.
type launcher interface {
	String() string
	// command runs the broker's program with the node's environment. The child
	// ends with death when the lab dies.
	command(n *node, program string, args ...string) (cmd *exec.Cmd, death syscall.Signal)
	// ctl runs one of the broker's tools beside a running node.
	ctl(ctx context.Context, n *node, program string, args ...string) *exec.Cmd
	// signal reaches the Erlang VM itself.
	signal(n *node, s syscall.Signal) error
	// pid is the VM's on this machine, 0 if it cannot be seen.
	pid(n *node) int
}

// processes runs the installed rabbitmq-server.
type processes struct{ bin string } // the folder of its scripts

// FindServer finds an installed rabbitmq-server that is new enough, and
// returns the folder of its scripts and its version. Debian's commands on the
// PATH are wrappers that insist on root and on the system's own data folder;
// the scripts behind them do not.
func FindServer() (dir string, v topology.Version, err error) {
	candidates := []string{"/usr/lib/rabbitmq/bin"}
	if path, err := exec.LookPath("rabbitmq-server"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			candidates = append([]string{filepath.Dir(real)}, candidates...)
		}
	}
	err = errors.New("no rabbitmq-server on the PATH or in /usr/lib/rabbitmq/bin")
	for _, dir := range candidates {
		info, missing := os.Stat(filepath.Join(dir, "rabbitmq-server"))
		if missing != nil || info.Mode()&0o111 == 0 {
			continue
		}
		v, known := installedVersion(dir)
		if old := vhost.CheckVersion(v); known && old != nil {
			err = fmt.Errorf("rabbitmq-server in %s: %w", dir, old)
			continue
		}
		return dir, v, nil
	}
	return "", topology.Version{}, err
}

// installedVersion reads the version off the folder that RabbitMQ's own
// packages name after it, beside or above the scripts. A broker that is
// installed otherwise tells it when it runs.
func installedVersion(scripts string) (topology.Version, bool) {
	const prefix = "rabbitmq_server-"
	parent := filepath.Dir(scripts)
	names, _ := filepath.Glob(filepath.Join(parent, "lib", prefix+"*"))
	for _, name := range append(names, parent) {
		if text, ok := strings.CutPrefix(filepath.Base(name), prefix); ok {
			if v, err := topology.ParseVersion(text); err == nil {
				return v, true
			}
		}
	}
	return topology.Version{}, false
}

func (p processes) String() string { return "rabbitmq-server in " + p.bin }

func (p processes) command(n *node, program string, args ...string) (*exec.Cmd, syscall.Signal) {
	cmd := exec.Command(p.path(program), args...)
	cmd.Env, cmd.Dir = n.env(), n.dir
	return cmd, syscall.SIGKILL
}

func (p processes) ctl(ctx context.Context, n *node, program string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, p.path(program), args...)
	cmd.Env, cmd.Dir = n.env(), n.dir
	return cmd
}

// path: epmd is Erlang's and on the PATH, the rest is RabbitMQ's.
func (p processes) path(program string) string {
	if program == "epmd" {
		return program
	}
	return filepath.Join(p.bin, program)
}

// The script, erl and its helpers all exec, so the child is beam.smp itself.
func (p processes) signal(n *node, s syscall.Signal) error { return n.child.signal(s) }
func (p processes) pid(n *node) int                        { return n.child.pid() }

// containers runs an image on the host's network.
type containers struct{ image, run string } // run makes names unique

// DefaultImages are looked for on the Docker engine in this order.
var DefaultImages = []string{"rabbitmq:4-management-airgap", "rabbitmq:4-management"}

// FindEngine returns the version of a Docker engine that answers.
func FindEngine(ctx context.Context) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, "docker", "version", "--format", "{{.Server.Version}}").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("no Docker engine answers: %s", oneLine(string(out), err))
	}
	return strings.TrimSpace(string(out)), nil
}

// findImage returns the image to run: the wanted one, or else whichever of
// DefaultImages the engine has. One that it has not is pulled.
func findImage(ctx context.Context, o Options) (string, error) {
	if _, err := FindEngine(ctx); err != nil {
		return "", err
	}
	look := DefaultImages
	if o.Image != "" {
		look = []string{o.Image}
	}
	for _, image := range look {
		if HasImage(ctx, image) {
			return image, nil
		}
	}
	image := look[len(look)-1]
	o.Progress("pulling image " + image)
	if out, err := exec.CommandContext(ctx, "docker", "pull", "--quiet", image).CombinedOutput(); err != nil {
		return "", fmt.Errorf("pull image %s: %s", image, oneLine(string(out), err))
	}
	return image, nil
}

// HasImage says whether the Docker engine has an image already.
func HasImage(ctx context.Context, image string) bool {
	return exec.CommandContext(ctx, "docker", "image", "inspect", image).Run() == nil
}

func (c containers) String() string { return "container of " + c.image }

// command: docker run passes the SIGTERM on that it gets when the lab dies,
// and --rm then removes the container. The host's pids keep epmd, which has no
// handler for SIGTERM, from being PID 1, which would ignore it.
func (c containers) command(n *node, program string, args ...string) (*exec.Cmd, syscall.Signal) {
	n.lives++
	n.container = fmt.Sprintf("%s-%s-%d", c.run, n.short, n.lives)
	_ = n.folder.note("containers", n.container)
	run := []string{"run", "--rm", "--name", n.container, "--network", "host", "--pid", "host", "--pull", "never",
		"--user", fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid()), "--volume", n.dir + ":" + n.dir, "--workdir", n.dir}
	if n.home != n.dir {
		run = append(run, "--volume", n.home+":"+n.home)
	}
	for _, e := range n.settings() {
		run = append(run, "--env", e)
	}
	// Without the image's entry point, which changes user and folder.
	run = append(run, "--entrypoint", program, c.image)
	return exec.Command("docker", append(run, args...)...), syscall.SIGTERM
}

func (c containers) ctl(ctx context.Context, n *node, program string, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, "docker", append([]string{"exec", n.container, program}, args...)...)
}

// signal waits for a container that is still being created: its client must not
// be ended before, because the engine would finish it for nobody.
func (c containers) signal(n *node, s syscall.Signal) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	for {
		out, err := exec.CommandContext(ctx, "docker", "kill", "--signal", strconv.Itoa(int(s)), n.container).CombinedOutput()
		if err == nil {
			return nil
		}
		select {
		case <-n.child.done:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("signal %v to container %s: %s", s, n.container, oneLine(string(out), err))
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func (c containers) pid(n *node) int {
	out, err := exec.Command("docker", "inspect", "--format", "{{.State.Pid}}", n.container).Output()
	if err != nil {
		return 0
	}
	pid, _ := strconv.Atoi(strings.TrimSpace(string(out)))
	return pid
}

// oneLine is the last line that a failed command printed, or its error.
func oneLine(out string, err error) string {
	out = strings.TrimSpace(out)
	if out == "" {
		return err.Error()
	}
	return out[strings.LastIndexByte(out, '\n')+1:]
}
