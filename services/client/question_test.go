package main

import (
	"testing"

	"github.com/cockroachdb/apd/v3"

	"warren.example/messaging/contract"
)

// The right answers are made of whole numbers. Here decimal128, which is what
// a server uses, finds the same.
func TestRightAnswersAreRight(t *testing.T) {
	decimal128 := apd.Context{Precision: 34, MaxExponent: 6144, MinExponent: -6143, Rounding: apd.RoundHalfEven}
	for _, op := range contract.Operations() {
		for n := range uint64(1000) {
			q := newQuestion(op, n*7)
			if err := op.Check(len(q.request.Operands)); err != nil {
				t.Fatalf("question %d: %v", n*7, err)
			}
			if q.want == nil {
				continue
			}
			var x []*apd.Decimal
			for _, o := range q.request.Operands {
				d, _, err := apd.NewFromString(o)
				if err != nil {
					t.Fatalf("%s %v: %v", op, q.request.Operands, err)
				}
				x = append(x, d)
			}
			got := new(apd.Decimal)
			var err error
			switch op {
			case contract.Add:
				_, err = decimal128.Add(got, x[0], x[1])
			case contract.Subtract:
				_, err = decimal128.Sub(got, x[0], x[1])
			case contract.Multiply:
				_, err = decimal128.Mul(got, x[0], x[1])
			case contract.Divide:
				_, err = decimal128.Quo(got, x[0], x[1])
			case contract.Modulo:
				_, err = decimal128.Rem(got, x[0], x[1])
			case contract.Power:
				_, err = decimal128.Pow(got, x[0], x[1])
			case contract.Sqrt:
				_, err = decimal128.Sqrt(got, x[0])
			case contract.Negate:
				_, err = decimal128.Neg(got, x[0])
			case contract.Sum, contract.Mean:
				for _, d := range x {
					if _, err = decimal128.Add(got, got, d); err != nil {
						break
					}
				}
				if op == contract.Mean {
					_, err = decimal128.Quo(got, got, apd.New(int64(len(x)), 0))
				}
			}
			if err != nil || got.Cmp(q.want) != 0 {
				t.Fatalf("%s %v: got %v, %v; want %v", op, q.request.Operands, got, err, q.want)
			}
		}
	}
}

func TestOneDivisionInTenIsByZero(t *testing.T) {
	refusals := 0
	for n := range uint64(100) {
		if newQuestion(contract.Divide, n).refusal == contract.DivideByZero {
			refusals++
		}
	}
	if refusals != 10 {
		t.Errorf("got %d of 100, want 10", refusals)
	}
}

func TestResultsAreChecked(t *testing.T) {
	for name, tc := range map[string]struct {
		op     contract.Operation
		n      uint64
		result string
		wrong  string
	}{
		"right":                             {contract.Add, 4, "0.10", ""},
		"right in another spelling":         {contract.Add, 4, "1E-1", ""},
		"wrong":                             {contract.Add, 4, "0.11", `got "0.11", want 0.10`},
		"absurdly large":                    {contract.Add, 4, "1E99999", `got "1E99999", want 0.10`},
		"empty":                             {contract.Add, 4, "", `got "", want a number`},
		"no number":                         {contract.Add, 4, "NaN", `got "NaN", want a number`},
		"infinity":                          {contract.Add, 4, "Infinity", `got "Infinity", want a number`},
		"a result of a division by zero":    {contract.Divide, 9, "0", `got "0", want DIVIDE_BY_ZERO`},
		"memory, which depends on others":   {contract.MemoryAdd, 4, "4711", ""},
		"memory that is not even a number":  {contract.MemoryRecall, 4, "four", `got "four", want a number`},
		"a number too long to be a decimal": {contract.Add, 4, "1E9999999999", `got "1E9999999999", want a number`},
	} {
		t.Run(name, func(t *testing.T) {
			if got := newQuestion(tc.op, tc.n).check(tc.result); got != tc.wrong {
				t.Errorf("got %q, want %q", got, tc.wrong)
			}
		})
	}
}
