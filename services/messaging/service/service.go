// Package service is what all services of the suite do alike around their
// work: settings, log, and the admin port whose paths the lab and the charts
// rely on. Three copies would let probes and redaction drift apart.
package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/kelseyhightower/envconfig"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// Prefix begins the name of every setting.
const Prefix = "WARREN"

// Load fills cfg (a pointer to a struct with envconfig tags) from the
// environment and validates it. A variable with our prefix that cfg does not
// know is an error, because a misspelt setting would otherwise be silence.
func Load(cfg interface{ Validate() error }) error {
	unknown := envconfig.CheckDisallowed(Prefix, cfg)
	if unknown != nil {
		unknown = fmt.Errorf("%s: unknown setting", unknown.Error()[strings.LastIndexByte(unknown.Error(), ' ')+1:])
	}
	err := envconfig.Process(Prefix, cfg)
	var parse *envconfig.ParseError
	switch {
	case err == nil:
		err = cfg.Validate()
	case errors.As(err, &parse):
		err = fmt.Errorf("%s=%s: not a %s", parse.KeyName, parse.Value, parse.TypeName)
	}
	return errors.Join(unknown, err)
}

// NewLogger logs JSON lines to standard error; standard output belongs to the
// events. Level is debug, info, warn or error.
func NewLogger(level string) (*zap.Logger, error) {
	l, err := zap.ParseAtomicLevel(level)
	if err != nil {
		return nil, fmt.Errorf("WARREN_LOG_LEVEL=%s: want debug, info, warn or error", level)
	}
	cfg := zap.NewProductionConfig()
	cfg.Level, cfg.Sampling, cfg.DisableStacktrace, cfg.DisableCaller = l, nil, true, true
	cfg.EncoderConfig.EncodeTime = func(t time.Time, enc zapcore.PrimitiveArrayEncoder) { enc.AppendString(t.Format(time.RFC3339Nano)) }
	return cfg.Build()
}

// Admin serves /livez, /readyz and /metrics until ctx ends.
//
// Liveness says only that the process runs: a broker outage must not restart
// it. Ready returns nil when the service can do its work.
type Admin struct {
	Addr     string // host:port; empty serves nothing
	Ready    func() error
	Registry *prometheus.Registry
	Routes   []func(*http.ServeMux) // further endpoints, such as fault injection
}

// Serve listens at once, so that a taken port is an error at start, and serves
// in the background until ctx ends. Call wait before the process exits.
func (a Admin) Serve(ctx context.Context, log *zap.Logger) (wait func(), err error) {
	if a.Addr == "" {
		return func() {}, nil
	}
	return ServeHTTP(ctx, log, a.Addr, a.mux())
}

func (a Admin) mux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if err := a.Ready(); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ready")
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.Registry, promhttp.HandlerOpts{}))
	for _, add := range a.Routes {
		add(mux)
	}
	return mux
}

// ServeHTTP serves handler on addr until ctx ends, as Admin.Serve does.
func ServeHTTP(ctx context.Context, log *zap.Logger, addr string, handler http.Handler) (wait func(), err error) {
	_, wait, err = listen(ctx, log, addr, handler)
	return wait, err
}

func listen(ctx context.Context, log *zap.Logger, addr string, handler http.Handler) (actual string, wait func(), err error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return "", nil, fmt.Errorf("listen on %s: %w", addr, err)
	}
	srv := &http.Server{Handler: handler, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("http server ended", zap.String("addr", addr), zap.Error(err))
		}
	}()
	stop := func() {
		deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
		defer cancel()
		if srv.Shutdown(deadline) != nil {
			_ = srv.Close()
		}
	}
	ended := context.AfterFunc(ctx, stop)
	return l.Addr().String(), func() {
		if ended() { // ctx never ended: stop now
			stop()
		}
		<-done
	}, nil
}
