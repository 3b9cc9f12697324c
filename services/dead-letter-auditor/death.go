package main

import (
	"cmp"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/messaging/contract"
	"warren.example/messaging/topology"
)

// Reason is why the broker gave a message up.
type Reason string

// The broker knows four reasons. Unknown is ours: for a message without a
// readable death record, and for a reason of a broker newer than this program.
const (
	Rejected      Reason = "rejected"
	Expired       Reason = "expired"
	MaxLen        Reason = "maxlen"
	DeliveryLimit Reason = "delivery_limit"
	Unknown       Reason = "unknown"
)

var reasons = []Reason{Rejected, Expired, MaxLen, DeliveryLimit, Unknown}

// Death is one entry of the header x-death. The broker merges deaths of one
// message in one queue for one reason into one entry and counts them.
type Death struct {
	Reason      Reason    `json:"reason"`
	Queue       string    `json:"queue"`
	Exchange    string    `json:"exchange,omitempty"` // where the message had been published
	RoutingKeys []string  `json:"routing_keys,omitempty"`
	Count       int64     `json:"count"`
	Time        time.Time `json:"time,omitzero"`        // by the broker's clock, whole seconds, rounded down
	TTLMillis   int64     `json:"ttl_ms,omitempty"`     // the expiration it was published with; the broker removes the property
	Raw         string    `json:"raw_reason,omitempty"` // the reason as it was spelled, where it is none of the four
}

// Deaths is all that a dead letter's headers tell.
type Deaths struct {
	Last    Death   `json:"last"`              // what brought the message here; Reason is Unknown if nothing could be read
	Earlier []Death `json:"earlier,omitempty"` // newest first
	// Failures is how many deliveries of the message failed in Last.Queue;
	// 0 where the headers do not tell.
	Failures int64 `json:"failures,omitempty"`
}

// Bounds on what is read. A stranger may have written the headers: 3.10 takes
// over an x-death that the publisher sent and puts its own entry before it.
const (
	maxDeaths      = 16
	maxRoutingKeys = 8
	maxName        = 255 // AMQP's short string
)

// readDeaths decodes x-death, x-first-death-*, x-last-death-* and the two
// counters. Nothing in it is trusted to have the type that it should have.
func readDeaths(d *amqp.Delivery) Deaths {
	var all []Death
	entries, _ := d.Headers["x-death"].([]any)
	for _, e := range entries[:min(len(entries), maxDeaths)] {
		if t, ok := e.(amqp.Table); ok {
			all = append(all, readDeath(t))
		}
	}
	if len(all) == 0 {
		all = append(all, summaryDeath(d.Headers))
	}
	return Deaths{Last: all[0], Earlier: all[1:], Failures: failures(d)}
}

func readDeath(t amqp.Table) Death {
	death := Death{Queue: text(t["queue"]), Exchange: text(t["exchange"]), Count: max(1, integer(t["count"]))}
	death.setReason(text(t["reason"]))
	if at, ok := t["time"].(time.Time); ok && plausible(at) {
		death.Time = at.UTC()
	}
	if ms, err := strconv.ParseUint(text(t["original-expiration"]), 10, 32); err == nil {
		death.TTLMillis = int64(ms)
	}
	keys, _ := t["routing-keys"].([]any)
	for _, k := range keys[:min(len(keys), maxRoutingKeys)] {
		death.RoutingKeys = append(death.RoutingKeys, text(k))
	}
	return death
}

// summaryDeath is for an x-death that is missing or unreadable. The last death
// is what we want; 3.10 knows only the first, which is the same one unless the
// message died more than once.
func summaryDeath(h amqp.Table) Death {
	for _, prefix := range []string{"x-last-death-", "x-first-death-"} {
		if reason := text(h[prefix+"reason"]); reason != "" {
			death := Death{Queue: text(h[prefix+"queue"]), Exchange: text(h[prefix+"exchange"]), Count: 1}
			death.setReason(reason)
			return death
		}
	}
	return Death{Reason: Unknown}
}

func (d *Death) setReason(s string) {
	for _, known := range reasons {
		if s == string(known) {
			d.Reason = known
			return
		}
	}
	d.Reason, d.Raw = Unknown, s
}

// failures is what the counters say about the queue that the message died in.
//
// Measured: 4.3.6 hands the failures over, as x-delivery-count and
// x-acquired-count alike, and marks the first delivery from calc.dlq as
// redelivered; a nack (release) is in neither. Once calc.dlq itself has
// delivered the message before, x-acquired-count begins again at 1 and the two
// differ. 3.10.8 has no x-acquired-count, and its x-delivery-count is the one
// of calc.dlq. Without redelivered both may be the publisher's own invention.
func failures(d *amqp.Delivery) int64 {
	n := integer(d.Headers["x-delivery-count"])
	if !d.Redelivered || n < 0 || n != integer(d.Headers["x-acquired-count"]) {
		return 0
	}
	return n
}

// known says whether the broker left any record of the death.
func (d Deaths) known() bool { return d.Last.Reason != Unknown || d.Last.Raw != "" }

