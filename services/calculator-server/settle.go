package main

import "fmt"

// Disposition is what becomes of a delivery. The zero value is invalid, so that
// a forgotten return is an error on record and never an ack.
type Disposition uint8

// The dispositions.
const (
	Ack        Disposition = iota + 1 // the reply is confirmed; forget the request
	Retry                             // this attempt failed; another may succeed
	Release                           // we are draining; somebody else's turn
	DeadLetter                        // will never succeed; keep it for the auditor
	Hold                              // the trouble is ours, or the epoch is over: settle nothing
)

func (how Disposition) String() string {
	names := [...]string{"invalid", "ack", "retry", "release", "dead-letter", "hold"}
	if int(how) >= len(names) {
		return names[0]
	}
	return names[how]
}

// wire is the settling half of a *session.Delivery.
type wire interface {
	Ack() error
	Reject(requeue bool) error
	Nack(requeue bool) error
}

// settle is the only caller of Ack, Reject and Nack.
func settle(d wire, how Disposition) error {
	const requeue = true
	switch how {
	case Ack:
		return d.Ack()
	case Retry: // since RabbitMQ 4.3 a reject counts towards x-delivery-limit, a nack does not
		return d.Reject(requeue)
	case Release: // … which is why giving a request away is a nack
		return d.Nack(requeue)
	case DeadLetter:
		return d.Reject(!requeue)
	case Hold: // a requeue would burn the delivery limit of a request that did nothing wrong
		return nil
	default:
		return fmt.Errorf("settle: disposition %d is none", how)
	}
}
