package session

import "github.com/prometheus/client_golang/prometheus"

// Metrics counts what the sessions of one process do. A nil *Metrics counts
// nothing.
type Metrics struct {
	up       *prometheus.GaugeVec
	epochs   *prometheus.CounterVec
	blocked  prometheus.Gauge
	outcomes [Unknown + 1]prometheus.Counter
}

// NewMetrics registers the metrics. Call it once per registry.
func NewMetrics(r prometheus.Registerer) *Metrics {
	m := &Metrics{
		up:      prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "warren_session_up", Help: "Connections of this role that do their work now."}, []string{"role"}),
		epochs:  prometheus.NewCounterVec(prometheus.CounterOpts{Name: "warren_session_epochs_total", Help: "Connections opened; every one after the first is a reconnect."}, []string{"role"}),
		blocked: prometheus.NewGauge(prometheus.GaugeOpts{Name: "warren_session_blocked", Help: "1 while the broker blocks publishers (memory or disk alarm)."}),
	}
	outcomes := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "warren_publish_outcomes_total", Help: "How publishes ended."}, []string{"outcome"})
	for o := NotWritten; o <= Unknown; o++ {
		m.outcomes[o] = outcomes.WithLabelValues(o.String())
	}
	r.MustRegister(m.up, m.epochs, m.blocked, outcomes)
	return m
}

func (m *Metrics) opened(role string, up bool) {
	if m == nil {
		return
	}
	if !up {
		m.up.WithLabelValues(role).Dec()
		return
	}
	m.up.WithLabelValues(role).Inc()
	m.epochs.WithLabelValues(role).Inc()
}

func (m *Metrics) setBlocked(b bool) {
	if m == nil {
		return
	}
	m.blocked.Set(0)
	if b {
		m.blocked.Set(1)
	}
}

func (m *Metrics) settled(o Outcome) {
	if m != nil {
		m.outcomes[o].Inc()
	}
}
