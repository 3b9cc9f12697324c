package kubernetes

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"hash/maphash"
	"io"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"warren.example/lab/substrate/process"
	"warren.example/messaging/event"
)

// follower reads the log of a pod's container, of all its lives, from the first
// line to the last.
//
// A stream of the log ends with the container, but it also ends when a
// connection breaks or an API server restarts, and the next one begins at the
// first line again. So every line carries the time at which the container
// runtime took it, and one that was seen is not taken twice. That time also makes
// the first line the life's name: the API learns of a restart later than the
// kubelet, which by then shows another life's log. A life's log is complete when
// a stream of it ended in peace, after a whole line, and the container is known
// to have ended by then. Of a pod's dead lives Kubernetes keeps the last only:
// one that was gone before it could be read is told as missed.
type follower struct {
	pods   *pods
	name   string
	open   func(context.Context, *corev1.PodLogOptions) (io.ReadCloser, error)
	take   func(line []byte) (last bool) // the last is that after which a process writes nothing more
	missed func(life int)

	seed  maphash.Seed
	seen  map[uint64]struct{}
	first uint64 // line of this life, or 0
	last  bool   // line of this life: it was taken

	mu     sync.Mutex
	read   int           // lives that are read to the end
	more   chan struct{} // closed and replaced when read grows
	closed chan struct{} // closed when nothing more will come
}

func follow(ctx context.Context, p *pods, name string, take func(line []byte) (last bool), missed func(life int)) *follower {
	f := newFollower(p, name, take, missed)
	go func() {
		defer close(f.closed)
		f.run(ctx)
	}()
	return f
}

func newFollower(p *pods, name string, take func(line []byte) (last bool), missed func(life int)) *follower {
	return &follower{
		pods: p, name: name, take: take, missed: missed, seed: maphash.MakeSeed(), seen: map[uint64]struct{}{},
		more: make(chan struct{}), closed: make(chan struct{}),
		open: func(ctx context.Context, o *corev1.PodLogOptions) (io.ReadCloser, error) {
			return p.client.CoreV1().Pods(p.namespace).GetLogs(name, o).Stream(ctx)
		},
	}
}

const retryAfter = 250 * time.Millisecond // of a stream that broke

var (
	errOther = errors.New("the log of another life")
	// A kubelet that cannot find a log answers 200 and says so, without a newline.
	errNoEnd = errors.New("the log does not end with a line")
)

// run reads one life after the other until the pod is over or gone.
func (f *follower) run(ctx context.Context) {
	complete := false
	for life := 0; ; {
		var pod *corev1.Pod
		err := f.pods.await(ctx, f.name, func(p *corev1.Pod) bool {
			pod = p
			s := status(p)
			return p == nil || int(s.RestartCount) > life || int(s.RestartCount) == life && !complete && (s.State.Running != nil || s.State.Terminated != nil) || over(p)
		})
		switch {
		case err != nil || ctx.Err() != nil: // a pod that outlives its room
			return
		case pod == nil:
			if !complete {
				f.miss(life)
			}
			return
		case restarts(pod) > life: // the next life has begun
			if complete || f.previous(ctx, life) {
				f.finished(life)
			} else if ctx.Err() == nil {
				f.miss(life)
			}
			life, complete, f.first, f.last = life+1, false, 0, false
		case complete || status(pod).State.Terminated == nil && status(pod).State.Running == nil: // over; it may never have run
			f.finished(life)
			return
		default:
			complete = f.current(ctx, life, pod)
			if complete {
				f.finished(life)
			}
		}
	}
}

// endWithin is how much later than the end of a container's log the API may tell
// of the container's.
const endWithin = 2 * time.Second

