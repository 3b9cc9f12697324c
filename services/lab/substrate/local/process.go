package local

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"warren.example/lab/substrate"
	"warren.example/lab/substrate/process"
)

const (
	restartAfter = 300 * time.Millisecond
	drainTime    = 3 * time.Second // that a closing room leaves its services
)

// Process is one service across its lives; see substrate.Process.
type Process struct {
	room    *Room
	service substrate.Service
	program string
	env     []string
	admin   string // host:port, the same in every life
	http    string // of the auditor's own API
	tail    process.Tail
	log     logFile // what tail copies to

	mu       sync.Mutex
	life     *life // the current or last one
	ending   bool  // no further life
	restarts int
	crashes  int
	exit     substrate.Exit
	ended    chan struct{}
}

// life is one child process of a service.
type life struct {
	*child
	stdout *process.Splitter
	noted  chan struct{} // closed when supervise has counted its end
}

func newProcess(r *Room, svc substrate.Service, program string) (*Process, error) {
	user, err := process.User(svc.Kind)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", svc.Name, err)
	}
	p := &Process{room: r, service: svc, program: program, ended: make(chan struct{})}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	p.admin = fmt.Sprintf("127.0.0.1:%d", port)
	settings := process.Settings(r.vhost, svc.Name)
	settings["AMQP_URL"], settings["ADMIN_ADDR"] = r.URL(user), p.admin
	if svc.Kind != substrate.Client {
		// The servers of a room share theirs: idempotency keys and the memory.
		settings["DATABASE"] = filepath.Join(r.dir, string(svc.Kind)+".db")
	}
	if svc.Kind == substrate.DeadLetterAuditor {
		port, err := FreePort()
		if err != nil {
			return nil, err
		}
		p.http = fmt.Sprintf("127.0.0.1:%d", port)
		settings["HTTP_ADDR"] = p.http
	}
	maps.Copy(settings, svc.Env)
	p.env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	for name, value := range settings {
		p.env = append(p.env, "WARREN_"+name+"="+value)
	}
	f, err := os.OpenFile(filepath.Join(r.dir, svc.Name+".log"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log file: %w", err)
	}
	p.log = logFile{f}
	p.tail.Copy = p.log
	return p, nil
}

// start begins the first life.
func (p *Process) start() error {
	if err := p.live(); err != nil {
		p.log.Close()
		return err
	}
	go p.supervise()
	return nil
}

// live begins a life.
func (p *Process) live() error {
	cmd := exec.Command(p.program, p.service.Args...)
	cmd.Env, cmd.Dir = p.env, p.room.dir
	stdout := &process.Splitter{Event: p.room.tell}
	cmd.Stdout, cmd.Stderr = stdout, &p.tail
	p.mu.Lock()
	defer p.mu.Unlock()
	c, err := spawn(p.room.s.folder, cmd, syscall.SIGKILL)
	if err != nil {
		return err
	}
	p.life = &life{c, stdout, make(chan struct{})}
	return nil
}

// supervise notes how each life ends and begins the next, until there is none.
func (p *Process) supervise() {
	defer close(p.ended)
	defer p.log.Close()
	for {
		l := p.current()
		<-l.done
		p.mu.Lock()
		p.exit = exitOf(l)
		if p.exit.Killed {
			p.crashes++
		}
		again := p.service.Restart && !p.ending
		p.mu.Unlock()
		close(l.noted)
		if !again {
			return
		}
		time.Sleep(restartAfter) // as a supervisor's back-off
		if p.isEnding() {
			return
		}
		if err := p.live(); err != nil {
			fmt.Fprintln(&p.tail, err)
			return
		}
		p.mu.Lock()
		p.restarts++
		ending := p.ending
		p.mu.Unlock()
		if ending { // told so while it started
			_ = p.current().signal(syscall.SIGTERM)
		}
	}
}

func (p *Process) isEnding() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ending
}

func exitOf(l *life) substrate.Exit {
	state := l.cmd.ProcessState
	status, _ := state.Sys().(syscall.WaitStatus)
	const killedInside = 137 // a service that could not SIGKILL itself
	return substrate.Exit{
		Code:   state.ExitCode(),
		Killed: status.Signaled() && status.Signal() == syscall.SIGKILL || state.ExitCode() == killedInside,
		Stdout: l.stdout.Finish(),
	}
}

func (p *Process) current() *life {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.life
}

