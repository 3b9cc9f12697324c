package main

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"warren.example/lab/substrate/local"
)

func topologyCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "topology",
		Short: "The broker's exchanges, queues and bindings",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return usageError("topology: want apply") },
	}
	var url string
	apply := &cobra.Command{
		Use:   "apply",
		Short: "Declare them; repeating it is safe",
		Long: `Declare exchanges, queues and bindings as the user of the given URL, normally
'topology': no service may declare. A queue that exists with other arguments is
an error and is left as it is.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if url == "" {
				url = os.Getenv("WARREN_AMQP_URL")
			}
			if url == "" {
				return usageError("topology apply: --amqp-url or WARREN_AMQP_URL: missing")
			}
			var errs []error
			for _, u := range strings.Split(url, ",") { // the hosts of one broker: any will do
				version, err := local.Declare(u)
				if err == nil {
					fmt.Fprintf(cmd.OutOrStdout(), "topology declared on RabbitMQ %v\n", version)
					return nil
				}
				errs = append(errs, err)
			}
			return setupError(errors.Join(errs...))
		},
	}
	apply.Flags().StringVar(&url, "amqp-url", "", "broker, amqp://topology:password@host:port/vhost; default: WARREN_AMQP_URL, which other users of the machine cannot see")
	cmd.AddCommand(apply)
	return cmd
}
