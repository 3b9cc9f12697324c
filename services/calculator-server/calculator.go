package main

import (
	"fmt"
	"math"
	"math/big"
	"slices"

	"github.com/cockroachdb/apd/v3"

	"warren.example/messaging/contract"
)

// The arithmetic is IEEE 754 decimal128: 34 digits, exponents to ±6144. Each
// operation works out the exact result where one exists and rounds it once,
// half to even; sum and mean do so however many operands they have, so that
// their order does not matter. Operands may have more digits than a result.
var decimal128 = apd.Context{Precision: 34, MaxExponent: maxExponent, MinExponent: minExponent, Rounding: apd.RoundHalfEven}

const (
	maxExponent = 6144
	minExponent = -6143
	tiny        = minExponent - 33 // exponent of the smallest number there is
)

// wide is for results that have no finite exact form. Of its digits, 34 are
// the result's, and the rest are for what a chain of roundings loses: ten where
// an error is multiplied by an exponent of up to maxPower, some for Exp and Ln.
var wide = apd.BaseContext.WithPrecision(64)

// maxPower bounds the work of power where its result is in range: the exponent
// has at most 30 bits, which is 60 multiplications.
const maxPower = 1_000_000_000

var one = apd.New(1, 0)

// calculate works out a request whose operation and operand count have been
// checked. The memory's operations are not arithmetic and not done here. Its
// error is a *contract.Error.
//
// Nothing here takes long: operands have at most 64 characters, their exponents
// are bounded before the first operation, and power estimates its result first.
func calculate(op contract.Operation, operands []string) (string, error) {
	x := make([]*apd.Decimal, len(operands))
	for i, s := range operands {
		d, err := parse(s)
		if err != nil {
			return "", refuse(contract.InvalidArgument, "operand %d: %s", i+1, err)
		}
		x[i] = d
	}
	d := new(apd.Decimal)
	var flags apd.Condition
	var err error
	switch op {
	case contract.Add:
		flags, err = decimal128.Add(d, x[0], x[1])
	case contract.Subtract:
		flags, err = decimal128.Sub(d, x[0], x[1])
	case contract.Multiply:
		flags, err = decimal128.Mul(d, x[0], x[1])
	case contract.Divide:
		flags, err = decimal128.Quo(d, x[0], x[1])
	case contract.Modulo:
		flags, err = modulo(d, x[0], x[1])
	case contract.Power:
		flags, err = power(d, x[0], x[1])
	case contract.Sqrt:
		flags, err = decimal128.Sqrt(d, x[0])
	case contract.Negate:
		flags, err = decimal128.Neg(d, x[0])
	case contract.Sum:
		flags, err = decimal128.Round(d, sum(x))
	case contract.Mean:
		flags, err = decimal128.Quo(d, sum(x), apd.New(int64(len(x)), 0))
	default:
		return "", refuse(contract.Unimplemented, "operation %q: not arithmetic", op)
	}
	return result(op, d, flags, err)
}

// result turns the conditions of an operation into the reply's words. Rounded
// and inexact are not errors: 1/3 has no last digit.
func result(op contract.Operation, d *apd.Decimal, flags apd.Condition, err error) (string, error) {
	switch refused, ok := err.(*contract.Error); {
	case ok:
		return "", refused
	case flags&(apd.Overflow|apd.SystemOverflow) != 0:
		return "", refuse(contract.Overflow, "%s: the result is beyond 9.99…E+%d", op, maxExponent)
	case flags&(apd.Underflow|apd.SystemUnderflow) != 0:
		return "", refuse(contract.Underflow, "%s: the result is not zero and closer to it than 1E%d can tell", op, tiny)
	case flags.DivisionByZero():
		return "", refuse(contract.DivideByZero, "%s: division by zero", op)
	case flags.DivisionUndefined():
		return "", refuse(contract.Undefined, "%s: zero by zero has no result", op)
	case flags.InvalidOperation():
		return "", refuse(contract.Undefined, "%s: there is no such real number", op)
	case err != nil || d.Form != apd.Finite:
		return "", refuse(contract.Internal, "%s: %s, %v", op, flags, err)
	}
	return canonical(d), nil
}

