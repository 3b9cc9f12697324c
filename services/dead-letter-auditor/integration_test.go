//go:build integration

package main

import (
	"bufio"
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/messaging/contract"
	"warren.example/messaging/event"
	"warren.example/messaging/rpc"
	"warren.example/messaging/session"
)

// env is a URL that `lab broker` exports. Without a broker these tests fail.
func env(t *testing.T, name string) string {
	t.Helper()
	v := os.Getenv(name)
	if v == "" {
		t.Fatalf("%s is not set: run `go run ./services/lab broker -- go test -tags integration .`", name)
	}
	return v
}

// freshQueues empties both queues and returns a channel that may do anything.
func freshQueues(t *testing.T) *amqp.Channel {
	t.Helper()
	ch := open(t, "AMQP_URL")
	for _, q := range []string{contract.RequestQueue, contract.DeadLetterQueue} {
		if _, err := ch.QueuePurge(q, false); err != nil {
			t.Fatal(err)
		}
	}
	return ch
}

func open(t *testing.T, url string) *amqp.Channel {
	t.Helper()
	conn, err := amqp.Dial(env(t, url))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	ch, err := conn.Channel()
	if err != nil {
		t.Fatal(err)
	}
	return ch
}

// request publishes as the client does; change spoils it.
func request(t *testing.T, id string, ttl time.Duration, change ...func(*amqp.Publishing)) {
	t.Helper()
	publish(t, open(t, "AMQP_URL_CALC_CLIENT"), id, ttl, change...)
}

func publish(t *testing.T, ch *amqp.Channel, id string, ttl time.Duration, change ...func(*amqp.Publishing)) {
	t.Helper()
	p := amqp.Publishing{MessageId: id, CorrelationId: id + ".1", ReplyTo: contract.ReplyKey(contract.UserClient, "test"), UserId: contract.UserClient,
		Type: contract.RequestType, ContentType: contract.ContentType, DeliveryMode: amqp.Persistent,
		Expiration: strconv.FormatInt(ttl.Milliseconds(), 10),
		Headers:    amqp.Table{contract.HeaderDeadline: time.Now().Add(ttl).UnixMilli()},
		Body:       []byte(`{"operation":"add","operands":["0.1","0.2"]}`)}
	for _, c := range change {
		c(&p)
	}
	if err := ch.Publish(contract.RequestExchange, contract.RequestKey, true, false, p); err != nil {
		t.Fatal(err)
	}
}

// server is a calculator that does with each delivery what handle says, and
// notes it before.
type server struct {
	*rpc.Responder
	mu  sync.Mutex
	saw []*session.Delivery
}

func newServer(t *testing.T, handle func(*server, *session.Delivery)) *server {
	t.Helper()
	o := session.Options{Config: session.Config{URL: []string{env(t, "AMQP_URL_CALC_SERVER")}, Heartbeat: 10 * time.Second,
		WriteTimeout: 5 * time.Second, OpenTimeout: 10 * time.Second, MaxBackoff: time.Second}, Name: "server of a test"}
	publisher := session.NewPublisher(o, session.PublisherOptions{Exchange: contract.ReplyExchange})
	s := &server{Responder: rpc.NewResponder(publisher, nil)}
	var working sync.WaitGroup
	consumer := session.NewConsumer(o, session.ConsumerOptions{Queue: contract.RequestQueue, Prefetch: 10, Handle: func(d *session.Delivery) {
		s.mu.Lock()
		s.saw = append(s.saw, d)
		s.mu.Unlock()
		working.Go(func() { handle(s, d) })
	}})
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_, _ = consumer.Close(ctx), publisher.Close(ctx)
		working.Wait()
	})
	return s
}

func (s *server) deliveries() []*session.Delivery {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.saw)
}

// answer replies 0.3 and acks.
func answer(s *server, d *session.Delivery) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if _, err := s.Reply(ctx, d, contract.Reply{Result: "0.3"}); err == nil {
		_ = d.Ack()
	}
}

// process is a running auditor.
type process struct {
	t      *testing.T
	cmd    *exec.Cmd
	url    string
	admin  string
	mu     sync.Mutex
	events []event.Line
	log    bytes.Buffer
	read   chan struct{} // closed at the end of the events
}

// start runs the service on the database db until the test ends.
func start(t *testing.T, db string, settings ...string) *process {
	t.Helper()
	p := launch(t, db, settings...)
	eventually(t, func() string { return p.notReady() })
	return p
}

