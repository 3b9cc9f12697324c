package service

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"warren.example/messaging/contract"
)

type settings struct {
	Prefetch int           `default:"10"`
	Drain    time.Duration `split_words:"true" default:"1s"`
}

func (s *settings) Validate() error {
	if s.Prefetch < 1 {
		return fmt.Errorf("WARREN_PREFETCH=%d: want 1 or more", s.Prefetch)
	}
	return nil
}

func TestLoadNamesWhatItRefuses(t *testing.T) {
	for name, tc := range map[string]struct{ settings, want string }{
		"a misspelt setting":   {"WARREN_PREFTECH=5", "WARREN_PREFTECH: unknown setting"},
		"a value of no sense":  {"WARREN_PREFETCH=many", "WARREN_PREFETCH=many: not a int"},
		"a bare number":        {"WARREN_DRAIN=5", "WARREN_DRAIN=5: not a time.Duration"},
		"out of range":         {"WARREN_PREFETCH=0", "WARREN_PREFETCH=0: want 1 or more"},
		"two problems at once": {"WARREN_PREFTECH=5 WARREN_PREFETCH=0", "WARREN_PREFTECH: unknown setting\nWARREN_PREFETCH=0: want 1 or more"},
		"all well":             {"WARREN_PREFETCH=7", ""},
	} {
		t.Run(name, func(t *testing.T) {
			for kv := range strings.FieldsSeq(tc.settings) {
				key, value, _ := strings.Cut(kv, "=")
				t.Setenv(key, value)
			}
			var s settings
			err := Load(&s)
			if got := fmt.Sprint(err); tc.want != "" && got != tc.want {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if tc.want == "" && (err != nil || s.Prefetch != 7 || s.Drain != time.Second) {
				t.Errorf("got %+v, %v", s, err)
			}
		})
	}
}

func TestAdminTellsLiveFromReady(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	away := errors.New("broker away")
	a := Admin{Addr: "127.0.0.1:0", Ready: func() error { return away }, Registry: prometheus.NewRegistry()}
	mux := a.mux()
	addr, wait, err := listen(ctx, zap.NewNop(), a.Addr, mux)
	if err != nil {
		t.Fatal(err)
	}
	get := func(path string) string {
		r, err := http.Get("http://" + addr + path)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Body.Close()
		b, _ := io.ReadAll(r.Body)
		return fmt.Sprint(r.StatusCode, " ", strings.TrimSpace(string(b)))
	}
	for path, want := range map[string]string{"/livez": "200 ok", "/readyz": "503 broker away", "/metrics": "200 "} {
		if got := get(path); got != want {
			t.Errorf("%s: got %q, want %q", path, got, want)
		}
	}
	if _, _, err := listen(ctx, zap.NewNop(), addr, mux); err == nil || !strings.Contains(err.Error(), addr) {
		t.Errorf("a taken port: got %v, want an error that names %s", err, addr)
	}
	cancel()
	wait()
	if _, err := http.Get("http://" + addr + "/livez"); err == nil {
		t.Error("it still serves after its context ended")
	}
}

func TestInstancesAreValidAndDiffer(t *testing.T) {
	var a, b Settings
	_, _ = a.Validate(), b.Validate() // they lack all else
	if a.Instance == b.Instance {
		t.Errorf("two processes are both %q: the second could not declare its reply queue", a.Instance)
	}
	if err := contract.CheckReplyKey(contract.UserClient, a.Instance); err != nil {
		t.Error(err)
	}
}

func TestUsageNamesEverySetting(t *testing.T) {
	usage := Usage(new(Settings))
	for _, want := range []string{"WARREN_AMQP_CA_FILE  ", "WARREN_LOG_LEVEL  ", "WARREN_EVENTS  "} {
		if !strings.Contains(usage, want) {
			t.Errorf("%s is not in the usage", want)
		}
	}
}
