package main

import (
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/rpc"
	"warren.example/messaging/service"
	"warren.example/messaging/session"
)

// config is read from the environment, once; what belongs to one call or one
// load is a flag instead.
type config struct {
	service.Settings
	AdminAddr string `split_words:"true" desc:"host:port of /livez, /readyz and /metrics during a load; empty: none"`
}

func loadConfig() (config, error) {
	var cfg config
	err := service.Load(&cfg)
	return cfg, err
}

// callerOptions is what every caller of this process has in common.
func (c *config) callerOptions(log *zap.Logger, events *event.Recorder, registry prometheus.Registerer) rpc.CallerOptions {
	return rpc.CallerOptions{
		Session: session.Options{
			Config: c.AMQP, Name: "client/" + c.Instance,
			Log: log, Events: events, Metrics: session.NewMetrics(registry),
		},
		Instance:   c.Instance,
		ReplyQueue: contract.ClientReplyQueue,
	}
}

func settingsHelp() string { return "Settings (environment):\n" + service.Usage(new(config)) }