// launch does not wait until it is ready.
func launch(t *testing.T, db string, settings ...string) *process {
	t.Helper()
	p := &process{t: t, cmd: exec.Command(os.Args[0]), url: "http://" + freeAddr(t), admin: "http://" + freeAddr(t), read: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), append([]string{"AUDITOR_TEST_SERVE=1",
		"WARREN_AMQP_URL=" + env(t, "AMQP_URL_DLQ_AUDITOR"), "WARREN_DATABASE=" + db, "WARREN_EVENTS=stdout", "WARREN_FAULTS=true",
		"WARREN_HTTP_ADDR=" + strings.TrimPrefix(p.url, "http://"), "WARREN_ADMIN_ADDR=" + strings.TrimPrefix(p.admin, "http://")}, settings...)...)
	p.cmd.Stderr = &p.log
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(p.read)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			var l event.Line
			if err := json.Unmarshal(lines.Bytes(), &l); err != nil {
				t.Errorf("event %s: %v", lines.Bytes(), err)
			}
			p.mu.Lock()
			p.events = append(p.events, l)
			p.mu.Unlock()
		}
	}()
	t.Cleanup(func() {
		if p.cmd.ProcessState == nil {
			_ = p.cmd.Process.Kill()
			p.wait()
		}
		if t.Failed() {
			t.Logf("auditor's log:\n%s", p.log.String())
		}
	})
	return p
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func (p *process) notReady() string {
	res, err := http.Get(p.admin + "/readyz")
	if err != nil {
		return err.Error()
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return res.Status
	}
	return ""
}

// wait waits until the process has ended, and returns how.
func (p *process) wait() syscall.WaitStatus {
	p.t.Helper()
	<-p.read
	_ = p.cmd.Wait() // the state says more
	return p.cmd.ProcessState.Sys().(syscall.WaitStatus)
}

// stop ends it as Kubernetes does, and checks that the ledger is complete.
func (p *process) stop() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		p.t.Fatal(err)
	}
	if status := p.wait(); status.ExitStatus() != 0 {
		p.t.Errorf("SIGTERM: got exit status %d, want 0", status.ExitStatus())
	}
	if last := p.events[len(p.events)-1]; last.Event != event.EOF || int(last.Seq) != len(p.events) {
		p.t.Errorf("last event: got %s, number %d of %d lines; want eof", last.Event, last.Seq, len(p.events))
	}
}

func (p *process) armCrash() {
	p.t.Helper()
	if status, answer := ask(p.t, "POST", p.admin+"/faults", `{"point":"after-commit","action":"crash","n":1}`); status != http.StatusNoContent {
		p.t.Fatalf("arm: %d %s", status, answer)
	}
}

func (p *process) rows() []DeadLetter {
	p.t.Helper()
	status, answer := ask(p.t, "GET", p.url+"/api/dead-letters", "")
	var list listAnswer
	if err := json.Unmarshal([]byte(answer), &list); err != nil || status != http.StatusOK {
		p.t.Fatalf("list: %d %s %v", status, answer, err)
	}
	return list.DeadLetters
}

// row waits for the newest death of a message.
func (p *process) row(id string, want func(DeadLetter) bool) (row DeadLetter) {
	p.t.Helper()
	eventually(p.t, func() string {
		rows := p.rows()
		i := slices.IndexFunc(rows, func(l DeadLetter) bool { return l.MessageID == id && (want == nil || want(l)) })
		if i < 0 {
			return fmt.Sprintf("no such row of %s among %+v", id, rows)
		}
		row = rows[i]
		return ""
	})
	return row
}

// nothingLeft checks that calc.dlq is empty; the auditor must have ended, so
// that what it holds unacked would be back.
func nothingLeft(t *testing.T, ch *amqp.Channel) {
	t.Helper()
	eventually(t, func() string {
		q, err := ch.QueueDeclarePassive(contract.DeadLetterQueue, true, false, false, false, nil)
		if err != nil || q.Messages != 0 {
			return fmt.Sprintf("%s: %d messages, %v; want 0", q.Name, q.Messages, err)
		}
		return ""
	})
}

