package main

import (
	"errors"
	"fmt"
	"time"

	"warren.example/messaging/contract"
	"warren.example/messaging/database"
	"warren.example/messaging/service"
)

// Config is every setting of the server, read once. The name of a variable is
// WARREN_ and the field's name in capitals with underscores.
type Config struct {
	service.Settings

	AdminAddr    string        `split_words:"true" default:"127.0.0.1:9101" desc:"host:port of /livez, /readyz and /metrics; empty: none"`
	Prefetch     int           `default:"100" desc:"most requests in hand, and so the most that a crash of this server makes the broker deliver again; 1 to 65535"`
	Concurrency  int           `default:"32" desc:"most requests worked on at once; the others in hand wait; 1 to 65535"`
	DrainTimeout time.Duration `split_words:"true" default:"20s" desc:"longest that requests in hand may take to finish after SIGTERM; 0s to 10m"`

	Database             string `desc:"of the calculator's memory: SQLite file, or postgres://user@host:port/database?sslmode=… for servers on several machines; empty: the memory's operations are UNIMPLEMENTED"`
	DatabasePasswordFile string `split_words:"true" desc:"file with the password of the memory's PostgreSQL, read at every connect"`

	// The lessons. Each takes one promise away, to be watched failing.
	AutoAck        bool          `split_words:"true" default:"false" desc:"lesson. true: the broker forgets a request when it is sent"`
	AckBeforeReply bool          `split_words:"true" default:"false" desc:"lesson. true: ack first, reply second"`
	ReplyConfirm   bool          `split_words:"true" default:"true" desc:"lesson. false: do not wait for a reply's confirm"`
	Idempotency    bool          `default:"true" desc:"lesson. false: a request that comes twice changes the memory twice"`
	Drain          bool          `default:"true" desc:"lesson. false: leave at once on SIGTERM"`
	DeadlineCheck  bool          `split_words:"true" default:"true" desc:"lesson. false: work for callers who have given up"`
	Recover        bool          `default:"true" desc:"lesson. false: a panic takes the server down"`
	OnInvalid      string        `split_words:"true" default:"dead-letter" desc:"lesson. requeue: unreadable requests go back into the queue"`
	WorkDelay      time.Duration `split_words:"true" default:"0s" desc:"lesson. Every piece of work takes this much longer; 0s to 10m"`
	CrashOn        string        `split_words:"true" desc:"lesson. Die, as by SIGKILL, at the start of work on this operation"`
	PanicOn        string        `split_words:"true" desc:"lesson. Panic in the work on this operation"`
}

// The values of WARREN_ON_INVALID.
const (
	invalidDeadLetter = "dead-letter"
	invalidRequeue    = "requeue"
)

// Validate says everything that is wrong, not only the first thing.
func (c *Config) Validate() error {
	errs := []error{c.Settings.Validate()}
	wrong := func(name string, value any, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s_%s=%v: %s", service.Prefix, name, value, fmt.Sprintf(format, args...)))
	}
	if err := database.Check(c.Database, c.DatabasePasswordFile); err != nil {
		errs = append(errs, err)
	}
	if c.Faults && c.AdminAddr == "" {
		wrong("FAULTS", c.Faults, "needs WARREN_ADMIN_ADDR")
	}
	if c.Prefetch < 1 || c.Prefetch > 65535 {
		wrong("PREFETCH", c.Prefetch, "want 1 to 65535; 0 would mean unlimited to the broker")
	}
	if c.Concurrency < 1 || c.Concurrency > 65535 {
		wrong("CONCURRENCY", c.Concurrency, "want 1 to 65535")
	}
	for name, d := range map[string]time.Duration{"DRAIN_TIMEOUT": c.DrainTimeout, "WORK_DELAY": c.WorkDelay} {
		if d < 0 || d > 10*time.Minute {
			wrong(name, d, "want 0s to 10m")
		}
	}
	if c.OnInvalid != invalidDeadLetter && c.OnInvalid != invalidRequeue {
		wrong("ON_INVALID", c.OnInvalid, "want %s or %s", invalidDeadLetter, invalidRequeue)
	}
	for name, op := range map[string]string{"CRASH_ON": c.CrashOn, "PANIC_ON": c.PanicOn} {
		if op != "" && !known(contract.Operation(op)) {
			wrong(name, op, "no such operation; there are %v", contract.Operations())
		}
	}
	return errors.Join(errs...)
}

// lessons names the switches that take a promise away, for one warning at start.
func (c *Config) lessons() []string {
	var on []string
	for _, s := range []struct {
		name string
		on   bool
		say  any
	}{
		{"AUTO_ACK", c.AutoAck, c.AutoAck},
		{"ACK_BEFORE_REPLY", c.AckBeforeReply, c.AckBeforeReply},
		{"REPLY_CONFIRM", !c.ReplyConfirm, c.ReplyConfirm},
		{"IDEMPOTENCY", !c.Idempotency, c.Idempotency},
		{"DRAIN", !c.Drain, c.Drain},
		{"DEADLINE_CHECK", !c.DeadlineCheck, c.DeadlineCheck},
		{"RECOVER", !c.Recover, c.Recover},
		{"ON_INVALID", c.OnInvalid != invalidDeadLetter, c.OnInvalid},
		{"WORK_DELAY", c.WorkDelay != 0, c.WorkDelay},
		{"CRASH_ON", c.CrashOn != "", c.CrashOn},
		{"PANIC_ON", c.PanicOn != "", c.PanicOn},
	} {
		if s.on {
			on = append(on, fmt.Sprintf("%s_%s=%v", service.Prefix, s.name, s.say))
		}
	}
	return on
}

func known(op contract.Operation) bool {
	var refused *contract.Error
	return !errors.As(op.Check(0), &refused) || refused.Code != contract.Unimplemented
}

func usage() string {
	return `calculator-server answers the requests in calc.requests until it gets SIGTERM.

It takes no arguments, only -h and --version. These environment variables are
its settings; others that begin with WARREN_ are refused.

` + service.Usage(&Config{})
}
