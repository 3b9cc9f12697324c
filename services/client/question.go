package main

import (
	"fmt"

	"github.com/cockroachdb/apd/v3"

	"warren.example/messaging/contract"
)

// A question is a request whose right answer is known. Both follow from its
// number alone, so that two runs ask the same and a wrong answer can be asked
// for again.
type question struct {
	request contract.Request
	want    *apd.Decimal  // nil: any number, because the memory depends on others
	refusal contract.Code // instead of a result
}

// newQuestion is the n-th question about op.
//
// The right answer is found by arithmetic on whole numbers of hundredths:
// every result is exact, and the check shares no arithmetic with the server.
func newQuestion(op contract.Operation, n uint64) question {
	a, b := int64(n%9973)+1, int64(n%97)+1 // two primes: the pairs repeat after 967 381 questions
	ask := func(want *apd.Decimal, operands ...*apd.Decimal) question {
		q := question{request: contract.Request{Operation: op}, want: want}
		for _, o := range operands {
			q.request.Operands = append(q.request.Operands, o.Text('f'))
		}
		return q
	}
	whole := func(x int64) *apd.Decimal { return apd.New(x, 0) }
	hundredths := func(x int64) *apd.Decimal { return apd.New(x, -2) }
	switch op {
	case contract.Add:
		return ask(hundredths(a+b), hundredths(a), hundredths(b))
	case contract.Subtract:
		return ask(hundredths(b-a), hundredths(b), hundredths(a))
	case contract.Multiply:
		return ask(apd.New(a*b, -4), hundredths(a), hundredths(b))
	case contract.Divide:
		if n%10 == 9 { // one in ten must be refused
			q := ask(nil, hundredths(a), whole(0))
			q.refusal = contract.DivideByZero
			return q
		}
		return ask(hundredths(a), hundredths(a*b), whole(b))
	case contract.Modulo:
		return ask(hundredths(a%b), hundredths(a), hundredths(b))
	case contract.Power:
		return ask(whole(b*b*b), whole(b), whole(3))
	case contract.Sqrt:
		return ask(hundredths(a), apd.New(a*a, -4))
	case contract.Negate:
		return ask(hundredths(-a), hundredths(a))
	case contract.Sum:
		return ask(hundredths(2*a+b), hundredths(a), hundredths(b), hundredths(a))
	case contract.Mean:
		return ask(hundredths(a+b), hundredths(a), hundredths(a+2*b))
	case contract.MemoryAdd:
		return ask(nil, whole(1)) // the memory then counts how often it was added to
	case contract.MemoryRecall:
		return ask(nil)
	}
	panic(fmt.Sprintf("question: no arithmetic for %s", op)) // a test asks about every operation
}

// check says what is wrong with a result, or nothing.
func (q question) check(result string) (wrong string) {
	got, _, err := apd.NewFromString(result)
	switch {
	case q.refusal != "":
		return fmt.Sprintf("got %q, want %s", result, q.refusal)
	case err != nil || got.Form != apd.Finite:
		return fmt.Sprintf("got %q, want a number", result)
	case q.want != nil && got.Cmp(q.want) != 0:
		return fmt.Sprintf("got %q, want %s", result, q.want.Text('f'))
	}
	return ""
}
