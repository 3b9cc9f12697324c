package main

import (
	"context"
	"errors"
	"net"
	"net/http"

	"github.com/spf13/cobra"

	"warren.example/lab/link"
)

// linkCommand is what the lab starts in a pod to break the network there.
func linkCommand() *cobra.Command {
	var listen, target, control string
	cmd := &cobra.Command{
		Use:   "link --listen ADDR --target ADDR --control ADDR",
		Short: "Pass AMQP connections on to a broker, and break them when told to",
		Long: `Pass AMQP connections on to a broker, and break them when told to: at once, or at
one frame.

  POST /orders   {"action":"reset","method":"basic.ack","from":"service","n":40}
  GET /hit       how many orders have met their frame`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			for flag, addr := range map[string]string{"listen": listen, "target": target, "control": control} {
				if _, _, err := net.SplitHostPort(addr); err != nil {
					return usageError("link: --%s %s: want host:port", flag, addr)
				}
			}
			k, err := link.Listen(listen, target)
			if err != nil {
				return setupError(err)
			}
			orders := http.Server{Addr: control, Handler: k.Control()}
			stop := context.AfterFunc(cmd.Context(), func() { _ = orders.Close() })
			defer stop()
			if err := orders.ListenAndServe(); !errors.Is(err, http.ErrServerClosed) {
				return errors.Join(setupError(err), k.Close())
			}
			return k.Close()
		},
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "127.0.0.1:5673", "host:port for services")
	f.StringVar(&target, "target", "127.0.0.1:5672", "host:port of a broker node")
	f.StringVar(&control, "control", "127.0.0.1:9103", "host:port for orders")
	return cmd
}
