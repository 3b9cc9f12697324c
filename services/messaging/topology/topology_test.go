package topology

import (
	"regexp"
	"testing"

	"warren.example/messaging/contract"
)

func TestVersionsDecideTheDeliveryLimitOfDeadLetters(t *testing.T) {
	for text, want := range map[string]any{"3.10.8": nil, "3.13.7": nil, "4.0.5": int64(-1), "4.3.6": int64(-1), "4.3.0-rc.1": int64(-1)} {
		v, err := ParseVersion(text)
		if err != nil {
			t.Fatal(err)
		}
		for _, q := range For(v).Queues {
			if got := q.Args["x-delivery-limit"]; q.Name == contract.DeadLetterQueue && got != want {
				t.Errorf("%s on %s: got limit %v, want %v", q.Name, text, got, want)
			}
		}
	}
	if _, err := ParseVersion("four"); err == nil {
		t.Error(`"four" is no version`)
	}
}

// The broker's permission check, as its documentation has it: the expression
// must match the resource's name.
func TestUsersMayDoWhatTheyNeedAndNoMore(t *testing.T) {
	users := map[string]User{}
	for _, u := range Users() {
		users[u.Name] = u
	}
	server, client, auditor := users[contract.UserServer], users[contract.UserClient], users[contract.UserAuditor]
	own := contract.ClientReplyQueue + ".c1.7"
	for _, tc := range []struct {
		what, expression, name string
		want                   bool
	}{
		{"server reads requests", server.Read, contract.RequestQueue, true},
		{"server reads dead letters", server.Read, contract.DeadLetterQueue, false},
		{"server writes replies", server.Write, contract.ReplyExchange, true},
		{"server writes dead letters", server.Write, contract.DeadLetterExchange, false},
		{"server writes to the default exchange", server.Write, "amq.default", false},
		{"server declares", server.Configure, contract.RequestQueue, false},
		{"client writes requests", client.Write, contract.RequestExchange, true},
		{"client writes to a name that only looks alike", client.Write, "calcXrpc", false},
		{"client declares its reply queue", client.Configure, own, true},
		{"client declares an auditor's reply queue", client.Configure, contract.AuditorReplyQueue + ".a.1", false},
		{"client declares the request queue", client.Configure, contract.RequestQueue, false},
		{"client reads its reply queue", client.Read, own, true},
		{"client reads requests", client.Read, contract.RequestQueue, false},
		{"client writes to the default exchange", client.Write, "amq.default", false},
		{"client binds its own key", client.TopicRead, "client.calc-client.c1", true},
		{"client binds another user's key", client.TopicRead, "client.dlq-auditor.a1", false},
		{"client binds everything", client.TopicRead, "#", false},
		{"auditor reads dead letters", auditor.Read, contract.DeadLetterQueue, true},
		{"auditor reads requests", auditor.Read, contract.RequestQueue, false},
		{"auditor publishes dead letters", auditor.Write, contract.DeadLetterExchange, false},
		{"topology declares", users[contract.UserTopology].Configure, contract.RequestQueue, true},
		{"monitor reads", users[contract.UserMonitor].Read, contract.RequestQueue, false},
	} {
		if got := regexp.MustCompile(tc.expression).MatchString(tc.name); got != tc.want {
			t.Errorf("%s: got %v, want %v (%s on %s)", tc.what, got, tc.want, tc.expression, tc.name)
		}
	}
	for name, u := range users {
		if u.TopicWrite == "" || u.TopicRead == "" {
			t.Errorf("%s has no topic permissions: the broker would let it bind and publish any key", name)
		}
	}
}
