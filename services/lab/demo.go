package main

import (
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"warren.example/lab/report"
	"warren.example/lab/scenario"
)

// shown is what the demo breaks, in this order, where it can: on one machine it
// takes less than two minutes.
var shown = []string{"killed-before-ack", "killed-after-reply", "broker-killed", "pod-deleted", "poison", "deadline"}

func demoCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Watch what breaks, and what holds, in a few minutes",
		Long: `Watch what breaks, and what holds, in a few minutes.

Real processes, on Kubernetes pods, are killed under a real RabbitMQ. Before each scenario the demo
says what will break and what to expect; at the end stands the table of verdicts.`,
		Args: cobra.NoArgs,
	}
	where := placeFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		chosen, err := scenario.Find(shown...)
		if err != nil {
			return err
		}
		chosen = slices.DeleteFunc(chosen, func(s scenario.Scenario) bool { return s.Needs.Kubernetes && where.on == "local" })
		live := report.NewLive(cmd.OutOrStdout()) // the story is the output
		live.Say("Starting a RabbitMQ of its own; nothing of it stays behind.")
		results, err := play(cmd.Context(), where, chosen, 1, live, func(i int, s scenario.Scenario) {
			live.Say(fmt.Sprintf("\n%d of %d: %s", i+1, len(chosen), s.Name))
			live.Say("    what breaks               " + s.Broke)
			live.Say("    what to expect            " + s.Promise)
			for _, c := range s.Controls {
				live.Say(fmt.Sprintf("    then, without the safety  %s: %s", c.Name, c.Shows))
			}
		})
		if results == nil {
			return err
		}
		if err := errors.Join(conclude(cmd, "table", results), err); err != nil {
			return err
		}
		live.Say("\nEvery promise held, and every control failed as it must.\nNext: lab list; lab run NAME; lab explain ID tells the life of one request of the last run.")
		return nil
	}
	return cmd
}