// explain tells in one sentence why the message d died.
func explain(d *amqp.Delivery, deaths Deaths) string {
	last := deaths.Last
	queue := cmp.Or(last.Queue, "its queue")
	var s string
	switch last.Reason {
	case Rejected:
		s = explainRejected(d, deaths)
	case Expired:
		s = "expired in " + queue
		if last.TTLMillis > 0 {
			s += ": no server finished it within " + humane(time.Duration(last.TTLMillis)*time.Millisecond)
		}
		s += explainDeadline(d, last.Time)
	case DeliveryLimit:
		s = explainDeliveryLimit(deaths, queue)
	case MaxLen:
		s = "pushed out of " + queue + ", which was full, to make room for newer messages"
	default:
		if !deaths.known() {
			return "unexplained: it carries no death record, so the broker did not put it here"
		}
		s = fmt.Sprintf("died in %s for a reason that this auditor does not know: %q", queue, last.Raw)
	}
	if last.Count > 1 {
		s += fmt.Sprintf("; it has died so %d times", last.Count)
	}
	if len(deaths.Earlier) > 0 {
		before := deaths.Earlier[0]
		s += fmt.Sprintf("; before that it died in %s (%s)", cmp.Or(before.Queue, "another queue"), cmp.Or(before.Raw, string(before.Reason)))
	}
	return s
}

// explainRejected finds the cause itself: a reject carries none, and the
// server decides by the same Validate.
func explainRejected(d *amqp.Delivery, deaths Deaths) string {
	s := "rejected by the server"
	if n := deaths.Failures - 1; n == 1 { // the reject itself is one of them
		s += " after a failed delivery"
	} else if n > 1 {
		s += fmt.Sprintf(" after %d failed deliveries", n)
	}
	_, meta, err := contract.Validate(d)
	var v *contract.Violation
	switch {
	case errors.As(err, &v):
		return s + ": " + clean(v.Error(), 200)
	case !deaths.Last.Time.IsZero() && meta.Deadline.Before(deaths.Last.Time):
		return s + explainDeadline(d, deaths.Last.Time)
	default:
		return s + ", although the request is readable: its log says why"
	}
}

// explainDeadline compares the deadline, which the caller's clock wrote, with
// the time of death, which the broker's clock wrote and cut to whole seconds.
func explainDeadline(d *amqp.Delivery, died time.Time) string {
	ms := integer(d.Headers[contract.HeaderDeadline])
	deadline := time.UnixMilli(ms)
	if ms <= 0 || !plausible(deadline) || died.IsZero() {
		return ""
	}
	switch {
	case !deadline.After(died):
		return "; its deadline had passed " + humane(died.Sub(deadline)) + " before, so its caller had already given up"
	case deadline.Before(died.Add(time.Second)):
		return "; its deadline came in the same second, when its caller gave up"
	default:
		return "; its deadline was still " + humane(deadline.Sub(died)) + " away, so its caller was still waiting"
	}
}

func explainDeliveryLimit(deaths Deaths, queue string) string {
	// With limit N a message is delivered N+1 times; up to 4.2 a release counts too.
	n, how := deaths.Failures, "died or rejected it"
	if n == 0 {
		how = "died, rejected it or gave it back"
	}
	if n == 0 && queue == contract.RequestQueue {
		n = topology.DeliveryLimit + 1
	}
	if n == 0 {
		return fmt.Sprintf("%s gave it up at its delivery limit: every server that held it %s", queue, how)
	}
	return fmt.Sprintf("%s gave it up after %d failed deliveries (delivery limit %d): every server that held it %s", queue, n, n-1, how)
}

// humane prints a duration for a person: 350 ms, 1.2 s, 3m5s, 40 days.
func humane(d time.Duration) string {
	switch {
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < time.Minute:
		return strings.TrimSuffix(strconv.FormatFloat(d.Seconds(), 'f', 1, 64), ".0") + " s"
	case d < 48*time.Hour:
		return d.Round(time.Second).String()
	default:
		return fmt.Sprintf("%d days", d/(24*time.Hour))
	}
}

// plausible refuses times that no clock shows; JSON and databases end at year 9999.
func plausible(t time.Time) bool { return t.Year() >= 1970 && t.Year() <= 9999 }

// text reads a header that should be a name.
func text(v any) string {
	s, _ := v.(string)
	return clean(s, maxName)
}

// clean bounds a stranger's text and removes whatever could act on a terminal,
// a log or a database: control characters, NUL, invalid UTF-8.
func clean(s string, most int) string {
	if len(s) > most {
		s = s[:most]
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
}

// integer reads a header that should be a count. AMQP has eight widths of
// integers, and publishers use them all.
func integer(v any) int64 {
	switch n := v.(type) {
	case int64:
		return n
	case int32:
		return int64(n)
	case int16:
		return int64(n)
	case int8:
		return int64(n)
	case int:
		return int64(n)
	case uint8:
		return int64(n)
	case uint16:
		return int64(n)
	case uint32:
		return int64(n)
	default:
		return 0
	}
}