// Name is the instance's.
func (p *Process) Name() string { return p.service.Name }

// HTTPAddr is host:port of the auditor's own API, else empty.
func (p *Process) HTTPAddr() string { return p.http }

// WaitReady polls /readyz, through restarts.
func (p *Process) WaitReady(ctx context.Context) error {
	return process.WaitReady(ctx, p, 50*time.Millisecond, p.ended, p.tail.Last)
}

// Admin asks the admin port.
func (p *Process) Admin(ctx context.Context, method, path string, body any) ([]byte, error) {
	return process.Ask(ctx, askClient, p.Name(), method, p.admin, path, "", body)
}

// HTTP asks the service's own API.
func (p *Process) HTTP(ctx context.Context, method, path string, body any) ([]byte, error) {
	if p.http == "" {
		return nil, fmt.Errorf("%s %s: %s has no API of its own", method, path, p.Name())
	}
	return process.Ask(ctx, askClient, p.Name(), method, p.http, path, "", body)
}

// Command runs a command of the service's program; what it says goes to the log.
func (p *Process) Command(ctx context.Context, stdin io.Reader, args ...string) (substrate.Exit, error) {
	if p.http == "" {
		return substrate.Exit{}, fmt.Errorf("%s: %s has no API of its own", args[0], p.Name())
	}
	cmd := exec.CommandContext(ctx, p.program, append(slices.Clone(args), "--url", "http://"+p.http)...)
	cmd.Env, cmd.Dir = p.env, p.room.dir
	var out bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &out, &p.tail
	if err := cmd.Run(); err != nil && (ctx.Err() != nil || !errors.As(err, new(*exec.ExitError))) {
		return substrate.Exit{}, fmt.Errorf("%s of %s: %w", args[0], p.Name(), err)
	}
	return substrate.Exit{Code: cmd.ProcessState.ExitCode(), Stdout: out.Bytes()}, nil
}

// Lives change under a kept-alive connection, hence a fresh one per request.
var askClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// Crash ends this life by SIGKILL. When it returns, the process is gone and
// every event line that it wrote has been passed on.
func (p *Process) Crash(ctx context.Context) error {
	l := p.current()
	if err := l.signal(syscall.SIGKILL); err != nil {
		return err
	}
	select {
	case <-l.noted:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("crash %s: %w", p.Name(), ctx.Err())
	}
}

// Terminate asks the process to end, for good, and does not wait.
func (p *Process) Terminate(context.Context) error {
	p.mu.Lock()
	p.ending = true
	p.mu.Unlock()
	return p.current().signal(syscall.SIGTERM)
}

// Pause stops the process where it is.
func (p *Process) Pause(ctx context.Context) error {
	l := p.current()
	if err := l.signal(syscall.SIGSTOP); err != nil {
		return err
	}
	return stopped(ctx, l.pid())
}

// Resume lets it go on.
func (p *Process) Resume(context.Context) error { return p.current().signal(syscall.SIGCONT) }

// Wait returns when the last life has ended.
func (p *Process) Wait(ctx context.Context) (substrate.Exit, error) {
	select {
	case <-p.ended:
		return p.exit, nil
	case <-ctx.Done():
		return substrate.Exit{}, fmt.Errorf("wait for %s to end: %w", p.Name(), ctx.Err())
	}
}

// over says whether the last life has ended.
func (p *Process) over() bool {
	select {
	case <-p.ended:
		return true
	default:
		return false
	}
}

// Restarts counts the lives after the first.
func (p *Process) Restarts() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.restarts
}

// Crashes counts the lives that ended by SIGKILL.
func (p *Process) Crashes() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.crashes
}

// Tail is the end of the log, over all lives.
func (p *Process) Tail() []string { return p.tail.Lines() }

// close ends the process for good.
func (p *Process) close() {
	p.mu.Lock()
	p.ending = true
	l := p.life
	p.mu.Unlock()
	l.stop(drainTime)
	select {
	case <-p.ended:
	case <-time.After(restartAfter + time.Second):
		p.current().kill() // it was between two lives
		<-p.ended
	}
}

// logFile is a file that may be written to after it was closed: a child's last
// words can come later.
type logFile struct{ *os.File }

func (f logFile) Write(b []byte) (int, error) {
	if _, err := f.File.Write(b); err != nil && !errors.Is(err, os.ErrClosed) {
		return 0, err
	}
	return len(b), nil
}
