package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	callTimeout  = 20 * time.Second
	closeTimeout = 5 * time.Second
	stuckAfter   = time.Minute // beyond the measured time: a cell that hangs ends the run
)

// A cell is one contender at one number of calls in flight, measured once.
type cell struct {
	Contender      string
	InFlight       int
	Round          int
	Window, Warmup time.Duration
	Queue          string // of its own, so that cells cannot meet
	Profile        string
}

// sample is what one cell gave. The client fills in the first block, the
// parent, who sees all three processes, the second.
type sample struct {
	Calls     int     `json:"calls"`
	Seconds   float64 `json:"seconds"`
	P50       float64 `json:"p50_us"`
	P99       float64 `json:"p99_us"`
	Allocs    float64 `json:"client_allocs_per_call"` // of the whole process, measuring included
	Bytes     float64 `json:"client_bytes_per_call"`
	ClientCPU float64 `json:"client_cpu_s"`
	ClientRSS float64 `json:"client_rss_mib"` // peak

	Contender string  `json:"contender"`
	InFlight  int     `json:"in_flight"`
	Round     int     `json:"round"`
	ServerCPU float64 `json:"server_cpu_s"`
	ServerRSS float64 `json:"server_rss_mib"` // peak
	BrokerCPU float64 `json:"broker_cpu_s"`   // 0 if the broker is not on this machine
	BrokerRSS float64 `json:"broker_rss_mib"`
}

func (s sample) rate() float64 { return float64(s.Calls) / s.Seconds }
func (s sample) cpu() float64  { return (s.ClientCPU + s.ServerCPU + s.BrokerCPU) / float64(s.Calls) }

// measure runs every cell, one after another. A failed call ends the run: a
// figure from a cell with errors is not a result.
func measure(ctx context.Context, b broker, o options, progress io.Writer) ([]sample, error) {
	if o.cell.Profile != "" {
		if err := os.MkdirAll(o.cell.Profile, 0o755); err != nil {
			return nil, fmt.Errorf("--profile: %w", err)
		}
	}
	var all []sample
	for round := range o.rounds {
		for _, n := range o.inFlight {
			fmt.Fprintf(progress, "round %d of %d: %d in flight\n", round+1, o.rounds, n)
			for i := range o.contenders { // rotated, so that nobody always follows the same one
				c := o.cell
				c.Contender, c.InFlight, c.Round = o.contenders[(i+round)%len(o.contenders)], n, round
				c.Queue = fmt.Sprintf("bench.%d.%d", os.Getpid(), len(all))
				s, err := c.run(ctx, b.pid)
				if err != nil {
					return nil, fmt.Errorf("%s, %d in flight, round %d: %w", c.Contender, n, round+1, err)
				}
				all = append(all, s)
			}
		}
	}
	return all, nil
}

// run measures one cell with a server and a client process of its own.
func (c cell) run(ctx context.Context, brokerPID int) (s sample, err error) {
	ctx, cancel := context.WithTimeout(ctx, c.Warmup+c.Window+stuckAfter)
	defer cancel()
	server, err := c.start(ctx, "serve")
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, server.stop()) }()
	if err := server.expect("READY"); err != nil {
		return s, err
	}
	client, err := c.start(ctx, "load")
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, client.stop()) }()

	if err := client.expect("START"); err != nil {
		return s, err
	}
	serverCPU, brokerCPU := cpuSeconds(server.pid()), cpuSeconds(brokerPID)
	if err := client.expect("END"); err != nil {
		return s, err
	}
	serverCPU, brokerCPU = cpuSeconds(server.pid())-serverCPU, cpuSeconds(brokerPID)-brokerCPU
	if err := json.NewDecoder(client.out).Decode(&s); err != nil {
		return s, fmt.Errorf("read the client's sample: %w", err)
	}
	s.Contender, s.InFlight, s.Round = c.Contender, c.InFlight, c.Round
	s.ServerCPU, s.BrokerCPU = serverCPU, brokerCPU
	s.ServerRSS, s.BrokerRSS = memoryMiB(server.pid(), "VmHWM"), memoryMiB(brokerPID, "VmRSS")
	return s, nil
}

// childEnv tells a child which part of which cell it plays.
const childEnv = "BENCH_PART"

type assignment struct {
	Role string // serve or load
	Cell cell
}

func playPart(ctx context.Context, b broker, part string) error {
	var a assignment
	if err := json.Unmarshal([]byte(part), &a); err != nil {
		return fmt.Errorf("%s: %w", childEnv, err)
	}
	// A child ends when its standard input closes, so that none outlives a
	// parent that was killed.
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	contender, err := contenderByName(a.Cell.Contender)
	if err != nil {
		return err
	}
	if a.Role == "serve" {
		return a.Cell.serve(ctx, b, contender)
	}
	return a.Cell.load(ctx, b, contender)
}

// child is this program in another role.
type child struct {
	role string
	cmd  *exec.Cmd
	in   io.Closer
	out  *bufio.Reader
}

