package ledger

import (
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Set is a set of request ids. Verdicts are algebra on sets, never on counts:
// one loss and one duplicate cancel in a count.
type Set map[string]struct{}

// SetOf is the set of these ids.
func SetOf(ids ...string) Set {
	s := make(Set, len(ids))
	for _, id := range ids {
		s[id] = struct{}{}
	}
	return s
}

// Minus is s without the members of all others.
func (s Set) Minus(others ...Set) Set {
	rest := maps.Clone(s)
	for _, o := range others {
		for id := range o {
			delete(rest, id)
		}
	}
	return rest
}

// And is what s and o share.
func (s Set) And(o Set) Set { return s.Minus(s.Minus(o)) }

// Or is what is in s, in o, or in both.
func (s Set) Or(o Set) Set {
	all := maps.Clone(s)
	maps.Copy(all, o)
	return all
}

// Has says whether id is a member.
func (s Set) Has(id string) bool {
	_, ok := s[id]
	return ok
}

// IDs lists the members in order; UUIDv7 ids thereby in order of time.
func (s Set) IDs() []string { return slices.Sorted(maps.Keys(s)) }

// String is the size and the first few members.
func (s Set) String() string {
	const most = 3
	ids := s.IDs()
	switch {
	case len(ids) == 0:
		return "none"
	case len(ids) > most:
		return fmt.Sprintf("%d: %s …", len(ids), strings.Join(ids[:most], " "))
	}
	return fmt.Sprintf("%d: %s", len(ids), strings.Join(ids, " "))
}
