package kubernetes

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"

	"warren.example/lab/substrate/process"
	"warren.example/messaging/event"
)

const (
	adminPort = 9101
	httpPort  = 8080

	crashTime = 30 * time.Second // until the kubelet tells of a death
)

// occupant is one pod in a room, and what it writes.
type occupant struct {
	room *Room
	pod  string
	log  *follower
	sorter

	statusMu sync.Mutex
	last     *corev1.Pod   // as it was last seen
	codes    map[int]int32 // exit codes of lives that have ended
}

// take in a pod that exists. Its lines are told under the name, if there is one:
// left to itself a service makes up another name in each life.
func (r *Room) take(pod, name string) *occupant {
	o := &occupant{room: r, pod: pod, codes: map[int]int32{}}
	o.event = func(l event.Line) {
		l.Instance = cmp.Or(name, l.Instance)
		r.tell(l)
	}
	r.s.pods.watch(pod, o.see)
	o.see(r.s.pods.get(pod))
	o.log = follow(r.ctx, r.s.pods, pod, o.sorter.take, func(life int) { r.miss(pod, life) })
	return o
}

// see notes how lives end.
func (o *occupant) see(pod *corev1.Pod) {
	if pod == nil {
		return
	}
	o.statusMu.Lock()
	defer o.statusMu.Unlock()
	o.last = pod
	for _, life := range []int{restarts(pod) - 1, restarts(pod)} {
		if t := ended(pod, life); t != nil {
			o.codes[life] = t.ExitCode
		}
	}
}

// restarted counts the lives after the first.
func (o *occupant) restarted() int {
	o.statusMu.Lock()
	defer o.statusMu.Unlock()
	return restarts(o.last)
}

// settled returns when it is known how each life but the last one ended.
func (o *occupant) settled(ctx context.Context) error {
	return o.room.s.pods.await(ctx, o.pod, func(p *corev1.Pod) bool { return over(p) || status(p).State.Running != nil && restarts(p) >= o.ends() })
}

func (o *occupant) ends() int {
	o.statusMu.Lock()
	defer o.statusMu.Unlock()
	return len(o.codes)
}

// crashes counts the lives that ended by SIGKILL.
func (o *occupant) crashes() int {
	o.statusMu.Lock()
	defer o.statusMu.Unlock()
	n := 0
	for _, code := range o.codes {
		if code == killedCode {
			n++
		}
	}
	return n
}

// code is the exit code of a life, -1 if it is not known.
func (o *occupant) code(life int) int {
	o.statusMu.Lock()
	defer o.statusMu.Unlock()
	if code, ok := o.codes[life]; ok {
		return int(code)
	}
	return -1
}

// ask sends a request to a port of the pod. Lives change under a kept-alive
// connection, hence a fresh one per request.
func (o *occupant) ask(ctx context.Context, port int, method, path, token string, body any) ([]byte, error) {
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return o.room.s.tunnel.dial(ctx, o.pod, port)
		},
	}}
	return process.Ask(ctx, client, o.pod, method, net.JoinHostPort(o.pod, strconv.Itoa(port)), path, token, body)
}

// crash has the process end itself by SIGKILL. When it returns, the kubelet has
// told of exit code 137 and every line of that life has been passed on.
func (o *occupant) crash(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, crashTime)
	defer cancel()
	life := -1
	err := o.room.s.pods.await(ctx, o.pod, func(p *corev1.Pod) bool {
		life = restarts(p)
		return over(p) || status(p).State.Running != nil
	})
	if err != nil {
		return fmt.Errorf("crash %s: wait for it to run: %w", o.pod, err)
	}
	_, asked := o.ask(ctx, adminPort, http.MethodPost, "/crash", "", nil) // the dead do not answer
	err = o.room.s.pods.await(ctx, o.pod, func(p *corev1.Pod) bool { return over(p) || ended(p, life) != nil || restarts(p) > life })
	if err != nil {
		return fmt.Errorf("crash %s: %w; POST /crash: %w", o.pod, err, asked)
	}
	if code := o.code(life); code != killedCode {
		return fmt.Errorf("crash %s: it ended with exit code %d, want %d, of SIGKILL", o.pod, code, killedCode)
	}
	if err := o.log.await(ctx, life); err != nil {
		return fmt.Errorf("crash %s: read its last lines: %w", o.pod, err)
	}
	return nil
}

// leave gives up the pod, which is gone or going.
func (o *occupant) leave() { o.room.s.pods.unwatch(o.pod) }
