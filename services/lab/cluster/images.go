package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"

	"sigs.k8s.io/kind/pkg/apis/config/defaults"
	"sigs.k8s.io/kind/pkg/cluster/nodes"
	"sigs.k8s.io/kind/pkg/cluster/nodeutils"

	"warren.example/lab/substrate/local"
)

// The services' images as scripts/images names them; no registry has them.
const builtPrefix, builtTag = "localhost/warren/", ":dev"

// chooseImages fills in what the user left open.
func (c *Cluster) chooseImages(ctx context.Context) error {
	for _, i := range []struct {
		image           *string
		variable, names string // the airgap recipes' names on the engine
	}{
		{&c.o.Images.Node, "KIND_NODE_IMAGE", "kindest/node:*-airgap"},
		{&c.o.Images.RabbitMQ, "RABBITMQ_IMAGE", "rabbitmq:*-airgap"},
		{&c.o.Images.PostgreSQL, "POSTGRES_IMAGE", "postgres:*-airgap"},
	} {
		if *i.image == "" {
			*i.image = os.Getenv(i.variable)
		}
		if *i.image != "" || c.o.Context != "" { // another cluster has another engine
			continue
		}
		out, err := docker(ctx, "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", "--filter", "reference="+i.names)
		if err != nil {
			return err
		}
		*i.image, _, _ = strings.Cut(strings.TrimSpace(string(out)), "\n") // the newest
	}
	if c.o.Images.Node == "" {
		c.o.Images.Node = defaults.Image
	}
	return nil
}

// images makes sure that the engine has every image of our kind cluster.
func (c *Cluster) images(ctx context.Context) error {
	if c.o.Context != "" {
		return nil
	}
	wanted, err := c.wanted()
	if err != nil {
		return err
	}
	build := []string{}
	var errs []error
	for _, image := range append(wanted, c.o.Images.Node) {
		if name, tagged := strings.CutSuffix(image, builtTag); tagged && strings.HasPrefix(name, builtPrefix) {
			build = append(build, "--only", strings.TrimPrefix(name, builtPrefix))
			continue
		}
		if local.HasImage(ctx, image) || ctx.Err() != nil {
			continue
		}
		c.o.Progress("  pulls " + image)
		if _, err := docker(ctx, "pull", "--quiet", image); err != nil {
			errs = append(errs, fmt.Errorf("image %s: not on the engine and cannot be pulled: %w; scripts/airgap makes node, RabbitMQ and PostgreSQL images without a registry", image, err))
		}
	}
	if len(build) > 0 {
		script := filepath.Join(c.root, "scripts", "images")
		_, err := output(exec.CommandContext(ctx, script, build...))
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (c *Cluster) wanted() ([]string, error) {
	specs, err := podSpecs(c.manifests)
	return wantedImages(specs), err
}

// load gives each node of our kind cluster the images that it has not.
func (c *Cluster) load(ctx context.Context) error {
	if !c.ours {
		return nil
	}
	wanted, err := c.wanted()
	if err != nil {
		return err
	}
	all, err := c.kind.ListInternalNodes(c.o.Name)
	if err != nil {
		return err
	}
	missing := map[nodes.Node]bool{}
	var archive []string // what any node lacks, saved once
	for _, image := range wanted {
		if strings.Contains(image, "@") {
			continue // an archive does not keep the digest: the nodes pull it
		}
		id, err := docker(ctx, "image", "inspect", "--format", "{{.Id}}", image)
		if err != nil {
			return err
		}
		save := false
		for _, n := range all {
			if has, err := nodeutils.ImageID(n, image); err != nil || has != strings.TrimSpace(string(id)) {
				missing[n], save = true, true
			}
		}
		if save {
			archive = append(archive, image)
		}
	}
	c.loaded = archive
	if len(archive) == 0 {
		return nil
	}
	c.o.Progress(fmt.Sprintf("  %s into %d nodes", strings.Join(archive, ", "), len(missing)))
	path := filepath.Join(c.dir, "images.tar")
	if _, err := docker(ctx, append([]string{"save", "--output", path}, archive...)...); err != nil {
		return err
	}
	defer os.Remove(path)
	var wg sync.WaitGroup
	errs := make([]error, len(all))
	for i, n := range all {
		if !missing[n] {
			continue
		}
		wg.Go(func() {
			f, err := os.Open(path)
			if err != nil {
				errs[i] = err
				return
			}
			defer f.Close()
			if err := nodeutils.LoadImageArchive(n, f); err != nil {
				errs[i] = fmt.Errorf("node %s: %w", n, commandError(err))
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}
