package main

import (
	"errors"
	"math"
	"math/big"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
	"time"

	"warren.example/messaging/contract"
)

func TestCalculate(t *testing.T) {
	nines := strings.Repeat("9", 34)
	for _, tc := range []struct {
		op       contract.Operation
		operands string // separated by spaces
		want     string // a result or a code
	}{
		// exact where exact is possible
		{"add", "0.1 0.2", "0.3"},
		{"add", "-1 1", "0"},
		{"add", "-0 0", "0"},
		{"add", "1e33 1", "1000000000000000000000000000000001"},
		{"add", "1e34 1", "1E+34"}, // one digit too many: rounded
		{"add", "1e6144 1e-6176", "1E+6144"},
		{"add", nines + "e6111 " + nines + "e6111", "OVERFLOW"},
		{"subtract", "1 0.9", "0.1"},
		{"subtract", "1e34 1", nines},
		{"multiply", "1.10 10", "11"},
		{"multiply", "1e6000 1e145", "OVERFLOW"},
		{"multiply", "1e-6000 1e-176", "1E-6176"}, // the smallest number there is
		{"multiply", "1e-6000 1e-177", "UNDERFLOW"},
		{"multiply", "0e9 -5", "0"},
		{"divide", "1 3", "0.3333333333333333333333333333333333"},
		{"divide", "2 3", "0.6666666666666666666666666666666667"},
		{"divide", "6 3", "2"},
		{"divide", "0 3", "0"},
		{"divide", "1 0", "DIVIDE_BY_ZERO"},
		{"divide", "0 0", "UNDEFINED"},
		{"modulo", "7 3", "1"},
		{"modulo", "-7 3", "-1"},
		{"modulo", "7 -3", "1"},
		{"modulo", "0.3 0.1", "0"},
		{"modulo", "1e6144 7", "1"}, // exact, though the quotient has 6144 digits
		{"modulo", "1e6144 1e-6176", "0"},
		{"modulo", "7 0", "DIVIDE_BY_ZERO"},
		{"modulo", "0 0", "UNDEFINED"},
		{"sqrt", "2", "1.414213562373095048801688724209698"},
		{"sqrt", "1e6144", "1E+3072"},
		{"sqrt", "0.0009", "0.03"},
		{"sqrt", "0", "0"},
		{"sqrt", "-1", "UNDEFINED"},
		{"negate", "1.50", "-1.5"},
		{"negate", "0", "0"},
		// rounded once, so that the order of operands is no matter
		{"sum", "1e6144 1 -1e6144", "1"},
		{"sum", "1e34 -1e34 0.5", "0.5"},
		{"sum", "0 1e-6176 0", "1E-6176"},
		{"sum", "1 0e99", "1"},
		{"sum", "42", "42"},
		{"mean", "1 2 3 4", "2.5"},
		{"mean", "1 1 2", "1.333333333333333333333333333333333"},
		{"mean", "1e34 1 -1e34", "0.3333333333333333333333333333333333"},
		// power: the size of the result is known before any work
		{"power", "2 10", "1024"},
		{"power", "2 -2", "0.25"},
		{"power", "-2 3", "-8"},
		{"power", "-2 2.0", "4"},
		{"power", "1.1 3", "1.331"},
		{"power", "4 0.5", "2"},
		{"power", "8 -1.5", "0.04419417382415922027505277263155306"},
		{"power", "2 0.5", "1.414213562373095048801688724209698"},
		{"power", "1e6144 0.9", "3.98107170553497250770252305087752E+5529"},
		{"power", "10 6144", "1E+6144"},
		{"power", "10 -6176", "1E-6176"},
		{"power", "10 6145", "OVERFLOW"},
		{"power", "10 -6177", "UNDERFLOW"},
		{"power", "10 10000000000", "OVERFLOW"},
		{"power", "10 -10000000000", "UNDERFLOW"},
		{"power", "0.1 1e6144", "UNDERFLOW"},
		{"power", "-10 1e6144", "OVERFLOW"},
		{"power", "1.000000001 1e9", "2.718281827099904322376644023860333"},
		{"power", "1.000000000000000000000000000000000000000000000001 1e20", "TOO_MUCH_WORK"},
		{"power", "-1 1e10", "TOO_MUCH_WORK"},
		{"power", "1 1e6144", "1"},
		{"power", "2 0", "1"},
		{"power", "2 1e-6176", "1"},
		{"power", "0 2", "0"},
		{"power", "0 0", "UNDEFINED"},
		{"power", "0 -1", "DIVIDE_BY_ZERO"},
		{"power", "-8 0.5", "UNDEFINED"},
		// bounds and nonsense, refused before work
		{"negate", "NaN", "INVALID_ARGUMENT"},
		{"negate", "sNaN", "INVALID_ARGUMENT"},
		{"negate", "-Infinity", "INVALID_ARGUMENT"},
		{"negate", "1e6145", "INVALID_ARGUMENT"},
		{"negate", "1e-6177", "INVALID_ARGUMENT"},
		{"negate", "1e999999999", "INVALID_ARGUMENT"},
		{"negate", "1e-99999999999999999999", "INVALID_ARGUMENT"},
		{"negate", "0x10", "INVALID_ARGUMENT"},
		{"negate", "1_000", "INVALID_ARGUMENT"},
		{"negate", "1,5", "INVALID_ARGUMENT"},
		{"negate", "+-1", "INVALID_ARGUMENT"},
		{"negate", ".", "INVALID_ARGUMENT"},
		{"negate", "٣", "INVALID_ARGUMENT"},
		{"negate", "", "INVALID_ARGUMENT"},
		{"memory-recall", "1", "UNIMPLEMENTED"},
	} {
		t.Run(string(tc.op)+" "+tc.operands, func(t *testing.T) {
			got, err := calculate(tc.op, strings.Split(tc.operands, " "))
			if err != nil {
				got = string(refusedWith(t, err))
			}
			if got != tc.want {
				t.Errorf("%s %s = %s (%v), want %s", tc.op, tc.operands, got, err, tc.want)
			}
		})
	}
}

