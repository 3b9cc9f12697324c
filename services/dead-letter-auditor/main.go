// Command dead-letter-auditor keeps, in a database, why each request died, and
// lets people replay or discard it. Without a command it is the service; the
// commands list, show, replay, discard, trail and reconcile talk to a running one.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"sync"
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

func main() {
	os.Exit(execute(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}

// run is the service from start to end.
func run(ctx context.Context, stdout io.Writer) error {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends the process at once

	var cfg config
	if err := service.Load(&cfg); err != nil { // 1. refuse bad settings before touching anything
		return exit{exitUsage, err}
	}
	log, err := service.NewLogger(cfg.LogLevel) // 2. from here on every failure is a log line
	if err != nil {
		return exit{exitUsage, err}
	}
	events := cfg.Recorder(stdout)
	if err := serve(ctx, cfg, log, events); err != nil { // 3. audit until ctx ends
		return exit{exitRefused, err}
	}
	events.Record(event.Line{Event: event.EOF}) // 4. the ledger is complete
	if err := events.Err(); err != nil {
		return exit{exitRefused, fmt.Errorf("write events: %w", err)}
	}
	return nil
}

// closeTimeout is how long each part of the shutdown may take.
const closeTimeout = 5 * time.Second

// serve starts the parts in an order in which each finds what it needs, and
// the deferred calls end them in the reverse order: no new commands, the dead
// letter in hand is finished, then the connections, then the database.
func serve(ctx context.Context, cfg config, log *zap.Logger, events *event.Recorder) (err error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	closing := func(what string, closer func(context.Context) error) {
		deadline, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
		defer cancel()
		if e := closer(deadline); e != nil {
			err = errors.Join(err, fmt.Errorf("close %s: %w", what, e))
		}
	}

	store, err := openStore(ctx, cfg) // 1. the database; a file, or no start
	if err != nil {
		return fmt.Errorf("WARREN_DATABASE: %w", err)
	}
	defer closing("database", func(context.Context) error { return store.Shutdown() })

	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	m := newMetrics(registry, store)
	var points *fault.Points // nil: nothing can be armed
	var routes []func(*http.ServeMux)
	if cfg.Faults {
		points = fault.New(events, fault.AfterCommit)
		routes = append(routes, points.Routes)
	}
	options := session.Options{Config: cfg.AMQP, Name: "dead-letter-auditor/" + cfg.Instance, Log: log, Events: events, Metrics: session.NewMetrics(registry)}

	caller, err := rpc.NewCaller(rpc.CallerOptions{ // 2. replays go out
		Session: options, Instance: cfg.Instance, ReplyQueue: contract.AuditorReplyQueue,
	})
	if err != nil {
		return err
	}
	defer closing("replay session", caller.Close)

	a := newAuditor(store, points, events, m, log, cfg.Prefetch)
	consumer := session.NewConsumer(options, session.ConsumerOptions{ // 3. dead letters come in
		Queue: contract.DeadLetterQueue, Prefetch: cfg.Prefetch, Handle: a.take,
	})
	a.flow = consumer
	defer closing("dead letter session", consumer.Close) // what is unsettled goes back to the broker

	replays := &replayer{store: store, caller: caller, timeout: cfg.ReplayTimeout, lease: cfg.ReplayLease,
		events: events, metrics: m, log: log, slots: make(chan struct{}, maxReplays)}
	var work sync.WaitGroup // 4. the work
	work.Go(func() { a.run(ctx) })
	work.Go(func() { replays.sweep(ctx) })
	defer func() {
		stop()
		work.Wait()
		replays.calls.Wait()
	}()

	people := &api{store: store, replayer: replays, service: ctx, events: events, log: log}
	if cfg.HTTPTokenFile != "" {
		if people.token, err = readToken(cfg.HTTPTokenFile); err != nil {
			return fmt.Errorf("WARREN_HTTP_TOKEN_FILE=%s: %w", cfg.HTTPTokenFile, err)
		}
	}
	waitAPI, err := service.ServeHTTP(ctx, log, cfg.HTTPAddr, people.handler()) // 5. people
	if err != nil {
		return fmt.Errorf("WARREN_HTTP_ADDR: %w", err)
	}
	defer func() { stop(); waitAPI() }()

	ready := func() error { return errors.Join(ctx.Err(), consumer.Ready(), a.Ready(), replays.Ready()) }
	waitAdmin, err := service.Admin{Addr: cfg.AdminAddr, Ready: ready, Registry: registry, Routes: routes}.Serve(ctx, log) // 6. probes
	if err != nil {
		return fmt.Errorf("WARREN_ADMIN_ADDR: %w", err)
	}
	defer func() { stop(); waitAdmin() }()

	log.Info("auditor started", zap.String("instance", cfg.Instance), zap.Bool("postgres", store.db.Postgres), zap.String("http", cfg.HTTPAddr), zap.String("admin", cfg.AdminAddr))
	<-ctx.Done()
	log.Info("auditor draining")
	return nil
}