func TestEachWayToDie(t *testing.T) {
	admin := freshQueues(t)
	p := start(t, filepath.Join(t.TempDir(), "x.db"))

	request(t, "expires", 300*time.Millisecond)
	expired := p.row("expires", nil)

	newServer(t, func(_ *server, d *session.Delivery) {
		_ = d.Reject(d.MessageId == "kills") // requeue it, as a crash does
	})
	request(t, "unanswerable", time.Minute, func(p *amqp.Publishing) { p.ReplyTo = "" })
	rejected := p.row("unanswerable", nil)
	request(t, "kills", time.Minute)
	limit := p.row("kills", nil)
	request(t, "", time.Minute, func(p *amqp.Publishing) { p.MessageId = "" })
	var nameless DeadLetter
	eventually(t, func() string {
		rows := p.rows()
		i := slices.IndexFunc(rows, func(l DeadLetter) bool { return l.Suspicious != "" })
		if i < 0 {
			return "the request without an id is not on record"
		}
		nameless = rows[i]
		return ""
	})

	for _, c := range []struct {
		row    DeadLetter
		reason Reason
		why    string
		code   string
	}{
		{expired, Expired, "expired in calc.requests: no server finished it within 300 ms; its deadline ", ""},
		{rejected, Rejected, "rejected by the server: reply-to: missing", string(contract.Malformed)},
		{limit, DeliveryLimit, "calc.requests gave it up after 6 failed deliveries (delivery limit 5): every server that held it ", ""},
		{nameless, Rejected, "rejected by the server: message-id: 0 characters, want 1 to 64", string(contract.Malformed)},
	} {
		if c.row.Reason != c.reason || !strings.HasPrefix(c.row.Why, c.why) || c.row.Code != c.code || c.row.Seen != 1 || c.row.User != contract.UserClient {
			t.Errorf("got  %s %q code %q seen %d by %s\nwant %s %q code %q seen 1 by %s",
				c.row.Reason, c.row.Why, c.row.Code, c.row.Seen, c.row.User, c.reason, c.why, c.code, contract.UserClient)
		}
	}
	p.stop()
	nothingLeft(t, admin)
	var audited int
	for _, l := range p.events {
		if l.Event == event.Audited {
			audited++
		}
	}
	if audited != 4 {
		t.Errorf("got %d audited events, want 4", audited)
	}
}

func TestReplayIsAnsweredOnce(t *testing.T) {
	freshQueues(t)
	p := start(t, filepath.Join(t.TempDir(), "x.db"))
	request(t, "m", 100*time.Millisecond)
	row := p.row("m", nil)
	let := make(chan struct{})
	s := newServer(t, func(s *server, d *session.Delivery) { <-let; answer(s, d) })

	var mu sync.Mutex
	got := map[int]int{}
	var people sync.WaitGroup
	for _, who := range []string{"ann", "bob", "cyn"} {
		people.Go(func() {
			status, _ := ask(t, "POST", fmt.Sprintf("%s/api/dead-letters/%d/replay", p.url, row.ID), "", "Warren-Actor: "+who)
			mu.Lock()
			defer mu.Unlock()
			got[status]++
		})
	}
	people.Wait()
	if got[202] != 1 || got[409] != 2 {
		t.Errorf("three people at once: got %v, want one 202 and two 409", got)
	}
	close(let)
	row = p.row("m", func(l DeadLetter) bool { return l.Status == Answered })
	if row.Outcome != "0.3" || row.Generation != 1 {
		t.Errorf("got %q as generation %d, want 0.3 as 1", row.Outcome, row.Generation)
	}
	if status, _, stderr := command(t, "replay", "m", "--as", "ann", "--url", p.url); status != exitRefused {
		t.Errorf("replay of an answered one: got %d %s, want %d", status, stderr, exitRefused)
	}

	saw := s.deliveries()
	if len(saw) != 1 {
		t.Fatalf("the server saw %d requests, want 1", len(saw))
	}
	_, meta, err := contract.Validate(&saw[0].Delivery)
	if err != nil || meta.ID != "m" || meta.Replay != 1 || meta.User != contract.UserClient || saw[0].UserId != contract.UserAuditor {
		t.Errorf("the server saw %+v by %s, %v; want m, generation 1, for %s by %s", meta, saw[0].UserId, err, contract.UserClient, contract.UserAuditor)
	}
	if string(saw[0].Body) != `{"operation":"add","operands":["0.1","0.2"]}` {
		t.Errorf("body: got %s", saw[0].Body)
	}
	if _, there := saw[0].Headers["x-death"]; there {
		t.Error("the old x-death was published again")
	}
	p.stop()
}

