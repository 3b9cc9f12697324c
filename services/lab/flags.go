package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/client-go/rest"

	"warren.example/lab/cluster"
	"warren.example/lab/substrate"
	"warren.example/lab/substrate/kubernetes"
	"warren.example/lab/substrate/local"
)

// localFlags are those of every command that needs a broker on this machine.
func localFlags(cmd *cobra.Command) *local.Options {
	o := &local.Options{}
	cmd.Flags().IntVar(&o.Nodes, "nodes", 1, "broker nodes: 1 or 3")
	cmd.Flags().BoolVar(&o.Keep, "keep", false, "leave the run folder with all logs")
	addLocalFlags(cmd, o)
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if err := o.Validate(); err != nil {
			return usageError("%v", err)
		}
		return nil
	}
	return o
}

func addLocalFlags(cmd *cobra.Command, o *local.Options) {
	f := cmd.Flags()
	f.StringVar(&o.Broker, "broker", "auto", "process (an installed rabbitmq-server), container, url, or auto: the first that there is")
	f.StringVar(&o.Image, "image", "", "image of the container; default: "+local.DefaultImages[0]+" or "+local.DefaultImages[1])
	f.StringVar(&o.AMQPURL, "amqp-url", "", "somebody else's broker, amqp://user:password@host:port/vhost; never stopped, only virtual hosts of the lab's own are touched")
	f.StringVar(&o.ManagementURL, "management-url", "", "its management API, http://user:password@host:port; without it the lab is one user in the given virtual host")
	f.StringVar(&o.BinDir, "bin-dir", "", "folder with the services' programs; default: they are built")
}

// place is where a command's broker and services are.
type place struct {
	on      string // local, kind or cluster
	nodes   int
	keep    bool
	local   local.Options
	cluster cluster.Options
}

// Which places a flag belongs to; one that is not here belongs to all.
var onlyOn = map[string][]string{
	"broker": {"local"}, "image": {"local"}, "amqp-url": {"local"}, "management-url": {"local"}, "bin-dir": {"local"},
	"name": {"kind"}, "reuse": {"kind"}, "detach": {"local", "kind"},
	"context": {"cluster"}, "kubeconfig": {"cluster"},
	"namespace": {"kind", "cluster"}, "release": {"kind", "cluster"}, "values": {"kind", "cluster"}, "logs": {"kind", "cluster"},
}

// placeFlags are those of every command that runs on Kubernetes as well.
func placeFlags(cmd *cobra.Command) *place {
	p := &place{}
	f := cmd.Flags()
	f.StringVar(&p.on, "on", "local", "local (processes of this machine), kind (a Kubernetes cluster of the lab's own), or cluster (one that --context names; in a pod: its own)")
	f.IntVar(&p.nodes, "nodes", 0, "broker nodes: 1 or 3; default: 1, on Kubernetes 3")
	f.BoolVar(&p.keep, "keep", false, "leave the run folder with all logs; on Kubernetes: the cluster and what is installed in it")
	addLocalFlags(cmd, &p.local)
	addClusterFlags(cmd, &p.cluster)
	f.BoolVar(&p.cluster.Reuse, "reuse", false, "kind: take a cluster of that name that a lab left with --keep")
	f.StringArrayVar(&p.cluster.Values, "values", nil, "Kubernetes: values file for the chart, or key=value; may be repeated")
	f.StringVar(&p.cluster.LogsTo, "logs", "", "Kubernetes: folder for the cluster's logs if something fails")
	cmd.PreRunE = func(cmd *cobra.Command, _ []string) error { return p.validate(cmd) }
	return p
}

// addClusterFlags say which cluster.
func addClusterFlags(cmd *cobra.Command, o *cluster.Options) {
	f := cmd.Flags()
	f.StringVar(&o.Name, "name", "", "kind: name of the cluster; default: warren")
	f.StringVar(&o.Context, "context", "", "cluster: context of the kubeconfig; always named, never the current one")
	f.StringVar(&o.Kubeconfig, "kubeconfig", "", "cluster: kubeconfig file; default: kubectl's")
	f.StringVar(&o.Namespace, "namespace", "", "Kubernetes: namespace; default: warren")
	f.StringVar(&o.Release, "release", "", "Kubernetes: name of the Helm release; default: warren")
}

// validate refuses what cannot work before anything is started.
func (p *place) validate(cmd *cobra.Command) error {
	if err := errors.Join(checkPlace(cmd, p.on, p.cluster.Context), checkEnvironment()); err != nil {
		return err
	}
	var err error
	if p.on == "local" {
		p.local.Nodes, p.local.Keep = p.nodes, p.keep
		err = p.local.Validate()
	} else {
		p.cluster.Nodes, p.cluster.Keep = p.nodes, p.keep
		err = p.cluster.Validate()
	}
	if err != nil {
		return usageError("%v", err)
	}
	return nil
}

