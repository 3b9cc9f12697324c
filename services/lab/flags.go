package main

import (
	"github.com/spf13/cobra"

	"warren.example/lab/substrate/local"
)

// localFlags are those of every command that needs a broker on this machine.
func localFlags(cmd *cobra.Command) *local.Options {
	o := &local.Options{}
	f := cmd.Flags()
	f.StringVar(&o.Broker, "broker", "auto", "process (an installed rabbitmq-server), container, url, or auto: the first that there is")
	f.IntVar(&o.Nodes, "nodes", 1, "broker nodes: 1 or 3")
	f.StringVar(&o.Image, "image", "", "image of the container; default: "+local.DefaultImages[0]+" or "+local.DefaultImages[1])
	f.StringVar(&o.AMQPURL, "amqp-url", "", "somebody else's broker, amqp://user:password@host:port/vhost; never stopped, only virtual hosts of the lab's own are touched")
	f.StringVar(&o.ManagementURL, "management-url", "", "its management API, http://user:password@host:port; without it the lab is one user in the given virtual host")
	f.StringVar(&o.BinDir, "bin-dir", "", "folder with the services' programs; default: they are built")
	f.BoolVar(&o.Keep, "keep", false, "leave the run folder with all logs")
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if err := o.Validate(); err != nil {
			return usageError("%v", err)
		}
		return nil
	}
	return o
}