func TestReplayThatDiesAgain(t *testing.T) {
	freshQueues(t)
	p := start(t, filepath.Join(t.TempDir(), "x.db"))
	request(t, "m", 100*time.Millisecond)
	first := p.row("m", nil)
	newServer(t, func(_ *server, d *session.Delivery) { _ = d.Reject(false) })
	if status, _, stderr := command(t, "replay", "m", "--as", "ann", "--url", p.url, "--wait", "20s"); status != exitRefused || !strings.Contains(stderr, "is died-again") {
		t.Errorf("got %d %s, want %d and died-again", status, stderr, exitRefused)
	}
	second := p.row("m", func(l DeadLetter) bool { return l.Replay == 1 })
	if second.Status != Open || second.Reason != Rejected || second.OriginalUser != contract.UserClient || second.ID == first.ID {
		t.Errorf("the death of the replay: got %+v, want an open row of its own", second)
	}
	if status, _, stderr := command(t, "discard", strconv.FormatInt(second.ID, 10), "--as", "ann", "--reason", "given up", "--url", p.url); status != 0 {
		t.Errorf("discard: got %d %s", status, stderr)
	}
	_, trail, _ := command(t, "trail", "--url", p.url)
	for _, want := range []string{"open       replaying   generation 1", "replaying  died-again  dead letter 2: rejected by the server", "open       discarded   given up"} {
		if !strings.Contains(trail, want) {
			t.Errorf("trail: no %q in\n%s", want, trail)
		}
	}
	p.stop()
}

// The auditor dies between commit and ack.
//
// Promise: one row, seen twice; nothing is left in the queue.
// Control: without the unique key the same kill makes two rows.
func TestKilledBetweenCommitAndAck(t *testing.T) {
	for name, c := range map[string]struct {
		engine     string
		uniqueKey  string
		rows, seen int
	}{
		"unique key":             {"SQLite", "true", 1, 2},
		"PostgreSQL":             {"PostgreSQL", "true", 1, 2},
		"control: no unique key": {"SQLite", "false", 2, 1},
	} {
		t.Run(name, func(t *testing.T) {
			admin := freshQueues(t)
			cfg := engines[c.engine](t)
			db, settings := cfg.Database, []string{"WARREN_UNIQUE_KEY=" + c.uniqueKey, "WARREN_DATABASE_PASSWORD_FILE=" + cfg.DatabasePasswordFile}
			p := start(t, db, settings...)
			p.armCrash()
			request(t, "m", 100*time.Millisecond)
			if status := p.wait(); status.Signal() != syscall.SIGKILL {
				t.Fatalf("the auditor ended with %v, want killed", status)
			}
			p = start(t, db, settings...)
			var rows []DeadLetter
			eventually(t, func() string {
				rows = p.rows()
				seen := 0
				for _, r := range rows {
					seen += r.Seen
				}
				if seen != 2 {
					return fmt.Sprintf("the death was seen %d times, want 2", seen)
				}
				return ""
			})
			if len(rows) != c.rows || rows[0].Seen != c.seen {
				t.Errorf("got %d rows seen %d, want %d seen %d", len(rows), rows[0].Seen, c.rows, c.seen)
			}
			p.stop()
			nothingLeft(t, admin)
		})
	}
}

// "Retrying with the same id is safe", and anybody can use an id that was used
// before: each death is on record and waits for a person, whatever became of
// the one before.
func TestTwoDeathsUnderOneID(t *testing.T) {
	freshQueues(t)
	p := start(t, filepath.Join(t.TempDir(), "x.db"))
	request(t, "m", 50*time.Millisecond)
	first := p.row("m", nil)
	if status, _, stderr := command(t, "discard", "m", "--as", "ann", "--reason", "given up", "--url", p.url); status != 0 {
		t.Fatalf("discard: got %d %s", status, stderr)
	}
	request(t, "m", 50*time.Millisecond)
	again := p.row("m", func(l DeadLetter) bool { return l.Status == Open })
	stranger := open(t, "AMQP_URL")
	publish(t, stranger, "m", 50*time.Millisecond, func(p *amqp.Publishing) { p.UserId, p.Body = "", []byte("{}") })
	other := p.row("m", func(l DeadLetter) bool { return l.User == "" })
	if first.ID == again.ID || again.ID == other.ID || other.Status != Open || other.Seen != 1 || other.BodySize != 2 {
		t.Errorf("got rows %d, %d and %+v; want three, and the stranger's as it was sent", first.ID, again.ID, other)
	}
	p.stop()
}