// checkEnvironment refuses settings of services, which would be of no effect:
// each gets its own from the scenario. An address is what lab up says to export.
func checkEnvironment() error {
	for _, variable := range os.Environ() {
		name, _, _ := strings.Cut(variable, "=")
		if strings.HasPrefix(name, "WARREN_") && !strings.HasPrefix(name, "WARREN_AMQP_") {
			return usageError("%s: a setting of services, which the lab does not pass on; unset it", name)
		}
	}
	return nil
}

func checkPlace(cmd *cobra.Command, on, context string) error {
	if !slices.Contains([]string{"local", "kind", "cluster"}, on) {
		return usageError("--on %s: want local, kind or cluster", on)
	}
	for flag, places := range onlyOn {
		if cmd.Flags().Changed(flag) && !slices.Contains(places, on) {
			return usageError("--%s: only with --on %s", flag, strings.Join(places, " or "))
		}
	}
	if on == "cluster" && context == "" && !inPod() {
		return usageError("--on cluster: needs --context; kubectl config get-contexts lists them")
	}
	return nil
}

// inPod says whether the lab runs in a pod, whose cluster it then means.
func inPod() bool { return os.Getenv("KUBERNETES_SERVICE_HOST") != "" }

// stage is a substrate, and the cluster under it if there is one.
type stage struct {
	substrate.Substrate
	cluster stageCluster // nil on this machine and in a pod
}

// stageCluster is what a stage needs of a cluster.Cluster.
type stageCluster interface {
	Failed(context.Context) error
	Close(context.Context) error
}

// forRooms are values of a release that is there for its broker, its database
// and its templates: its own services would only take processor time.
var forRooms = []string{"server.replicas=0", "client.replicas=0", "auditor.replicas=0"}

// open returns when the broker answers.
func (p *place) open(ctx context.Context, progress func(string), values ...string) (*stage, error) {
	if p.on == "local" {
		p.local.Progress = progress
		s, err := local.New(ctx, p.local)
		if err != nil {
			return nil, err
		}
		return &stage{Substrate: s}, nil
	}
	if p.on == "cluster" && p.cluster.Context == "" {
		return p.openOwn(ctx, progress)
	}
	o := p.cluster
	o.Progress = progress
	o.Values = append(values, o.Values...) // the user's last, so that they count
	c, err := cluster.Up(ctx, o)
	if err != nil {
		return nil, err
	}
	s := &stage{cluster: c}
	progress("broker: waits for its API")
	k, err := kubernetes.New(ctx, kubernetes.Options{Config: c.Config, Namespace: c.Namespace, Release: c.Release, Cluster: c, Own: c.Ours()})
	if err != nil {
		return nil, errors.Join(err, s.failed(ctx), s.close(ctx))
	}
	s.Substrate = k
	return s, nil
}

// openOwn takes the release that the lab's own pod belongs to.
func (p *place) openOwn(ctx context.Context, progress func(string)) (*stage, error) {
	config, err := rest.InClusterConfig()
	if err != nil {
		return nil, fmt.Errorf("--on cluster in a pod: %w", err)
	}
	o := kubernetes.Options{Config: config, Namespace: p.cluster.Namespace, Release: p.cluster.Release}
	if o.Namespace == "" {
		own, err := os.ReadFile("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
		if err != nil {
			return nil, fmt.Errorf("--namespace: the pod's own is not known: %w", err)
		}
		o.Namespace = string(own)
	}
	if o.Release == "" {
		o.Release = "warren"
	}
	progress(fmt.Sprintf("release %s in namespace %s", o.Release, o.Namespace))
	k, err := kubernetes.New(ctx, o)
	if err != nil {
		return nil, err
	}
	return &stage{Substrate: k}, nil
}

// failed collects the cluster's logs, if they are wanted.
func (s *stage) failed(ctx context.Context) error {
	if s.cluster == nil || ctx.Err() != nil {
		return nil
	}
	return s.cluster.Failed(ctx)
}

// close takes everything away, also after Ctrl-C. Rooms that do not go in time
// cost the cluster's end nothing: it has its own.
func (s *stage) close(ctx context.Context) error {
	var errs []error
	if s.Substrate != nil {
		clearing, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
		defer cancel()
		errs = append(errs, s.Substrate.Close(clearing))
	}
	if s.cluster != nil {
		errs = append(errs, s.cluster.Close(ctx))
	}
	return errors.Join(errs...)
}
