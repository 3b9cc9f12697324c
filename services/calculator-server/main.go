// Command calculator-server answers the requests in calc.requests. Run it with
// -h for its settings.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.uber.org/zap"

	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/fault"
	"warren.example/messaging/rpc"
	"warren.example/messaging/service"
	"warren.example/messaging/session"
)

const exitUsage = 64 // of the wrong settings or arguments

var errUsage = errors.New("calculator-server -h explains")

func main() {
	err := run(context.Background(), os.Args[1:], os.Stdout)
	if err == nil {
		return
	}
	for line := range strings.Lines(err.Error()) {
		fmt.Fprintln(os.Stderr, "calculator-server:", strings.TrimSuffix(line, "\n"))
	}
	if errors.Is(err, errUsage) {
		os.Exit(exitUsage)
	}
	os.Exit(1)
}

// run is the life of the process. It returns nil after a clean drain.
func run(ctx context.Context, args []string, stdout io.Writer) error {
	// 1. Settings. Only wrong ones, a taken port and a database file that cannot be
	// opened end the process; a broker or PostgreSQL that is away is waited for.
	if len(args) > 0 {
		return answerFlag(args, stdout)
	}
	var cfg Config
	if err := service.Load(&cfg); err != nil {
		return errors.Join(err, errUsage)
	}
	log, err := service.NewLogger(cfg.LogLevel)
	if err != nil {
		return err
	}
	log = log.With(zap.String("instance", cfg.Instance))
	if lessons := cfg.lessons(); len(lessons) > 0 {
		log.Warn("promises switched off for a lesson", zap.Strings("settings", lessons))
	}
	events := cfg.Recorder(stdout)

	// 2. The second SIGTERM or Ctrl-C ends the process at once.
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGTERM, os.Interrupt)
	defer stop()
	context.AfterFunc(ctx, stop)

	// 3. The calculator's memory.
	var memory Memory
	if cfg.Database != "" {
		if memory, err = openMemory(ctx, cfg); err != nil {
			return fmt.Errorf("WARREN_DATABASE=%s: %w", cfg.Database, err)
		}
		defer memory.Close()
	}

	// 4. The server and its way to reply.
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	var faults *fault.Points
	var routes []func(*http.ServeMux)
	if cfg.Faults {
		faults = fault.New(events, faultPoints...)
		routes = append(routes, faults.Routes)
	}
	options := session.Options{Config: cfg.AMQP, Name: "calculator-server/" + cfg.Instance, Log: log, Events: events, Metrics: session.NewMetrics(registry)}
	publisher := session.NewPublisher(options, session.PublisherOptions{Exchange: contract.ReplyExchange})
	server := newServer(cfg, log, events, newMetrics(registry), faults, memory, rpc.NewResponder(publisher, events))
	server.metrics.watch(registry, server)
	flow := &flow{server: server, publisher: publisher}

	// 5. The admin port outlives the drain, so that readiness can be seen failing.
	adminCtx, stopAdmin := context.WithCancel(context.WithoutCancel(ctx))
	admin := service.Admin{Addr: cfg.AdminAddr, Ready: flow.Ready, Registry: registry, Routes: routes}
	waitAdmin, err := admin.Serve(adminCtx, log)
	if err != nil {
		stopAdmin()
		return errors.Join(fmt.Errorf("WARREN_ADMIN_ADDR: %w", err), publisher.Close(ctx))
	}
	defer func() { stopAdmin(); waitAdmin() }()

	// 6. Requests, once they can be answered, until SIGTERM.
	if publisher.WaitReady(ctx) == nil && server.openMemory(ctx) == nil {
		flow.start(session.NewConsumer(options, session.ConsumerOptions{
			Queue: contract.RequestQueue, Prefetch: cfg.Prefetch, AckDelay: time.Millisecond, AutoAck: cfg.AutoAck, Handle: server.Handle,
		}))
		flow.regulate(ctx, 100*time.Millisecond)
	}

	// 7. Leave nothing half done.
	if !cfg.Drain {
		log.Warn("left without draining")
		os.Exit(0) // the lesson
	}
	err = flow.drain(cfg.DrainTimeout)
	events.Record(event.Line{Event: event.EOF})
	return errors.Join(err, events.Err())
}

// answerFlag is for the two arguments that there are.
func answerFlag(args []string, stdout io.Writer) error {
	switch {
	case len(args) == 1 && (args[0] == "-h" || args[0] == "-help" || args[0] == "--help"):
		_, err := fmt.Fprint(stdout, usage())
		return err
	case len(args) == 1 && args[0] == "--version":
		_, err := fmt.Fprintln(stdout, "calculator-server", service.Version())
		return err
	default:
		return fmt.Errorf("argument %q: there are none; settings are environment variables\n%w", args[0], errUsage)
	}
}
