package topology

import (
	"bytes"
	"flag"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "write the chart's definitions.json from the topology")

// The chart's broker is declared by this file, every other one by Declare.
func TestTheChartsDefinitionsAreThisTopology(t *testing.T) {
	const file = "../../../charts/rabbitmq/files/definitions.json"
	want, err := Definitions(Version{4, 3, 0}) // the chart's image is 4.x
	if err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(file, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs from the topology: go test ./topology -run Definitions -update", file)
	}
}
