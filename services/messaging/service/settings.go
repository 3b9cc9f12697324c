package service

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"runtime/debug"
	"strings"
	"text/tabwriter"

	"github.com/kelseyhightower/envconfig"
	"go.uber.org/zap"

	"warren.example/messaging/event"
	"warren.example/messaging/session"
)

// Settings are those that every service has. A service embeds them in its own.
type Settings struct {
	AMQP     session.Config
	LogLevel string `split_words:"true" default:"info" desc:"debug, info, warn or error; the log goes to standard error"`
	Events   string `default:"off" desc:"off, or stdout: the life of each request as JSON lines on standard output"`
	Run      string `default:"run" desc:"name of the run that the events belong to"`
	Instance string `desc:"unique name of this process, a-z, 0-9 and -; empty: host name and a random part"`
	Faults   bool   `default:"false" desc:"true: POST /faults, /faults/release and /crash on the admin port"`
}

var (
	instanceName = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)
	notInstance  = regexp.MustCompile(`[^a-z0-9]+`)
)

// Validate says everything that is wrong, and gives the process its name if it
// has none.
func (s *Settings) Validate() error {
	if s.Instance == "" {
		// The random part matters: a reply queue is exclusive, so of two processes
		// with one name the second would never connect.
		host, _ := os.Hostname()
		host = notInstance.ReplaceAllString(strings.ToLower(host), "-")
		s.Instance = strings.Trim(host[:min(len(host), 40)]+"-"+strings.ToLower(rand.Text()[:8]), "-")
	}
	errs := []error{s.AMQP.Validate()}
	if _, err := zap.ParseAtomicLevel(s.LogLevel); err != nil {
		errs = append(errs, fmt.Errorf("WARREN_LOG_LEVEL=%s: want debug, info, warn or error", s.LogLevel))
	}
	if s.Events != "off" && s.Events != "stdout" {
		errs = append(errs, fmt.Errorf("WARREN_EVENTS=%s: want off or stdout", s.Events))
	}
	if len(s.Run) == 0 || len(s.Run) > 64 {
		errs = append(errs, fmt.Errorf("WARREN_RUN=%s: want 1 to 64 characters", s.Run))
	}
	if !instanceName.MatchString(s.Instance) {
		errs = append(errs, fmt.Errorf("WARREN_INSTANCE=%s: want 1 to 64 of a-z, 0-9 and -", s.Instance))
	}
	return errors.Join(errs...)
}

// Recorder is the ledger of this process, or nil if none is wanted.
func (s *Settings) Recorder(stdout io.Writer) *event.Recorder {
	if s.Events != "stdout" {
		return nil
	}
	return event.NewRecorder(stdout, s.Run, s.Instance)
}

// Usage is a table of every setting of cfg: name, default and what it is for,
// made from the same tags that Load reads.
func Usage(cfg any) string {
	var text strings.Builder
	table := tabwriter.NewWriter(&text, 0, 0, 2, ' ', 0)
	const rows = `{{range .}}{{usage_key .}}	{{with usage_default .}}{{.}}{{else}}-{{end}}	{{usage_description .}}
{{end}}`
	if err := errors.Join(envconfig.Usagef(Prefix, cfg, table, rows), table.Flush()); err != nil {
		panic(fmt.Sprintf("usage of %T: %v", cfg, err)) // the template is a constant
	}
	return text.String()
}

// version is set by the linker where images are built: a module that is not in
// its repository's root gets none from Go.
var version string

// Version is what the build knows about itself: version and commit.
func Version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	text := cmp.Or(version, info.Main.Version)
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			text += " " + s.Value
		case s.Key == "vcs.modified" && s.Value == "true":
			text += " (modified)"
		}
	}
	return text
}
