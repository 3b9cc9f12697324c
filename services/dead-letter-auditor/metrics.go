package main

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics counts what the auditor does.
type metrics struct {
	deaths    *prometheus.CounterVec
	sightings prometheus.Counter
	replays   *prometheus.CounterVec
}

func newMetrics(r prometheus.Registerer, store Store) *metrics {
	m := &metrics{
		deaths:    prometheus.NewCounterVec(prometheus.CounterOpts{Name: "warren_dead_letters_audited_total", Help: "Deaths put on record, by reason."}, []string{"reason"}),
		sightings: prometheus.NewCounter(prometheus.CounterOpts{Name: "warren_dead_letters_seen_again_total", Help: "Deliveries of a death that was on record."}),
		replays:   prometheus.NewCounterVec(prometheus.CounterOpts{Name: "warren_replays_total", Help: "How replays ended; replaying: without an answer so far."}, []string{"outcome"}),
	}
	for _, reason := range reasons {
		m.deaths.WithLabelValues(string(reason))
	}
	for _, outcome := range []Status{Answered, Refused, ReplayFailed, Replaying} {
		m.replays.WithLabelValues(string(outcome))
	}
	open := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "warren_dead_letters_open", Help: "Rows that wait for a person; -1: the database does not say."}, func() float64 {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		n, err := store.Count(ctx, Open)
		if err != nil {
			return -1
		}
		return float64(n)
	})
	r.MustRegister(m.deaths, m.sightings, m.replays, open)
	return m
}

func (m *metrics) audited(row DeadLetter) {
	if row.Seen > 1 {
		m.sightings.Inc()
		return
	}
	m.deaths.WithLabelValues(string(row.Reason)).Inc()
}

func (m *metrics) replayed(to Status) { m.replays.WithLabelValues(string(to)).Inc() }
