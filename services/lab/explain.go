package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"warren.example/lab/ledger"
)

func explainCommand() *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "explain ID",
		Short: "Tell the life of one request, from the ledger of the last run",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if file == "" {
				last, err := ledgerFile()
				if err != nil {
					return setupError(err)
				}
				if _, err := os.Stat(last); os.IsNotExist(err) {
					return usageError("no run is on record yet: lab run NAME, or name a file by --ledger")
				}
				file = last
			}
			f, err := os.Open(file)
			if err != nil {
				return usageError("--ledger: %v", err)
			}
			defer f.Close()
			l, err := ledger.Read(f)
			if err != nil {
				return usageError("ledger %s: %v", file, err)
			}
			story := l.Explain(args[0])
			if story == "" {
				return usageError("request %s: not in the ledger %s", args[0], file)
			}
			fmt.Fprintln(cmd.OutOrStdout(), story)
			return nil
		},
	}
	cmd.Flags().StringVar(&file, "ledger", "", "JSON lines of a run; default: the last one's")
	return cmd
}
