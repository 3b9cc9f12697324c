package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"warren.example/lab/substrate"
	"warren.example/messaging/contract"
	"warren.example/messaging/event"
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
	tail    *tail

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
	stdout *splitter
	noted  chan struct{} // closed when supervise has counted its end
}

// users are who the services are at the broker.
var users = map[substrate.Kind]string{
	substrate.CalculatorServer:  contract.UserServer,
	substrate.Client:            contract.UserClient,
	substrate.DeadLetterAuditor: contract.UserAuditor,
}

func newProcess(r *Room, svc substrate.Service, program string) (*Process, error) {
	user, ok := users[svc.Kind]
	if !ok {
		return nil, fmt.Errorf("start %s: no service of kind %q", svc.Name, svc.Kind)
	}
	p := &Process{room: r, service: svc, program: program, ended: make(chan struct{})}
	port, err := FreePort()
	if err != nil {
		return nil, err
	}
	p.admin = fmt.Sprintf("127.0.0.1:%d", port)
	settings := map[string]string{
		"AMQP_URL":   r.URL(user),
		"EVENTS":     "stdout",
		"RUN":        r.vhost,
		"INSTANCE":   svc.Name,
		"ADMIN_ADDR": p.admin,
		"FAULTS":     "true",
		"LOG_LEVEL":  "info",
	}
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
	for name, value := range svc.Env {
		settings[name] = value
	}
	p.env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + os.Getenv("HOME")}
	for name, value := range settings {
		p.env = append(p.env, "WARREN_"+name+"="+value)
	}
	p.tail, err = newTail(filepath.Join(r.dir, svc.Name+".log"))
	return p, err
}

// start begins the first life.
func (p *Process) start() error {
	if err := p.live(); err != nil {
		p.tail.close()
		return err
	}
	go p.supervise()
	return nil
}

// live begins a life.
func (p *Process) live() error {
	cmd := exec.Command(p.program, p.service.Args...)
	cmd.Env, cmd.Dir = p.env, p.room.dir
	stdout := &splitter{event: p.room.tell}
	cmd.Stdout, cmd.Stderr = stdout, p.tail
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
	defer p.tail.close()
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
			fmt.Fprintln(p.tail, err)
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
		Stdout: l.stdout.finish(),
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
	for {
		_, err := p.Admin(ctx, http.MethodGet, "/readyz", nil)
		if err == nil {
			return nil
		}
		select {
		case <-p.ended:
			return fmt.Errorf("%s ended (status %d) before it was ready; last log line: %s", p.Name(), p.exit.Code, p.tail.last())
		case <-ctx.Done():
			return fmt.Errorf("wait for %s to be ready: %w; last answer: %v; last log line: %s", p.Name(), ctx.Err(), err, p.tail.last())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Admin asks the admin port.
func (p *Process) Admin(ctx context.Context, method, path string, body any) ([]byte, error) {
	return p.ask(ctx, p.admin, method, path, body)
}

// HTTP asks the service's own API.
func (p *Process) HTTP(ctx context.Context, method, path string, body any) ([]byte, error) {
	if p.http == "" {
		return nil, fmt.Errorf("%s %s: %s has no API of its own", method, path, p.Name())
	}
	return p.ask(ctx, p.http, method, path, body)
}

// Lives change under a kept-alive connection, hence a fresh one per request.
var askClient = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

func (p *Process) ask(ctx context.Context, addr, method, path string, body any) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var payload io.Reader
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return nil, fmt.Errorf("%s %s of %s: %w", method, path, p.Name(), err)
		}
		payload = bytes.NewReader(b)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+addr+path, payload)
	if err != nil {
		return nil, fmt.Errorf("%s %s of %s: %w", method, path, p.Name(), err)
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := askClient.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s %s of %s: %w", method, path, p.Name(), err)
	}
	defer res.Body.Close()
	answer, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode/100 != 2 {
		err = fmt.Errorf("%s: %s", res.Status, bytes.TrimSpace(answer))
	}
	if err != nil {
		return answer, fmt.Errorf("%s %s of %s: %w", method, path, p.Name(), err)
	}
	return answer, nil
}

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
func (p *Process) Pause(context.Context) error { return p.current().signal(syscall.SIGSTOP) }

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
func (p *Process) Tail() []string { return p.tail.lines() }

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

// splitter takes the standard output of one life: event lines are passed on as
// they come, the rest is kept.
type splitter struct {
	event func(event.Line)
	part  []byte // of a line that has not ended
	rest  bytes.Buffer
}

func (s *splitter) Write(b []byte) (int, error) {
	s.part = append(s.part, b...)
	for {
		i := bytes.IndexByte(s.part, '\n')
		if i < 0 {
			return len(b), nil
		}
		s.line(s.part[:i+1])
		s.part = s.part[i+1:]
	}
}

func (s *splitter) line(line []byte) {
	var l event.Line
	if bytes.HasPrefix(line, []byte("{")) && json.Unmarshal(line, &l) == nil && l.Event != "" && l.Seq > 0 {
		s.event(l)
		return
	}
	s.rest.Write(line)
}

// finish is called after the last Write.
func (s *splitter) finish() []byte {
	s.rest.Write(s.part)
	s.part = nil
	return s.rest.Bytes()
}

// tail keeps the last lines of a log and writes all of them to a file.
type tail struct {
	mu   sync.Mutex
	file *os.File
	ring []string
	part []byte
}

const tailLines = 200

func newTail(path string) (*tail, error) {
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("log file: %w", err)
	}
	return &tail{file: f}, nil
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.part = append(t.part, b...)
	for {
		i := bytes.IndexByte(t.part, '\n')
		if i < 0 {
			break
		}
		t.ring = append(t.ring, string(t.part[:i]))
		t.part = t.part[i+1:]
	}
	if extra := len(t.ring) - tailLines; extra > 0 {
		t.ring = slices.Delete(t.ring, 0, extra)
	}
	if _, err := t.file.Write(b); err != nil && !errors.Is(err, os.ErrClosed) {
		return 0, err
	}
	return len(b), nil
}

func (t *tail) lines() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := slices.Clone(t.ring)
	if len(t.part) > 0 {
		all = append(all, string(t.part))
	}
	return all
}

func (t *tail) last() string {
	all := t.lines()
	if len(all) == 0 {
		return strconv.Quote("")
	}
	return all[len(all)-1]
}

func (t *tail) close() { _ = t.file.Close() }
