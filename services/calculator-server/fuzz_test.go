package main

import (
	"testing"

	"warren.example/messaging/contract"
)

// FuzzRequest sends bodies through everything that reads them: the decoder, the
// checks and the arithmetic. Whatever the body, the answer is a typed refusal
// or a number that reads back as itself.
func FuzzRequest(f *testing.F) {
	for _, body := range []string{
		add,
		`{"operation":"power","operands":["10","10000000000"]}`,
		`{"operation":"power","operands":["1.000000001","1e9"]}`,
		`{"operation":"sum","operands":["1e6144","-1e-6176","0e9"]}`,
		`{"operation":"sqrt","operands":["9.99e6144"]}`,
		`{"operation":"modulo","operands":["1e6144","1e-6176"]}`,
		`{"operation":"mean","operands":[]}`,
		`{"operation":"memory-add","operands":["1"]}`,
		`{"operation":"add","operation":"negate","operands":["1"]}`,
		`{"Operation":"add","operands":["1","2"]}`,
		`{"operation":"add","operands":[1,2]}`,
		`{"operation":"add","operands":["NaN","Infinity"]}`,
		`{"operation":"add","operands":["1e-99999999999","1E+2147483648"]} `,
		"{\"operation\":\"add\",\"operands\":[\"\xff\",\"1\"]}",
		`[[[[[[[[`, ``, `null`, `{}`,
	} {
		f.Add([]byte(body))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		r, _, err := contract.Validate(request(string(body), nil))
		if err != nil {
			if violation, ok := err.(*contract.Violation); !ok || !violation.Answerable {
				t.Fatalf("%q: %T %v, want an answerable violation", body, err, err)
			}
			return
		}
		if err := r.Operation.Check(len(r.Operands)); err != nil {
			refusedWith(t, err)
			return
		}
		got, err := calculate(r.Operation, r.Operands)
		if err != nil {
			if code := refusedWith(t, err); code == contract.Internal {
				t.Fatalf("%q: %v", body, err)
			}
			return
		}
		if d, err := parse(got); err != nil || canonical(d) != got || len(got) > contract.MaxOperandLength {
			t.Fatalf("%q gives %q, which reads back as %v (%v)", body, got, d, err)
		}
	})
}
