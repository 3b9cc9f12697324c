package main

import (
	"context"
	"testing"
	"testing/synctest"

	"warren.example/lab/cluster"
	"warren.example/lab/substrate"
)

// stuck never gets its rooms cleared.
type stuck struct{ substrate.Substrate }

func (stuck) Close(ctx context.Context) error {
	<-ctx.Done()
	return ctx.Err()
}

// cleared notes whether there was time left to take the cluster away.
type cleared struct {
	stageCluster
	late error
	done bool
}

func (c *cleared) Close(ctx context.Context) error {
	c.done, c.late = true, ctx.Err()
	return nil
}

// Rooms that do not go must not cost the end of the cluster.
func TestStuckRoomsDoNotKeepTheCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var c cleared
		if err := (&stage{Substrate: stuck{}, cluster: &c}).close(t.Context()); err == nil {
			t.Error("rooms that are left are no error")
		}
		if !c.done || c.late != nil {
			t.Errorf("the cluster was closed: %v, %v; want it closed in time", c.done, c.late)
		}
	})
}

// What lab up prints is pasted: it must mean the same cluster.
func TestHowToReach(t *testing.T) {
	for want, where := range map[string]place{
		"kubectl --context kind-warren --namespace ns; lab down --on kind":         {on: "kind"},
		"kubectl --context kind-b --namespace ns; lab down --on kind --name b":     {on: "kind", cluster: cluster.Options{Name: "b"}},
		"kubectl --context x --kubeconfig f --namespace ns; lab down --on cluster": {on: "cluster", cluster: cluster.Options{Context: "x", Kubeconfig: "f"}},
	} {
		kubectl, down := howToReach(&where, "ns")
		if got := kubectl + "; " + down; got != want {
			t.Errorf("%s, want %s", got, want)
		}
	}
}
