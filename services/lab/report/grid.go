package report

import (
	"io"
	"strings"

	"github.com/jedib0t/go-pretty/v6/table"
	"github.com/jedib0t/go-pretty/v6/text"
)

// Column is a column of a Grid: its heading, and how wide it may be before its
// cells are wrapped.
type Column struct {
	Heading string
	Width   int
}

// Grid writes a table. A line break in a cell is kept.
func Grid(w io.Writer, columns []Column, rows [][]string) {
	t := table.NewWriter()
	t.SetOutputMirror(w)
	style := table.StyleLight
	style.Options = table.Options{SeparateHeader: true, SeparateRows: true, SeparateColumns: true}
	style.Format.Header = text.FormatDefault
	t.SetStyle(style)
	t.SuppressTrailingSpaces()
	heading, configs := table.Row{}, []table.ColumnConfig{}
	for i, c := range columns {
		heading = append(heading, c.Heading)
		configs = append(configs, table.ColumnConfig{Number: i + 1, WidthMax: c.Width, WidthMaxEnforcer: wrap})
	}
	t.AppendHeader(heading)
	t.SetColumnConfigs(configs)
	for _, cells := range rows {
		row := table.Row{}
		for _, cell := range cells {
			row = append(row, cell)
		}
		t.AppendRow(row)
	}
	t.Render()
}

// wrap wraps each line by itself; WrapSoft alone would join them.
func wrap(cell string, width int) string {
	var lines []string
	for line := range strings.Lines(cell) {
		lines = append(lines, text.WrapSoft(strings.TrimSuffix(line, "\n"), width))
	}
	return strings.Join(lines, "\n")
}
