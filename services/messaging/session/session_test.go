package session

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"warren.example/messaging/topology"
)

func newTestEpoch() *epoch {
	e := &epoch{id: 1}
	e.ctx, e.fail = context.WithCancelCause(context.Background())
	return e
}

func good() Config {
	return Config{URL: []string{"amqp://calc-client:s3cret@127.0.0.1:5672/calc"}, Heartbeat: 10 * time.Second,
		WriteTimeout: time.Second, OpenTimeout: time.Second, MaxBackoff: time.Second}
}

func TestConfigRefusesAndNeverTellsThePassword(t *testing.T) {
	empty, full := t.TempDir()+"/empty", t.TempDir()+"/full"
	if err := errors.Join(os.WriteFile(empty, []byte("\n"), 0o600), os.WriteFile(full, []byte("s3cret\n"), 0o600)); err != nil {
		t.Fatal(err)
	}
	amqps := func(c *Config) { c.URL = []string{strings.Replace(c.URL[0], "amqp:", "amqps:", 1)} }
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string // part of the error; "" means none
	}{
		"good":                    {func(*Config) {}, ""},
		"several nodes":           {func(c *Config) { c.URL = append(c.URL, "amqp://calc-client:s3cret@127.0.0.1:5673/calc") }, ""},
		"nodes of two vhosts":     {func(c *Config) { c.URL = append(c.URL, "amqp://calc-client:s3cret@127.0.0.1:5673/other") }, "number 2 (127.0.0.1): differs"},
		"no user":                 {func(c *Config) { c.URL = []string{"amqp://127.0.0.1/calc"} }, "WARREN_AMQP_USERNAME: empty"},
		"guest":                   {func(c *Config) { c.URL = []string{"amqp://guest:s3cret@127.0.0.1/calc"} }, "WARREN_AMQP_USERNAME=guest"},
		"another scheme":          {func(c *Config) { c.URL = []string{"http://calc-client:s3cret@127.0.0.1/calc"} }, "not of the form"},
		"a broken escape":         {func(c *Config) { c.URL = []string{"amqp://calc-client:s3cret%zz@127.0.0.1/calc"} }, "not of the form"},
		"a query":                 {func(c *Config) { c.URL[0] += "?heartbeat=1" }, "no ? and #"},
		"no URL":                  {func(c *Config) { c.URL = nil }, "WARREN_AMQP_URL: empty"},
		"a heartbeat too fast":    {func(c *Config) { c.Heartbeat = 100 * time.Millisecond }, "WARREN_AMQP_HEARTBEAT=100ms"},
		"a timeout of nothing":    {func(c *Config) { c.WriteTimeout = 0 }, "WARREN_AMQP_WRITE_TIMEOUT=0s"},
		"a key without its cert":  {func(c *Config) { c.KeyFile = "k" }, "both or neither"},
		"TLS files without amqps": {func(c *Config) { c.CAFile = "ca" }, "only for amqps"},
		"a port of nobody":        {func(c *Config) { c.URL = []string{"amqp://calc-client:s3cret@127.0.0.1:70000/calc"} }, "WARREN_AMQP_URL: number 1: 127.0.0.1: port 70000: want 1 to 65535"},
		"port 0":                  {func(c *Config) { c.URL = []string{"amqp://calc-client:s3cret@127.0.0.1:0/calc"} }, "port 0: want"},
		"no password":             {func(c *Config) { c.URL = []string{"amqp://calc-client@127.0.0.1/calc"} }, "WARREN_AMQP_PASSWORD_FILE: empty, and WARREN_AMQP_URL holds no"},
		"a password file":         {func(c *Config) { c.URL, c.PasswordFile = []string{"amqp://calc-client@127.0.0.1/calc"}, full }, ""},
		"an empty password file":  {func(c *Config) { c.PasswordFile = empty }, "WARREN_AMQP_PASSWORD_FILE=" + empty + ": empty"},
		"a missing password file": {func(c *Config) { c.PasswordFile = "/none" }, "WARREN_AMQP_PASSWORD_FILE=/none: no such file"},
		"an empty CA file":        {func(c *Config) { amqps(c); c.CAFile = empty }, "WARREN_AMQP_CA_FILE=" + empty + ": holds no certificate"},
		"no pair": {func(c *Config) { amqps(c); c.CertFile, c.KeyFile = empty, full },
			"WARREN_AMQP_CERT_FILE=" + empty + ", WARREN_AMQP_KEY_FILE=" + full + ": tls: "},
		"all at once": {func(c *Config) {
			amqps(c)
			c.URL = append(c.URL, "amqps://x@y:70000/calc")
			c.PasswordFile, c.CAFile, c.CertFile, c.KeyFile, c.MaxBackoff = "/none/1", "/none/2", "/none/3", "/none/4", 0
		}, "number 2: y: port 70000: want 1 to 65535\nWARREN_AMQP_PASSWORD_FILE=/none/1: no such file or directory\nWARREN_AMQP_CA_FILE=/none/2: no such file or directory\n" +
			"WARREN_AMQP_CERT_FILE=/none/3: no such file or directory\nWARREN_AMQP_KEY_FILE=/none/4: no such file or directory\nWARREN_AMQP_MAX_BACKOFF=0s"},
	} {
		t.Run(name, func(t *testing.T) {
			c := good()
			tc.change(&c)
			got := fmt.Sprint(c.Validate())
			if tc.want == "" && got != "<nil>" || !strings.Contains(got, tc.want) {
				t.Errorf("got %q, want %q", got, tc.want)
			}
			if strings.Contains(got, "s3cret") {
				t.Errorf("%q tells the password", got)
			}
		})
	}
}

