// Package report shows results: a table for people, JSON and JUnit for
// machines, and a line that lives while a scenario runs.
package report

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"warren.example/lab/scenario"
)

// Columns is how wide the table is at most.
const Columns = 120

// Table writes one row for each result.
func Table(w io.Writer, results []scenario.Result) {
	var rows [][]string
	for _, r := range results {
		var controls []string
		for _, c := range r.Controls {
			controls = append(controls, c.Name+": "+string(c.Verdict))
		}
		if r.Verdict == scenario.Skipped { // it has no controls, then
			controls = []string{r.Reason}
		}
		promise := strings.Join(append([]string{r.Scenario.Promise}, r.Notes...), "\n")
		rows = append(rows, []string{r.Scenario.Name, r.Scenario.Broke, promise, strings.Join(controls, "\n"), string(r.Verdict),
			fmt.Sprintf("%5.1f", r.Took.Seconds())})
	}
	Grid(w, []Column{{"scenario", 18}, {"what broke", 22}, {"promise", 22}, {"control", 24}, {"verdict", 12}, {"s", 5}}, rows)
}

// Details writes, for each result that is neither HELD nor SKIPPED, why, the
// lives of the requests that show it, the last log lines of the processes and
// the command to run it again.
func Details(w io.Writer, results []scenario.Result, again func(name string) string) {
	for _, r := range results {
		if r.Verdict == scenario.Held || r.Verdict == scenario.Skipped {
			continue
		}
		fmt.Fprintf(w, "\n%s is %s: %s\n", r.Scenario.Name, r.Verdict, r.Reason)
		for _, c := range r.Controls {
			if c.Verdict != scenario.FailedAsItMust {
				fmt.Fprintf(w, "  control %q %s: %s\n", c.Name, c.Verdict, c.Reason)
			}
		}
		for _, id := range slices.Sorted(maps.Keys(r.Lives)) {
			fmt.Fprintf(w, "  %s\n", r.Lives[id])
		}
		for _, name := range slices.Sorted(maps.Keys(r.Logs)) {
			const most = 8
			lines := r.Logs[name]
			fmt.Fprintf(w, "  last log lines of %s:\n", name)
			for _, line := range lines[max(0, len(lines)-most):] {
				fmt.Fprintf(w, "    %s\n", line)
			}
		}
		fmt.Fprintf(w, "  Again: %s\n", again(r.Scenario.Name))
	}
}

type jsonResult struct {
	Name     string        `json:"name"`
	Verdict  scenario.Word `json:"verdict"`
	Reason   string        `json:"reason"`
	Seconds  float64       `json:"seconds"`
	Controls []jsonControl `json:"controls"`
	Broker   string        `json:"broker"`
}

type jsonControl struct {
	Name    string        `json:"name"`
	Verdict scenario.Word `json:"verdict"`
}

// JSON writes an array, one object for each result.
func JSON(w io.Writer, results []scenario.Result) error {
	all := []jsonResult{}
	for _, r := range results {
		j := jsonResult{r.Scenario.Name, r.Verdict, r.Reason, seconds(r.Took), []jsonControl{}, r.Broker}
		for _, c := range r.Controls {
			j.Controls = append(j.Controls, jsonControl{c.Name, c.Verdict})
		}
		all = append(all, j)
	}
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(all)
}

func seconds(d time.Duration) float64 { return math.Round(d.Seconds()*10) / 10 }

type junitSuite struct {
	XMLName  xml.Name    `xml:"testsuite"`
	Name     string      `xml:"name,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"` // BROKEN
	Errors   int         `xml:"errors,attr"`   // INCONCLUSIVE
	Skipped  int         `xml:"skipped,attr"`
	Time     float64     `xml:"time,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Name    string        `xml:"name,attr"`
	Class   string        `xml:"classname,attr"`
	Time    float64       `xml:"time,attr"`
	Failure *junitMessage `xml:"failure"`
	Error   *junitMessage `xml:"error"`
	Skipped *junitMessage `xml:"skipped"`
	Output  string        `xml:"system-out,omitempty"`
}

type junitMessage struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// JUnit writes a test suite: BROKEN is a failure, INCONCLUSIVE an error.
func JUnit(w io.Writer, results []scenario.Result) error {
	suite := junitSuite{Name: "warren", Tests: len(results)}
	for _, r := range results {
		c := junitCase{Name: r.Scenario.Name, Class: "warren." + r.Broker, Time: seconds(r.Took)}
		suite.Time += c.Time
		message := &junitMessage{Message: string(r.Verdict) + ": " + r.Reason}
		for _, id := range slices.Sorted(maps.Keys(r.Lives)) {
			message.Text += r.Lives[id] + "\n"
		}
		if r.Evidence != "" {
			c.Output = fmt.Sprintf("promise: %s\n", r.Evidence)
		}
		for _, control := range r.Controls {
			c.Output += fmt.Sprintf("control %s: %s\n", control.Name, control.Verdict)
		}
		switch r.Verdict {
		case scenario.Held:
		case scenario.Skipped:
			suite.Skipped++
			c.Skipped = message
		case scenario.Inconclusive:
			suite.Errors++
			c.Error = message
		default:
			suite.Failures++
			c.Failure = message
		}
		suite.Cases = append(suite.Cases, c)
	}
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	enc := xml.NewEncoder(w)
	enc.Indent("", "  ")
	if err := enc.Encode(suite); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}

// Status is the exit status of a run: the worst of all results. A run of
// skipped scenarios alone is 0, but 3 where a skipped run must not look green.
func Status(results []scenario.Result, ci bool) int {
	const held, broken, inconclusive, setup = 0, 1, 2, 3
	status, skipped := held, 0
	for _, r := range results {
		switch r.Verdict {
		case scenario.Held:
		case scenario.Skipped:
			skipped++
		case scenario.Inconclusive:
			if status == held {
				status = inconclusive
			}
		default: // BROKEN, and whatever is not known to be good
			status = broken
		}
	}
	if ci && skipped == len(results) {
		return setup
	}
	return status
}
