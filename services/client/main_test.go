package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"strings"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// output is a buffer that several goroutines may write to.
type output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// settings makes env the only settings with our prefix until the test ends.
func settings(t *testing.T, env map[string]string) {
	t.Helper()
	for _, kv := range os.Environ() {
		if name, value, _ := strings.Cut(kv, "="); strings.HasPrefix(name, "WARREN_") {
			t.Setenv(name, value) // puts it back afterwards
			os.Unsetenv(name)
		}
	}
	for name, value := range env {
		t.Setenv(name, value)
	}
}

// cli runs the command to its end.
func cli(ctx context.Context, args ...string) (status int, stdout, stderr string) {
	var out, err output
	status = run(ctx, args, &out, &err)
	return status, out.String(), err.String()
}

var nowhere = map[string]string{"WARREN_AMQP_URL": "amqp://calc-client:s3cret@127.0.0.1:1/calc"}

// Whatever is wrong is named in one line, before anything touches the network:
// the broker of these cases does not exist.
func TestBadInputIsRefusedByName(t *testing.T) {
	long := strings.Repeat("9", 65)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	taken := l.Addr().String()
	for name, tc := range map[string]struct {
		env  map[string]string
		args string
		want string // the line on standard error
	}{
		"unknown command":         {nil, "ask", `client: unknown command "ask" for "client"`},
		"unknown flag":            {nil, "call --no-such add 1 2", "client call: unknown flag: --no-such"},
		"no operation":            {nil, "call", "client call: no operation; there are add, divide,"},
		"unknown operation":       {nil, "call ad 1 2", `client call: operation "ad": unknown; there are add,`},
		"too few operands":        {nil, "call add 1", "client call: operands: add takes 2, got 1"},
		"empty operand list":      {nil, "call sum", "client call: operands: sum takes 1 to 1000, got 0"},
		"operand too long":        {nil, "call add 1 " + long, "client call: operand 2: 65 characters, at most 64"},
		"operand not text":        {nil, "call add 1 \xff", "client call: operand 2: not UTF-8"},
		"body too long":           {nil, "call sum" + strings.Repeat(" "+long[:64], 600), "client call: operands: 40"},
		"flag after operation":    {nil, "call add 1 2 --output json", "client call: --output: a flag among the operands; flags stand before the operation"},
		"timeout 0":               {nil, "call --timeout 0s add 1 2", "client call: --timeout 0s: at least 1ms, the broker's unit"},
		"output":                  {nil, "call --output xml add 1 2", "client call: --output xml: want text or json"},
		"if-no-server":            {nil, "call --if-no-server cry add 1 2", "client call: --if-no-server cry: want wait or fail"},
		"empty id":                {nil, "call --id= add 1 2", `client call: --id "": want 1 to 64 bytes of UTF-8`},
		"long id":                 {nil, "call --id " + long + " add 1 2", "want 1 to 64 bytes of UTF-8"},
		"unknown setting":         {map[string]string{"WARREN_AMQP_URI": "x"}, "call add 1 2", "client call: WARREN_AMQP_URI: unknown setting"},
		"guest":                   {map[string]string{"WARREN_AMQP_URL": "amqp://guest:guest@127.0.0.1/calc"}, "call add 1 2", "WARREN_AMQP_USERNAME=guest"},
		"events":                  {map[string]string{"WARREN_EVENTS": "stderr"}, "call add 1 2", "client call: WARREN_EVENTS=stderr: want off or stdout"},
		"log level":               {map[string]string{"WARREN_LOG_LEVEL": "loud"}, "load --count 1", "client load: WARREN_LOG_LEVEL=loud: want debug, info, warn or error"},
		"instance":                {map[string]string{"WARREN_INSTANCE": "A B"}, "load --count 1", "client load: WARREN_INSTANCE=A B: "},
		"admin address":           {map[string]string{"WARREN_ADMIN_ADDR": "256.0.0.1:1"}, "load --count 1", "client load: WARREN_ADMIN_ADDR=256.0.0.1:1: listen on"},
		"taken admin port":        {map[string]string{"WARREN_ADMIN_ADDR": taken}, "load --count 1", "client load: WARREN_ADMIN_ADDR=" + taken + ": listen on"},
		"load without an end":     {nil, "load", "client load: --count or --duration: one is required; a load has an end"},
		"both ends":               {nil, "load --endless --count 1", "client load: --endless: not with --count or --duration"},
		"count 0":                 {nil, "load --count 0", "client load: --count 0: at least 1"},
		"negative count":          {nil, "load --count -1", `client load: invalid argument "-1" for "--count"`},
		"duration 0":              {nil, "load --duration 0s", "client load: --duration 0s: more than 0"},
		"both loops":              {nil, "load --count 1 --rate 1 --in-flight 1", "client load: --rate and --in-flight: one or the other"},
		"rate 0":                  {nil, "load --count 1 --rate 0", "client load: --rate 0: more than 0, at most 1e+06"},
		"rate NaN":                {nil, "load --count 1 --rate NaN", "client load: --rate NaN: more than 0"},
		"in-flight 0":             {nil, "load --count 1 --in-flight 0", "client load: --in-flight 0: 1 to 100000"},
		"confirm":                 {nil, "load --count 1 --confirm never", "client load: --confirm never: want one, batch or async"},
		"batch size without them": {nil, "load --count 1 --batch-size 5", "client load: --batch-size 5: only with --confirm batch"},
		"batch size":              {nil, "load --count 1 --confirm batch --batch-size 0", "client load: --batch-size 0: 1 to 2048"},
		"operations":              {nil, "load --count 1 --operations add,ad", "client load: --operations ad: unknown; there are add,"},
		"no operations":           {nil, "load --count 1 --operations=", "client load: --operations: empty"},
		"argument of load":        {nil, "load --count 1 add", `client load: unknown command "add" for "client load"`},
	} {
		t.Run(name, func(t *testing.T) {
			settings(t, nowhere)
			for k, v := range tc.env {
				t.Setenv(k, v)
			}
			status, stdout, stderr := cli(t.Context(), strings.Split(tc.args, " ")...)
			if status != usage.Status || stdout != "" || !strings.Contains(stderr, tc.want) {
				t.Errorf("got status %d, stdout %q, stderr %q; want status %d, no stdout, stderr with %q", status, stdout, stderr, usage.Status, tc.want)
			}
			if strings.Contains(stderr, "s3cret") {
				t.Errorf("the password is in %q", stderr)
			}
		})
	}
}