func refusedWith(t *testing.T, err error) contract.Code {
	t.Helper()
	var refused *contract.Error
	if !errors.As(err, &refused) {
		t.Fatalf("error %T %v, want a *contract.Error", err, err)
	}
	return refused.Code
}

// Every operation that the contract has and the memory does not is arithmetic.
func TestCalculateKnowsEveryOperation(t *testing.T) {
	for _, op := range contract.Operations() {
		var operands []string
		for op.Check(len(operands)) != nil {
			operands = append(operands, "1")
		}
		_, err := calculate(op, operands)
		if memory := isMemory(op); memory == (err == nil) {
			t.Errorf("%s: memory %t, calculate says %v", op, memory, err)
		}
	}
}

// The library does not promise that its square root is the nearest number. We
// do, so check: r is the nearest iff (r - ulp/2)^2 < x < (r + ulp/2)^2.
func TestSqrtIsNearest(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2000 {
		digits := make([]byte, 1+rng.IntN(60))
		for i := range digits {
			digits[i] = byte('0' + rng.IntN(10))
		}
		digits[0] = byte('1' + rng.IntN(9))
		s := string(digits)
		got, err := calculate(contract.Sqrt, []string{s})
		if err != nil {
			t.Fatalf("sqrt %s: %v", s, err)
		}
		x, _ := new(big.Rat).SetString(s)
		r, _ := new(big.Rat).SetString(got)
		ulp := new(big.Rat).SetFrac(big.NewInt(1), new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(34-(len(s)+1)/2)), nil))
		half := ulp.Mul(ulp, big.NewRat(1, 2))
		low, high := new(big.Rat).Sub(r, half), new(big.Rat).Add(r, half)
		if low.Mul(low, low).Cmp(x) > 0 || high.Mul(high, high).Cmp(x) < 0 {
			t.Fatalf("sqrt %s = %s, which is not the nearest", s, got)
		}
	}
}

// hostile are requests made to cost as much as the contract lets them, and what
// they may cost: ten times the bytes that the work allocates, which tell a wrong
// algorithm on a busy machine too, and a thousand times its time.
var hostile = map[string]struct {
	contract.Request
	bytes  uint64
	within time.Duration
}{
	"10^(10^10)":             {contract.Request{Operation: contract.Power, Operands: []string{"10", "10000000000"}}, 3 << 10, 5 * time.Millisecond},
	"as many squarings":      {contract.Request{Operation: contract.Power, Operands: []string{"1.00000000000000000000000000000000000000000000000000000000000001", "999999999"}}, 440 << 10, time.Second},
	"fractional power":       {contract.Request{Operation: contract.Power, Operands: []string{"9." + strings.Repeat("7", 60) + "e6140", "0." + strings.Repeat("9", 60)}}, 4 << 20, time.Second},
	"quotient of 12k digits": {contract.Request{Operation: contract.Modulo, Operands: []string{"1e6144", "7.77777777777777777777777777777777777777e-6150"}}, 430 << 10, time.Second},
	"widest addition":        {contract.Request{Operation: contract.Add, Operands: []string{"1e6144", "1e-6176"}}, 570 << 10, time.Second},
	"widest sum":             {contract.Request{Operation: contract.Sum, Operands: widest()}, 9 << 20, time.Second},
}

func widest() []string {
	operands := make([]string, contract.MaxOperands)
	for i := range operands {
		operands[i] = big.NewInt(int64(1+i)).String() + "7777777777777777777777777777777777777777777777777e" + big.NewInt(int64(6090-12*i)).String()
	}
	return operands
}

// The cheapest of several runs counts: what else the machine does only adds.
func TestHostileRequestsAreCheap(t *testing.T) {
	for name, r := range hostile {
		t.Run(name, func(t *testing.T) {
			if err := r.Operation.Check(len(r.Operands)); err != nil {
				t.Fatal(err)
			}
			bytes, took := uint64(math.MaxUint64), time.Hour
			for range 10 {
				var before, after runtime.MemStats
				runtime.ReadMemStats(&before)
				began := time.Now()
				got, err := calculate(r.Operation, r.Operands)
				took = min(took, time.Since(began))
				runtime.ReadMemStats(&after)
				bytes = min(bytes, after.TotalAlloc-before.TotalAlloc)
				if err != nil && refusedWith(t, err) == contract.InvalidArgument {
					t.Fatalf("got %s, %v; want the work to be done or refused", got, err)
				}
			}
			if bytes > r.bytes || took > r.within {
				t.Errorf("allocated %d bytes and took %s, want at most %d and %s", bytes, took, r.bytes, r.within)
			}
		})
	}
}

func BenchmarkCalculate(b *testing.B) {
	all := map[string]contract.Request{
		"add":    {Operation: contract.Add, Operands: []string{"0.1", "0.2"}},
		"divide": {Operation: contract.Divide, Operands: []string{"1", "3"}},
		"power":  {Operation: contract.Power, Operands: []string{"1.1", "100"}},
		"sqrt":   {Operation: contract.Sqrt, Operands: []string{"2"}},
	}
	for name, r := range hostile {
		all[name] = r.Request
	}
	for name, r := range all {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				_, _ = calculate(r.Operation, r.Operands)
			}
		})
	}
}
