package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"warren.example/lab/ledger"
	"warren.example/lab/report"
	"warren.example/lab/scenario"
	"warren.example/messaging/service"
)

func soakCommand() *cobra.Command {
	soak := &scenario.Soak{}
	var folder string
	cmd := &cobra.Command{
		Use:   "soak",
		Short: "Break one thing after the other for a while, as a seed draws them",
		Long: `Break one thing after the other for a while, as a seed draws them.

Under steady load servers, clients, the auditor, broker nodes and connections die, freeze,
leave and come back. The same seed draws the same faults in the same order on the same place.
At the end stands the verdict, and a folder from which 'lab replay' shows the run again.

Exit status: as that of 'lab run'.`,
		Example: `  lab soak --for 3m
  lab soak --for 30m --seed 7 --nodes 3
  lab soak --for 30m --on kind`,
		Args: cobra.NoArgs,
	}
	where := placeFlags(cmd)
	flags := cmd.Flags()
	flags.DurationVar(&soak.For, "for", 3*time.Minute, "how long things break, at least once each; the control and what settles come on top")
	flags.Uint64Var(&soak.Seed, "seed", 0, "draws the faults; default: one by chance, which is told")
	flags.StringVar(&folder, "bundle", "", "new folder for the run's events, seed, versions and faults; default: one beside the last run's ledger")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if soak.For < time.Second {
			return usageError("--for %s: at least 1s", soak.For)
		}
		if !flags.Changed("seed") {
			soak.Seed = uint64(rand.Uint32())
		}
		folder, err := makeBundle(folder, soak.Seed)
		if err != nil {
			return usageError("--bundle: %v", err)
		}
		live := report.NewLive(cmd.ErrOrStderr())
		live.Say(fmt.Sprintf("seed %d for %s", soak.Seed, soak.For))
		b := bundle{Began: time.Now(), Warren: service.Version(), On: where.on, Soak: soak}
		results, err := play(cmd.Context(), where, []scenario.Scenario{soak.Scenario()}, 1, live, nil)
		if results == nil {
			return errors.Join(err, os.Remove(folder))
		}
		r := results[0]
		b.Broker, b.Verdict, b.Reason = r.Broker, r.Verdict, r.Reason
		if err := b.write(folder); err != nil {
			return errors.Join(setupError(err))
		}
		report.Soak(cmd.OutOrStdout(), soak)
		report.Table(cmd.OutOrStdout(), results)
		report.Details(cmd.ErrOrStderr(), results, func(string) string {
			if flags.Changed("seed") {
				return strings.Join(os.Args, " ")
			}
			return fmt.Sprintf("%s --seed %d", strings.Join(os.Args, " "), soak.Seed)
		})
		fmt.Fprintf(cmd.OutOrStdout(), "\nAgain: lab replay %s\n       lab explain --ledger %s ID\n", folder, filepath.Join(folder, eventsFile))
		if status := report.Status(results, os.Getenv("CI") == "true"); status != exitHeld {
			err = errors.Join(&exitError{status: status}, err)
		}
		return err
	}
	return cmd
}

func replayCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "replay FOLDER",
		Short: "Show a soak again, and judge it again from its events",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := readBundle(args[0])
			if err != nil {
				return usageError("%s: %v", args[0], err)
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "%s  seed %d for %s on %s, %s, warren %s\n", b.Began.Format(time.DateTime), b.Seed, b.For, b.On, b.Broker, b.Warren)
			report.Soak(out, b.Soak)
			v := b.Judge()
			word, reason := v.Word()
			fmt.Fprintf(out, "%s\n%s\n", v.Summary(), strings.TrimSpace(string(word)+"  "+reason))
			if word != b.Verdict {
				fmt.Fprintf(out, "It was %s when it was run: %s\n", b.Verdict, b.Reason)
			}
			if status := report.Status([]scenario.Result{{Verdict: word}}, false); status != exitHeld {
				return &exitError{status: status}
			}
			return nil
		},
	}
}

// bundle is all that is needed to show a soak again.
type bundle struct {
	Began   time.Time     `json:"began"`
	Warren  string        `json:"warren"`
	On      string        `json:"on"`
	Broker  string        `json:"broker"`
	Verdict scenario.Word `json:"verdict"`
	Reason  string        `json:"reason"`
	*scenario.Soak
}

// The files of a bundle.
const (
	soakFile   = "soak.json"
	eventsFile = "events.jsonl"
)

// makeBundle makes the folder before anything is started, so that a run is not
// for nothing.
func makeBundle(folder string, seed uint64) (string, error) {
	if folder == "" {
		last, err := ledgerFile()
		if err != nil {
			return "", err
		}
		folder = filepath.Join(filepath.Dir(last), fmt.Sprintf("soak-%d-%s", seed, time.Now().Format("20060102T150405")))
	}
	if err := os.MkdirAll(filepath.Dir(folder), 0o700); err != nil {
		return "", err
	}
	return folder, os.Mkdir(folder, 0o700) // an older run's is not written into
}

func (b bundle) write(folder string) error {
	about, err := json.MarshalIndent(b, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(folder, soakFile), append(about, '\n'), 0o600); err != nil {
		return err
	}
	f, err := os.Create(filepath.Join(folder, eventsFile))
	if err != nil {
		return err
	}
	w := bufio.NewWriter(f)
	enc := json.NewEncoder(w)
	for _, line := range b.Lines {
		if err := enc.Encode(line); err != nil {
			return errors.Join(err, f.Close())
		}
	}
	return errors.Join(w.Flush(), f.Close())
}

func readBundle(folder string) (b bundle, err error) {
	about, err := os.Open(filepath.Join(folder, soakFile))
	if err != nil {
		return b, fmt.Errorf("not the folder of a soak: %w", err)
	}
	defer about.Close()
	dec := json.NewDecoder(about)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&b); err != nil {
		return b, fmt.Errorf("%s: %w", soakFile, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return b, fmt.Errorf("%s: more than one object", soakFile)
	}
	if b.Soak == nil {
		return b, fmt.Errorf("%s: no soak in it", soakFile)
	}
	events, err := os.Open(filepath.Join(folder, eventsFile))
	if err != nil {
		return b, err
	}
	defer events.Close()
	l, err := ledger.Read(events)
	if err != nil {
		return b, fmt.Errorf("%s: %w", eventsFile, err)
	}
	b.Lines = l.Lines()
	return b, nil
}