// current reads the log of the life that is or was the last, and says whether
// nothing more of it will come.
func (f *follower) current(ctx context.Context, life int, pod *corev1.Pod) bool {
	dead := status(pod).State.Terminated != nil
	err := f.stream(ctx, &corev1.PodLogOptions{Follow: !dead, Timestamps: true})
	switch {
	case ctx.Err() != nil:
		return false
	case err == nil:
		within, cancel := context.WithTimeout(ctx, endWithin)
		defer cancel()
		return f.pods.await(within, f.name, func(p *corev1.Pod) bool { return p == nil || ended(p, life) != nil }) == nil
	case dead && (errors.Is(err, errNoEnd) || apierrors.IsBadRequest(err)), // the container's remains are gone
		over(pod) && errors.Is(err, errOther): // or the beginning of its log
		f.miss(life)
		return true
	}
	pause(ctx, retryAfter)
	return false
}

// previous reads the log of the life before the last, and says whether it was
// still that life's when it was read.
func (f *follower) previous(ctx context.Context, life int) bool {
	for ctx.Err() == nil {
		err := f.stream(ctx, &corev1.PodLogOptions{Previous: true, Timestamps: true})
		pod, why := f.pods.client.CoreV1().Pods(f.pods.namespace).Get(ctx, f.name, metav1.GetOptions{})
		switch {
		case apierrors.IsNotFound(why):
			return false
		case why == nil && restarts(pod) != life+1:
			return false
		case err == nil && why == nil:
			return true
		case errors.Is(err, errNoEnd), errors.Is(err, errOther), apierrors.IsBadRequest(err):
			return false
		}
		pause(ctx, retryAfter)
	}
	return false
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// stream takes the lines of one stream. It returns nil if the stream ended in
// peace.
func (f *follower) stream(ctx context.Context, o *corev1.PodLogOptions) error {
	s, err := f.open(ctx, o)
	if err != nil {
		return err
	}
	defer s.Close()
	return f.lines(s)
}

func (f *follower) lines(r io.Reader) error {
	b := bufio.NewReader(r)
	for begun := false; ; begun = true {
		line, err := b.ReadBytes('\n')
		switch {
		case errors.Is(err, io.EOF) && begun && len(line) == 0:
			return nil
		case errors.Is(err, io.EOF): // what has no end is not a line: a process died writing it, or it comes again
			return errNoEnd
		case err != nil:
			return err
		}
		sum := maphash.Bytes(f.seed, line)
		switch {
		case begun:
		case f.first == 0:
			f.first = sum
		case f.first != sum:
			return errOther
		}
		if _, twice := f.seen[sum]; twice {
			continue
		}
		f.seen[sum] = struct{}{}
		if _, text, ok := bytes.Cut(line, []byte(" ")); ok { // after the runtime's time
			f.last = f.take(text)
		}
	}
}

// miss tells that a log was gone, unless its last line had been taken. Where the
// API is slow to tell of a container's end, the pod may be gone by then.
func (f *follower) miss(life int) {
	if !f.last {
		f.missed(life)
	}
}

func (f *follower) finished(life int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if life < f.read {
		return
	}
	f.read = life + 1
	close(f.more)
	f.more = make(chan struct{})
}

// await returns when the log of a life has been read to its end, or as far as
// there will ever be.
func (f *follower) await(ctx context.Context, life int) error {
	for {
		f.mu.Lock()
		read, more := f.read, f.more
		f.mu.Unlock()
		if read > life {
			return nil
		}
		select {
		case <-more:
		case <-f.closed:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// sorter tells the lines of a log apart. Kubernetes mixes a container's two
// outputs: event lines and the JSON that a one-shot command prints are known by
// their form, and everything else counts as log.
type sorter struct {
	event func(event.Line)
	tail  process.Tail

	mu     sync.Mutex
	result bytes.Buffer // what a one-shot command printed
}

func (s *sorter) take(line []byte) (last bool) {
	if l, ok := process.Event(line); ok {
		s.event(l)
		return l.Event == event.EOF
	}
	var object map[string]any
	if bytes.HasPrefix(line, []byte("{")) && json.Unmarshal(line, &object) == nil && object["level"] == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.result.Write(line)
		return false
	}
	_, _ = s.tail.Write(line)
	return false
}

func (s *sorter) printed() []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.result.Bytes())
}
