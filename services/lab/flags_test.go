package main

import (
	"context"
	"testing"
	"testing/synctest"

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