func TestThePasswordFileIsReadAnew(t *testing.T) {
	c := good()
	c.PasswordFile = t.TempDir() + "/password"
	for _, want := range []string{"one", "two"} {
		if err := os.WriteFile(c.PasswordFile, []byte(want+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		auth, err := c.credentials(amqp.URI{})
		if err != nil {
			t.Fatal(err)
		}
		if got := auth.(*amqp.PlainAuth).Password; got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// A sender that saw the publisher ready may be overtaken by Close.
func TestWhatIsSentWhileClosingIsSettledOnce(t *testing.T) {
	p := &Publisher{link: newLink(Options{}, "publish"), items: make(chan *item, 256)}
	settled := 0
	p.close()
	for n, when := range []string{"before the end", "after it"} {
		p.set(nil)
		for range 100 {
			p.Send(t.Context(), Message{}, trackerFunc(func(o Outcome, err error) {
				settled++
				if o != NotWritten || !errors.Is(err, ErrClosed) {
					t.Errorf("%s: got %s (%v), want %s", when, o, err, NotWritten)
				}
			}))
		}
		if n == 0 {
			p.items <- &item{tracker: trackerFunc(func(Outcome, error) {
				settled++
				select {
				case <-p.done:
					t.Error("closed with a message in hand")
				default:
				}
			})}
			p.live()
		}
	}
	if settled != 201 {
		t.Errorf("%d of 201 messages were settled", settled)
	}
}

type trackerFunc func(Outcome, error)

func (trackerFunc) Written(uint64)                           {}
func (f trackerFunc) Settled(o Outcome, _ uint64, err error) { f(o, err) }

func TestABrokerThatIsTooOldIsRefused(t *testing.T) {
	for version, want := range map[string]string{
		"3.9.29":     "RabbitMQ 3.9.29: the broker is too old, need 3.10 or newer",
		"3.10.0":     "",
		"4.3.0-rc.1": "",
		"unknown":    `broker version "unknown"`,
	} {
		err := known(topology.ParseVersion(version))
		if (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: got %v, want %q", version, err, want)
		}
	}
}

func TestBackoffGrowsWithJitterAndHasNoLastAttempt(t *testing.T) {
	const most = 2 * time.Second
	refused := fmt.Errorf("connect: %w", &amqp.Error{Code: amqp.AccessRefused})
	tooOld := fmt.Errorf("connect: %w", ErrTooOld)
	for failures, d := range map[int]time.Duration{1: 50 * time.Millisecond, 3: 200 * time.Millisecond, 100: most, 1 << 40: most} {
		if got := backoff(failures, most, errors.New("refused")); got < d/2 || got > d {
			t.Errorf("after %d failures: got %s, want %s to %s", failures, got, d/2, d)
		}
	}
	for _, err := range []error{refused, tooOld} {
		if got := backoff(1, most, err); got < 5*most/2 {
			t.Errorf("after %v: got %s, want at least %s", err, got, 5*most/2)
		}
	}
}

func TestABurstIsOneWriteAndEveryWriteEnds(t *testing.T) {
	ours, peer := net.Pipe()
	c := newConn(ours, ours, 50*time.Millisecond)
	got := make(chan string, 1)
	go func() {
		b := make([]byte, 100)
		n, _ := peer.Read(b) // net.Pipe hands over one write at a time
		got <- string(b[:n])
	}()
	c.cork()
	for _, s := range []string{"method ", "header ", "body"} {
		if _, err := io.WriteString(c, s); err != nil {
			t.Fatal(err)
		}
	}
	c.uncork()
	if s := <-got; s != "method header body" {
		t.Errorf("first write: got %q, want the whole burst", s)
	}
	// Nobody reads any more: the write must end by itself, and say so from then on.
	if _, err := io.WriteString(c, "x"); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("blocked write: got %v, want %v", err, os.ErrDeadlineExceeded)
	}
	if _, err := io.WriteString(c, "x"); err == nil {
		t.Error("a broken connection takes another write")
	}
}

func TestWhatCannotBeEncodedIsNamed(t *testing.T) {
	long := strings.Repeat("x", 256)
	for want, m := range map[string]Message{
		"correlation-id: 256 bytes":  {Publishing: amqp.Publishing{CorrelationId: long}},
		"routing key: 256 bytes":     {Key: long},
		"name of 256 bytes":          {Publishing: amqp.Publishing{Headers: amqp.Table{long: "x"}}},
		"header calc-x: a struct {}": {Publishing: amqp.Publishing{Headers: amqp.Table{"calc-x": struct{}{}}}},
	} {
		if _, err := appendPublish(nil, 4096, &m); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
}

// The library's frames give way to ours, wherever a heartbeat falls, and
// nothing else is touched.
func TestOurFramesStandForTheLibrarys(t *testing.T) {
	theirs, err := appendPublish(nil, 4096, &Message{Publishing: amqp.Publishing{Body: []byte("theirs")}})
	if err != nil {
		t.Fatal(err)
	}
	method, rest := theirs[:frameOverhead+9], theirs[frameOverhead+9:]
	heartbeat := []byte{8, 0, 0, 0, 0, 0, 0, frameEnd}
	other := []byte{frameMethod, 0, 1, 0, 0, 0, 4, 0, 20, 0, 40, frameEnd}
	for name, tc := range map[string]struct {
		writes [][]byte
		want   string
	}{
		"alone":              {[][]byte{theirs}, "ours"},
		"a heartbeat within": {[][]byte{append(slices.Clone(method), heartbeat...), rest}, "ours" + string(heartbeat)},
		"another method":     {[][]byte{other, theirs}, string(other) + "ours"},
		"half a frame":       {[][]byte{theirs[:20]}, ""},
		"on another channel": {[][]byte{append([]byte{frameMethod, 0, 2}, theirs[3:]...)}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			ours, peer := net.Pipe()
			c := newConn(ours, ours, time.Second)
			got := make(chan string, 1)
			go func() {
				b, _ := io.ReadAll(peer)
				got <- string(b)
			}()
			c.substitute([]byte("ours"))
			var err error
			for _, w := range tc.writes {
				if err == nil {
					_, err = c.Write(w)
				}
			}
			_ = c.Close()
			if s := <-got; s != tc.want || (err != nil) != (tc.want == "") {
				t.Errorf("got %q and error %v, want %q", s, err, tc.want)
			}
		})
	}
}

// A crowd in flight makes reads pause, and so gather; nobody else waits.
func TestReadsPauseOnlyForACrowd(t *testing.T) {
	for name, tc := range map[string]struct {
		inFlight int
		plenty   bool
		want     string
	}{
		"a few wait":                 {crowd - 1, false, "1"},
		"a crowd waits":              {crowd, false, "12"},
		"a crowd, and more is there": {crowd, true, "1"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				peer := feed{later: time.Now().Add(pause / 2)}
				c := newConn(peer, peer, time.Second)
				c.plenty = tc.plenty
				c.moderate(func() int { return tc.inFlight })
				b := make([]byte, 10)
				if n, err := c.Read(b); err != nil || string(b[:n]) != tc.want {
					t.Errorf("got %q (%v), want %q", b[:n], err, tc.want)
				}
			})
		})
	}
}

// feed is a peer that has sent "1", and "2" from later on.
type feed struct {
	net.Conn
	later time.Time
}

func (f feed) Read(p []byte) (int, error) {
	if time.Now().Before(f.later) {
		return copy(p, "1"), nil
	}
	return copy(p, "12"), nil
}