func (c cell) start(ctx context.Context, role string) (*child, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	part, err := json.Marshal(assignment{role, c})
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, self)
	cmd.Env = append(os.Environ(), childEnv+"="+string(part))
	cmd.Stderr = os.Stderr
	cmd.WaitDelay = closeTimeout
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	return &child{role, cmd, in, bufio.NewReader(out)}, cmd.Start()
}

func (c *child) pid() int { return c.cmd.Process.Pid }

func (c *child) expect(want string) error {
	line, err := c.out.ReadString('\n')
	if err != nil {
		return fmt.Errorf("%s ended before it said %s", c.role, want)
	}
	if got := strings.TrimSpace(line); got != want {
		return fmt.Errorf("%s said %q, want %s", c.role, got, want)
	}
	return nil
}

func (c *child) stop() error {
	c.in.Close()
	if err := c.cmd.Wait(); err != nil {
		return fmt.Errorf("%s: %w", c.role, err)
	}
	return nil
}

func (c cell) serve(ctx context.Context, b broker, contender Contender) error {
	stop, err := c.profile("server")
	if err != nil {
		return err
	}
	return errors.Join(contender.Serve(ctx, b, c.Queue, func() { fmt.Println("READY") }), stop())
}

// load keeps InFlight calls going, first to warm up and then to be counted.
func (c cell) load(ctx context.Context, b broker, contender Contender) error {
	client, err := contender.Dial(ctx, b, c.Queue, c.InFlight)
	if err != nil {
		return err
	}
	if _, err := c.callUntil(ctx, client, time.Now().Add(c.Warmup)); err != nil {
		return err
	}
	runtime.GC()
	stop, err := c.profile("client")
	if err != nil {
		return err
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fmt.Println("START")
	cpu, began := ownCPUSeconds(), time.Now()
	took, err := c.callUntil(ctx, client, began.Add(c.Window))
	s := sample{Calls: len(took), Seconds: time.Since(began).Seconds(), ClientCPU: ownCPUSeconds() - cpu}
	fmt.Println("END")
	runtime.ReadMemStats(&after)
	if err = errors.Join(err, stop()); err != nil {
		return err
	}
	if len(took) == 0 {
		return fmt.Errorf("no call ended within %s", c.Window)
	}
	slices.Sort(took)
	s.P50, s.P99 = microseconds(took[len(took)/2]), microseconds(took[len(took)*99/100])
	s.Allocs = float64(after.Mallocs-before.Mallocs) / float64(len(took))
	s.Bytes = float64(after.TotalAlloc-before.TotalAlloc) / float64(len(took))
	s.ClientRSS = memoryMiB(os.Getpid(), "VmHWM")
	end, cancelEnd := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancelEnd()
	return errors.Join(json.NewEncoder(os.Stdout).Encode(s), client.Close(end))
}

// callUntil returns how long each call took. The first wrong or failed one
// ends the cell.
func (c cell) callUntil(ctx context.Context, client Client, end time.Time) ([]time.Duration, error) {
	took := make([][]time.Duration, c.InFlight)
	failed := make([]error, c.InFlight)
	var workers sync.WaitGroup
	for i := range c.InFlight {
		took[i] = make([]time.Duration, 0, 256)
		workers.Go(func() {
			r, want := request(i)
			for began := time.Now(); began.Before(end); began = time.Now() {
				callCtx, cancel := context.WithTimeout(ctx, callTimeout)
				reply, err := client.Call(callCtx, r)
				cancel()
				if err == nil && reply.Result != want {
					err = fmt.Errorf("wrong reply: got %q, want %q", reply.Result, want)
				}
				if err != nil {
					failed[i] = err
					return
				}
				took[i] = append(took[i], time.Since(began))
			}
		})
	}
	workers.Wait()
	for _, err := range failed {
		if err != nil {
			return nil, err // one is enough: a thousand callers fail alike
		}
	}
	return slices.Concat(took...), nil
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// profile starts a CPU profile. The function that it returns ends it and adds
// the profile of allocations since the process began.
func (c cell) profile(role string) (stop func() error, err error) {
	if c.Profile == "" {
		return func() error { return nil }, nil
	}
	base := filepath.Join(c.Profile, fmt.Sprintf("%s-%d-%s", c.Contender, c.InFlight, role))
	cpu, err := os.Create(base + ".cpu")
	if err != nil {
		return nil, fmt.Errorf("--profile: %w", err)
	}
	if err := pprof.StartCPUProfile(cpu); err != nil {
		return nil, fmt.Errorf("--profile: %w", err)
	}
	return func() error {
		pprof.StopCPUProfile()
		allocs, err := os.Create(base + ".allocs")
		if err != nil {
			return err
		}
		return errors.Join(pprof.Lookup("allocs").WriteTo(allocs, 0), allocs.Close(), cpu.Close())
	}, nil
}
