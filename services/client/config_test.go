package main

import (
	"strings"
	"testing"
)

func TestSettingsAreRead(t *testing.T) {
	settings(t, map[string]string{
		"WARREN_AMQP_URL": "amqp://calc-client:s3cret@a:1/calc,amqp://calc-client:s3cret@b:2/calc", "WARREN_INSTANCE": "client-7",
		"WARREN_RUN": "r", "WARREN_EVENTS": "stdout", "WARREN_ADMIN_ADDR": "127.0.0.1:9103", "WARREN_FAULTS": "true",
	})
	cfg, err := loadConfig()
	if err != nil {
		t.Fatal(err)
	}
	if len(cfg.AMQP.URL) != 2 || cfg.Instance != "client-7" || cfg.Run != "r" || cfg.Recorder(&strings.Builder{}) == nil || cfg.AdminAddr != "127.0.0.1:9103" || !cfg.Faults {
		t.Errorf("got instance %q, run %q, events %q, admin %q, faults %v", cfg.Instance, cfg.Run, cfg.Events, cfg.AdminAddr, cfg.Faults)
	}
}