// The broker comes after the auditor, and goes and comes again: alive, unready
// meanwhile, no restart, and each dead letter is audited once.
func TestOutlivesABrokerThatIsAway(t *testing.T) {
	admin := freshQueues(t)
	uri, err := amqp.ParseURI(env(t, "AMQP_URL_DLQ_AUDITOR"))
	if err != nil {
		t.Fatal("AMQP_URL_DLQ_AUDITOR is no AMQP URL")
	}
	broker, addr := net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port)), freeAddr(t)
	p := launch(t, filepath.Join(t.TempDir(), "x.db"), "WARREN_AMQP_URL="+strings.Replace(env(t, "AMQP_URL_DLQ_AUDITOR"), broker, addr, 1))
	for _, id := range []string{"before it came", "while it was away"} {
		request(t, id, 50*time.Millisecond)
		eventually(t, func() string {
			res, err := http.Get(p.admin + "/livez")
			if err != nil {
				return err.Error()
			}
			defer res.Body.Close()
			if status, why := ask(t, "GET", p.admin+"/readyz", ""); res.StatusCode != http.StatusOK || status != http.StatusServiceUnavailable {
				return fmt.Sprintf("livez: %s, readyz: %d %s", res.Status, status, why)
			}
			return ""
		})
		cut := forward(t, addr, broker)
		p.row(id, func(l DeadLetter) bool { return l.Seen == 1 })
		eventually(t, p.notReady)
		cut()
	}
	defer forward(t, addr, broker)()
	eventually(t, p.notReady)
	p.stop()
	nothingLeft(t, admin)
	if strings.Contains(p.log.String(), uri.Password) {
		t.Error("the log has the password")
	}
}

// forward leads from addr to the broker until cut.
func forward(t *testing.T, addr, broker string) (cut func()) {
	t.Helper()
	l, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	var pumps sync.WaitGroup
	pump := func(dst, src net.Conn) {
		defer dst.Close()
		_, _ = io.Copy(dst, src)
	}
	pumps.Go(func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", broker)
			if err != nil {
				t.Error(err)
				_ = near.Close()
				return
			}
			context.AfterFunc(ctx, func() { _, _ = near.Close(), far.Close() })
			pumps.Go(func() { pump(near, far) })
			pumps.Go(func() { pump(far, near) })
		}
	})
	return func() {
		_ = l.Close()
		stop()
		pumps.Wait()
	}
}

// The auditor dies while a replay is in flight. Whoever comes next publishes
// it again when the lease has ended, and never as another generation.
func TestKilledDuringReplay(t *testing.T) {
	freshQueues(t)
	db := filepath.Join(t.TempDir(), "x.db")
	settings := []string{"WARREN_REPLAY_TIMEOUT=1s", "WARREN_REPLAY_LEASE=6s"}
	p := start(t, db, settings...)
	request(t, "m", 100*time.Millisecond)
	row := p.row("m", nil)
	let, arrived := make(chan struct{}), make(chan struct{}, 10)
	s := newServer(t, func(s *server, d *session.Delivery) {
		arrived <- struct{}{}
		<-let
		answer(s, d)
	})
	if status, _, stderr := command(t, "replay", strconv.FormatInt(row.ID, 10), "--as", "ann", "--url", p.url); status != 0 {
		t.Fatalf("replay: %d %s", status, stderr)
	}
	<-arrived
	if err := p.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	p.wait()
	close(let) // the answer finds nobody

	p = start(t, db, settings...)
	row = p.row("m", func(l DeadLetter) bool { return l.Status == Answered })
	if row.Generation != 1 || row.Outcome != "0.3" {
		t.Errorf("got %q as generation %d, want 0.3 as 1", row.Outcome, row.Generation)
	}
	saw := s.deliveries()
	if len(saw) < 2 {
		t.Fatalf("the server saw %d requests, want the one before the kill and the one after", len(saw))
	}
	for _, d := range saw {
		if d.Headers[contract.HeaderReplay] != int64(1) || d.MessageId != "m" {
			t.Errorf("the server saw generation %v of %s, want 1 of m", d.Headers[contract.HeaderReplay], d.MessageId)
		}
	}
	p.stop()
}

// Somebody else holds the database: nothing is settled and the service is not
// ready, until the database is back.
func TestDatabaseAway(t *testing.T) {
	admin := freshQueues(t)
	path := filepath.Join(t.TempDir(), "x.db")
	p := start(t, path)
	db, err := sql.Open("sqlite", path)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	lock, err := db.Conn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock.ExecContext(t.Context(), `BEGIN IMMEDIATE`); err != nil {
		t.Fatal(err)
	}
	request(t, "m", 100*time.Millisecond)
	eventually(t, func() string { // after SQLite's own wait of 5 s
		if p.notReady() == "" {
			return "ready although the database is locked"
		}
		return ""
	})
	if rows := p.rows(); len(rows) != 0 {
		t.Errorf("got %d rows while the database is locked", len(rows))
	}
	if _, err := lock.ExecContext(t.Context(), `ROLLBACK`); err != nil {
		t.Fatal(err)
	}
	p.row("m", func(l DeadLetter) bool { return l.Seen == 1 })
	eventually(t, p.notReady)
	p.stop()
	nothingLeft(t, admin)
}
