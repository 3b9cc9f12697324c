package main

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"warren.example/messaging/contract"
)

type metrics struct {
	deliveries *prometheus.CounterVec
	results    *prometheus.CounterVec
	duplicates prometheus.Counter
	duration   prometheus.Histogram
}

// newMetrics registers the server's metrics. InHand is asked at every scrape.
func newMetrics(r prometheus.Registerer) *metrics {
	m := &metrics{
		deliveries: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "warren_server_deliveries_total", Help: "Deliveries, by what became of them."}, []string{"disposition"}),
		results:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "warren_server_computed_total", Help: "Requests evaluated, by operation and code; OK has a result."}, []string{"operation", "code"}),
		duplicates: prometheus.NewCounter(prometheus.CounterOpts{Name: "warren_server_duplicates_total", Help: "Requests that an idempotency key answered without evaluating them again."}),
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "warren_server_duration_seconds", Help: "From the delivery to its settling, waiting for a slot and for the reply's confirm included.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16)}),
	}
	r.MustRegister(m.deliveries, m.results, m.duplicates, m.duration)
	return m
}

func (m *metrics) watch(r prometheus.Registerer, s *server) {
	r.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "warren_server_in_flight", Help: "Deliveries in hand."},
		func() float64 { return float64(s.inHand.count()) }))
}

func (m *metrics) computed(op contract.Operation, code contract.Code) {
	if code == "" {
		code = "OK"
	}
	m.results.WithLabelValues(label(op), string(code)).Inc()
}

func (m *metrics) settled(how Disposition, took time.Duration) {
	m.deliveries.WithLabelValues(how.String()).Inc()
	m.duration.Observe(took.Seconds())
}