// All problems at once: nobody wants to learn of them one by one.
func TestAllProblemsAreNamedAtOnce(t *testing.T) {
	settings(t, nowhere)
	_, _, stderr := cli(t.Context(), "call", "--timeout=0s", "--output=xml", "add", "1")
	for _, want := range []string{"--timeout 0s", "--output xml", "add takes 2"} {
		if !strings.Contains(stderr, want) {
			t.Errorf("got %q, want it to name %q", stderr, want)
		}
	}
}

func TestHelpDocumentsEverySettingStatusAndLesson(t *testing.T) {
	_, root, _ := cli(t.Context(), "--help")
	for _, setting := range []string{"WARREN_AMQP_URL", "WARREN_AMQP_PASSWORD_FILE", "WARREN_LOG_LEVEL", "WARREN_EVENTS", "WARREN_RUN", "WARREN_INSTANCE", "WARREN_ADMIN_ADDR", "WARREN_FAULTS"} {
		if !strings.Contains(root, setting) {
			t.Errorf("client --help does not name %s", setting)
		}
	}
	for _, command := range []string{"call", "load"} {
		_, help, _ := cli(t.Context(), command, "--help")
		for _, e := range endings {
			if !strings.Contains(help, e.Name) || !strings.Contains(help, e.Meaning) {
				t.Errorf("client %s --help does not explain %s", command, e.Name)
			}
		}
		long, flags, _ := strings.Cut(help, "Usage:")
		for _, l := range lessons {
			if !strings.Contains(long, "--"+l.name) || strings.Contains(flags, "--"+l.name) {
				t.Errorf("client %s --help: want --%s under Lessons and not among the flags", command, l.name)
			}
		}
	}
}
