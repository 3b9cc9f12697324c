package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/streaming/pkg/httpstream"
)

// tunnel reaches ports of pods by way of the API server and the kubelet, which
// connects from within the pod. The API server's proxy to pods would be less
// code, but it comes from outside: a NetworkPolicy refuses it, and not every
// API server has a route to the pods.
type tunnel struct {
	config    *rest.Config
	client    kubernetes.Interface
	namespace string
}

// dial connects to a port of a pod.
func (t *tunnel) dial(ctx context.Context, pod string, port int) (net.Conn, error) {
	type dialled struct {
		conn net.Conn
		err  error
	}
	done := make(chan dialled, 1)
	go func() { // the library takes no context
		c, err := t.connect(pod, port)
		done <- dialled{c, err}
	}()
	select {
	case d := <-done:
		if d.err != nil {
			return nil, fmt.Errorf("connect to port %d of pod %s: %w", port, pod, d.err)
		}
		return d.conn, nil
	case <-ctx.Done():
		go func() {
			if d := <-done; d.conn != nil {
				_ = d.conn.Close()
			}
		}()
		return nil, ctx.Err()
	}
}

func (t *tunnel) connect(pod string, port int) (net.Conn, error) {
	url := t.client.CoreV1().RESTClient().Post().Resource("pods").Namespace(t.namespace).Name(pod).SubResource("portforward").URL()
	primary, err := portforward.NewSPDYOverWebsocketDialerForStreaming(url, t.config)
	if err != nil {
		return nil, err
	}
	transport, upgrader, err := spdy.RoundTripperFor(t.config)
	if err != nil {
		return nil, err
	}
	secondary := spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, http.MethodPost, url)
	dialer := portforward.NewFallbackDialerForStreaming(primary, secondary, func(err error) bool {
		return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
	})
	conn, _, err := dialer.Dial(portforward.PortForwardProtocolV1Name)
	if err != nil {
		return nil, err
	}
	s, err := newStream(conn, port)
	if err != nil {
		_ = conn.Close()
	}
	return s, err
}

// stream is a connection to a port of a pod.
type stream struct {
	httpstream.Stream
	conn    httpstream.Connection
	refusal chan error // what the kubelet says: nil if all was well
	once    sync.Once
}

func newStream(conn httpstream.Connection, port int) (net.Conn, error) {
	header := http.Header{}
	header.Set(corev1.PortHeader, strconv.Itoa(port))
	header.Set(corev1.PortForwardRequestIDHeader, "0")
	header.Set(corev1.StreamType, corev1.StreamTypeError)
	errs, err := conn.CreateStream(header)
	if err != nil {
		return nil, err
	}
	_ = errs.Close() // nothing is written to it
	header.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := conn.CreateStream(header)
	if err != nil {
		return nil, err
	}
	s := &stream{Stream: data, conn: conn, refusal: make(chan error, 1)}
	go func() {
		text, _ := io.ReadAll(errs)
		if len(text) > 0 {
			s.refusal <- errors.New(strings.TrimSpace(string(text)))
			_ = s.Close() // nobody would end the data stream
		}
		close(s.refusal)
	}()
	return s, nil
}

// Read says why the kubelet could not connect, where it only ended the stream.
func (s *stream) Read(b []byte) (int, error) {
	n, err := s.Stream.Read(b)
	if err != nil && n == 0 {
		select {
		case why := <-s.refusal:
			if why != nil {
				return 0, why
			}
		case <-time.After(time.Second):
		}
	}
	return n, err
}

func (s *stream) Close() error {
	s.once.Do(func() {
		_ = s.Reset()
		_ = s.conn.Close()
	})
	return nil
}

type addr struct{}

func (addr) Network() string { return "portforward" }
func (addr) String() string  { return "pod" }

// What follows completes net.Conn; whoever needs deadlines closes instead.

func (*stream) LocalAddr() net.Addr              { return addr{} }
func (*stream) RemoteAddr() net.Addr             { return addr{} }
func (*stream) SetDeadline(time.Time) error      { return nil }
func (*stream) SetReadDeadline(time.Time) error  { return nil }
func (*stream) SetWriteDeadline(time.Time) error { return nil }

// forwarder listens on loopback and joins each connection to one that dial
// makes then: a pod that dies breaks its own connections, and the next ones go
// elsewhere.
type forwarder struct {
	net.Listener
	dial func(context.Context) (net.Conn, error)
	ctx  context.Context
	end  context.CancelFunc
	all  sync.WaitGroup
}

func forward(dial func(context.Context) (net.Conn, error)) (*forwarder, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	f := &forwarder{Listener: l, dial: dial}
	f.ctx, f.end = context.WithCancel(context.Background())
	f.all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return // closed
			}
			f.all.Go(func() { f.join(c) })
		}
	})
	return f, nil
}

// join copies both ways until either side ends, then ends both.
func (f *forwarder) join(local net.Conn) {
	defer local.Close()
	remote, err := f.dial(f.ctx)
	if err != nil {
		return // the caller sees its connection closed, as by a server that is away
	}
	defer remote.Close()
	ctx, cancel := context.WithCancel(f.ctx)
	defer cancel()
	for _, way := range [][2]net.Conn{{local, remote}, {remote, local}} {
		f.all.Go(func() {
			defer cancel()
			_, _ = io.Copy(way[0], way[1])
		})
	}
	<-ctx.Done()
}

// close ends the listener and every connection.
func (f *forwarder) close() {
	_ = f.Listener.Close()
	f.end()
	f.all.Wait()
}
