package main

import (
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"
)

// showProgress draws a bar where w is a terminal, and elsewhere writes a line
// every few seconds. The returned function ends it; after it w is free.
func showProgress(w io.Writer, progress func() (part float64, line string)) (stop func()) {
	if f, ok := w.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		const steps = 1000
		bar := progressbar.NewOptions(steps, progressbar.OptionSetWriter(w), progressbar.OptionClearOnFinish(),
			progressbar.OptionSetWidth(15), progressbar.OptionSetPredictTime(false))
		return every(200*time.Millisecond, func() {
			part, line := progress()
			bar.Describe(line)
			_ = bar.Set(min(int(part*steps), steps-1)) // the last step would end the bar before the last call
		}, func() { _ = bar.Finish() })
	}
	return every(5*time.Second, func() {
		_, line := progress()
		fmt.Fprintln(w, line)
	}, func() {})
}

// every calls tick at intervals until the returned function is called, then
// calls last once.
func every(interval time.Duration, tick, last func()) (stop func()) {
	var done sync.WaitGroup
	end := make(chan struct{})
	done.Go(func() {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				tick()
			case <-end:
				last()
				return
			}
		}
	})
	return func() {
		close(end)
		done.Wait()
	}
}