func refuse(code contract.Code, format string, args ...any) error {
	return &contract.Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// parse reads a decimal number and bounds its exponent: 1E+99999 is cheap to
// write down and dear to add to.
func parse(s string) (*apd.Decimal, error) {
	d, flags, err := apd.BaseContext.NewFromString(s)
	switch {
	case flags.Any(): // beyond even what the library can hold
		return nil, fmt.Errorf("%q: its exponent is out of range", s)
	case err != nil:
		return nil, fmt.Errorf("%q: not a decimal number", s)
	case d.Form != apd.Finite:
		return nil, fmt.Errorf("%q: not a finite number", s)
	case d.IsZero():
		return new(apd.Decimal), nil // zeros with exponents and signs are all 0
	}
	if magnitude := magnitude(d); magnitude > maxExponent || magnitude < tiny {
		return nil, fmt.Errorf("%q: its exponent is out of range", s)
	}
	return d, nil
}

// magnitude is the exponent of d in scientific notation.
func magnitude(d *apd.Decimal) int64 { return d.NumDigits() - 1 + int64(d.Exponent) }

// canonical writes equal numbers alike, and always as something that parse
// reads back: no trailing zeros, no minus zero, an exponent only where the
// number would be long without.
func canonical(d *apd.Decimal) string {
	d.Reduce(d)
	if m := magnitude(d); m < -20 || m >= 34 {
		return d.Text('E')
	}
	return d.Text('f')
}

// modulo is the remainder of the division that is cut to an integer; it has
// the sign of x, as in Go. The integer may have thousands of digits, which is
// bounded by the exponents of the operands.
func modulo(d, x, y *apd.Decimal) (apd.Condition, error) {
	if y.IsZero() {
		return decimal128.Quo(d, x, y) // for the conditions
	}
	exact := apd.BaseContext.WithPrecision(3 * maxExponent)
	if flags, err := exact.Rem(d, x, y); err != nil {
		return flags, err
	}
	return decimal128.Round(d, d)
}

// sum is exact. From the largest exponent to the smallest, each digit is
// multiplied up once, whatever the number of operands.
func sum(x []*apd.Decimal) *apd.Decimal {
	x = slices.Clone(x)
	slices.SortFunc(x, func(a, b *apd.Decimal) int { return int(b.Exponent) - int(a.Exponent) })
	var total, shift big.Int
	ten := big.NewInt(10)
	exponent := x[0].Exponent
	for _, d := range x {
		if d.IsZero() {
			continue // parse has lost its exponent
		}
		if down := exponent - d.Exponent; down > 0 {
			if total.Sign() != 0 {
				total.Mul(&total, shift.Exp(ten, big.NewInt(int64(down)), nil))
			}
		}
		exponent = d.Exponent
		coefficient := d.Coeff.MathBigInt()
		if d.Negative {
			coefficient.Neg(coefficient)
		}
		total.Add(&total, coefficient)
	}
	return apd.NewWithBigInt(new(apd.BigInt).SetMathBigInt(&total), exponent)
}

// power looks before it works: the size of the result is known from logarithms
// in floating point, and only a result that decimal128 can hold is worked out.
func power(d, x, y *apd.Decimal) (apd.Condition, error) {
	integer := isInteger(y)
	switch {
	case x.IsZero() && y.IsZero():
		return apd.InvalidOperation, nil // 0^0 has no one value
	case x.IsZero() && y.Negative:
		return apd.DivisionByZero, nil
	case x.IsZero(), x.Cmp(one) == 0:
		d.Set(x)
		return 0, nil
	case y.IsZero():
		d.Set(one)
		return 0, nil
	case x.Negative && !integer:
		return apd.InvalidOperation, nil
	}
	// Close to 1 the estimate is only noise; there the bound on the exponent
	// decides alone. The margin is far wider than the estimate's error.
	if log := log10(x); math.Abs(log) > 1e-10 {
		switch size := log * float(y); {
		case size > maxExponent+100:
			return apd.Overflow, nil
		case size < tiny-100:
			return apd.Underflow, nil
		}
	}
	if limit := apd.New(maxPower, 0); new(apd.Decimal).Abs(y).Cmp(limit) > 0 {
		return 0, refuse(contract.TooMuchWork, "power: an exponent of %s is beyond %d", y, maxPower)
	}
	if integer {
		if flags, err := wide.Pow(d, x, y); err != nil {
			return flags, err
		}
		return decimal128.Round(d, d)
	}
	return fractionalPower(d, x, y)
}

// fractionalPower is x^y for positive x. It works on the logarithm to base 10,
// whose integer part is the result's exponent, so that Exp is only ever asked
// for a number between 1 and 10.
func fractionalPower(d, x, y *apd.Decimal) (apd.Condition, error) {
	ten := apd.New(10, 0)
	var ln10, log, whole, rest apd.Decimal
	e := apd.MakeErrDecimal(wide)
	e.Ln(&ln10, ten)
	e.Ln(&log, x)
	e.Mul(&log, &log, y)
	e.Quo(&log, &log, &ln10)
	e.Floor(&whole, &log)
	e.Sub(&rest, &log, &whole)
	e.Mul(&rest, &rest, &ln10)
	e.Exp(d, &rest)
	shift := e.Int64(&whole)
	if err := e.Err(); err != nil {
		return e.Flags, err
	}
	d.Exponent += int32(shift)
	return decimal128.Round(d, d)
}

func isInteger(d *apd.Decimal) bool {
	if d.Exponent >= 0 {
		return true
	}
	if magnitude(d) < 0 {
		return false
	}
	var fraction apd.Decimal
	d.Modf(nil, &fraction)
	return fraction.IsZero()
}

// log10 is that of the absolute value, to about fourteen digits.
func log10(d *apd.Decimal) float64 {
	f, _ := new(big.Float).SetInt(d.Coeff.MathBigInt()).Float64()
	return math.Log10(f) + float64(d.Exponent)
}

// float is infinite where float64 has no such number.
func float(d *apd.Decimal) float64 {
	f := math.Pow(10, log10(d))
	if d.Negative {
		return -f
	}
	return f
}
