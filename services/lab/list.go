package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"warren.example/lab/report"
	"warren.example/lab/scenario"
)

func listCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the scenarios: what breaks, what must hold, what the control shows",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			switch output {
			case "json":
				return listJSON(cmd)
			case "markdown":
				listMarkdown(cmd)
				return nil
			case "topics":
				listTopics(cmd)
				return nil
			case "names":
				fmt.Fprintln(cmd.OutOrStdout(), strings.Join(scenarioNames(), "\n"))
				return nil
			case "table":
				listTable(cmd)
				return nil
			}
			return usageError("--output %s: want table, json, names, markdown or topics", output)
		},
	}
	cmd.Flags().StringVar(&output, "output", "table", "table, json, names, markdown (for a page in docs) or topics (for README.md)")
	return cmd
}

func listTable(cmd *cobra.Command) {
	var rows [][]string
	for _, s := range scenario.All() {
		var controls []string
		for _, c := range s.Controls {
			controls = append(controls, c.Name+": "+c.Shows)
		}
		rows = append(rows, []string{s.Name, s.Broke, s.Promise, strings.Join(controls, "\n"), strings.Join(s.Needs.Substrates(), " ") + "\n" + s.Needs.Versions()})
	}
	report.Grid(cmd.OutOrStdout(), []report.Column{
		{Heading: "scenario", Width: 18}, {Heading: "what breaks", Width: 28},
		{Heading: "what must hold", Width: 28}, {Heading: "control: what it shows", Width: 34},
		{Heading: "--on, RabbitMQ", Width: 14},
	}, rows)
}

func listMarkdown(cmd *cobra.Command) {
	out := cmd.OutOrStdout()
	fmt.Fprint(out, "| what breaks | what must hold | what the control shows | scenario |\n|---|---|---|---|\n")
	for _, s := range scenario.All() {
		var controls []string
		for _, c := range s.Controls {
			controls = append(controls, c.Name+": "+c.Shows)
		}
		fmt.Fprintf(out, "| %s | %s | %s | %s |\n", s.Broke, s.Promise, strings.Join(controls, "<br>"), fileLink(s, "../"))
	}
}

// listTopics is a row for each topic, in the order of their first scenarios.
func listTopics(cmd *cobra.Command) {
	var topics []string
	links := map[string][]string{}
	for _, s := range scenario.All() {
		if links[s.Topic] == nil {
			topics = append(topics, s.Topic)
		}
		links[s.Topic] = append(links[s.Topic], fileLink(s, ""))
	}
	fmt.Fprint(cmd.OutOrStdout(), "| topic | scenarios |\n|---|---|\n")
	for _, topic := range topics {
		fmt.Fprintf(cmd.OutOrStdout(), "| %s | %s |\n", topic, strings.Join(links[topic], " · "))
	}
}

func fileLink(s scenario.Scenario, root string) string {
	return fmt.Sprintf("[%s](%sservices/lab/scenario/%s.go)", s.Name, root, strings.ReplaceAll(s.Name, "-", "_"))
}

func listJSON(cmd *cobra.Command) error {
	type control struct {
		Name  string `json:"name"`
		Shows string `json:"shows"`
	}
	type listed struct {
		Name       string    `json:"name"`
		Topic      string    `json:"topic"`
		Broke      string    `json:"broke"`
		Promise    string    `json:"promise"`
		Controls   []control `json:"controls"`
		Substrates []string  `json:"substrates"`
		Versions   string    `json:"versions"` // of RabbitMQ
		Nodes      int       `json:"nodes"`    // of the broker, at least
	}
	all := []listed{}
	for _, s := range scenario.All() {
		l := listed{s.Name, s.Topic, s.Broke, s.Promise, []control{}, s.Needs.Substrates(), s.Needs.Versions(), max(1, s.Needs.Nodes)}
		for _, c := range s.Controls {
			l.Controls = append(l.Controls, control{c.Name, c.Shows})
		}
		all = append(all, l)
	}
	enc := json.NewEncoder(cmd.OutOrStdout())
	enc.SetIndent("", "  ")
	return enc.Encode(all)
}
