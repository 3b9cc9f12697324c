//go:build integration

package main

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"
)

// Every contender answers, so that a figure is about messaging and not about
// errors. The server stops without an error and takes its queue away.
func TestEveryContenderAnswers(t *testing.T) {
	b, err := brokerFromEnv()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range contenders {
		t.Run(c.Name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			queue := fmt.Sprintf("bench.test.%d.%s", os.Getpid(), c.Name)
			serveCtx, stop := context.WithCancel(ctx)
			ready, ended := make(chan struct{}), make(chan error, 1)
			go func() { ended <- c.Serve(serveCtx, b, queue, func() { close(ready) }) }()
			select {
			case <-ready:
			case err := <-ended:
				t.Fatalf("serve: %v", err)
			}
			client, err := c.Dial(ctx, b, queue, 8)
			if err != nil {
				t.Fatalf("dial: %v", err)
			}
			took, err := cell{InFlight: 8}.callUntil(ctx, client, time.Now().Add(200*time.Millisecond))
			if err != nil || len(took) < 8 {
				t.Errorf("calls: got %d and %v, want at least 8 and no error", len(took), err)
			}
			if err := client.Close(ctx); err != nil {
				t.Errorf("close client: %v", err)
			}
			stop()
			if err := <-ended; err != nil {
				t.Errorf("serve: %v", err)
			}
		})
	}
}
