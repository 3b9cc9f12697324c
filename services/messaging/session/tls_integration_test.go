//go:build integration

package session

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
)

// The broker's TLS is ended by a terminator in front of it, so that the test
// owns the authority, and can show what is refused.
func TestTLS(t *testing.T) {
	b := newBench(t, nil)
	dir := t.TempDir()
	authority := newAuthority(t, dir, "ca")
	stranger := newAuthority(t, dir, "other-ca")
	broker := authority.issue(t, dir, "broker", "rabbit.example")
	authority.issue(t, dir, "client", "calc-client")
	stranger.issue(t, dir, "stranger", "calc-client")

	uri, err := amqp.ParseURI(b.admin)
	if err != nil {
		t.Fatal("AMQP_URL is no AMQP URL")
	}
	upstream := net.JoinHostPort(uri.Host, strconv.Itoa(uri.Port))
	uri.Scheme, uri.Host, uri.Port = "amqps", "127.0.0.1", terminate(t, upstream, broker, authority.pool)
	file := func(name string) string { return filepath.Join(dir, name+".pem") }
	for name, tc := range map[string]struct {
		change func(*Config)
		want   string // part of the error; "" means connected
	}{
		"right authority, name and client": {func(*Config) {}, ""},
		"another authority":                {func(c *Config) { c.CAFile = file("other-ca") }, "unknown authority"},
		"another name":                     {func(c *Config) { c.ServerName = "elsewhere.example" }, "elsewhere.example"},
		"no client certificate":            {func(c *Config) { c.CertFile, c.KeyFile = "", "" }, "certificate"},
		"a stranger's certificate":         {func(c *Config) { c.CertFile, c.KeyFile = file("stranger"), file("stranger-key") }, "certificate"},
		"another's key":                    {func(c *Config) { c.KeyFile = file("stranger-key") }, "WARREN_AMQP_KEY_FILE"},
	} {
		t.Run(name, func(t *testing.T) {
			c := b.options.Config
			c.URL, c.CAFile, c.ServerName = []string{uri.String()}, file("ca"), "rabbit.example"
			c.CertFile, c.KeyFile = file("client"), file("client-key")
			tc.change(&c)
			err := c.Validate()
			if err == nil {
				err = c.Probe(t.Context())
			}
			if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v, want %q", err, tc.want)
			}
		})
	}
}

type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pool *x509.CertPool
}

func newAuthority(t *testing.T, dir, name string) *authority {
	t.Helper()
	a := &authority{key: newKey(t), pool: x509.NewCertPool()}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	a.cert = sign(t, dir, name, template, template, a.key, a.key)
	a.pool.AddCert(a.cert)
	return a
}

// issue writes NAME.pem and NAME-key.pem.
func (a *authority) issue(t *testing.T, dir, name, dns string) tls.Certificate {
	t.Helper()
	key := newKey(t)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: dns}, DNSNames: []string{dns}, NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	cert := sign(t, dir, name, template, a.cert, key, a.key)
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, name+"-key.pem"), "EC PRIVATE KEY", der)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func sign(t *testing.T, dir, name string, template, parent *x509.Certificate, key, by *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &key.PublicKey, by)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, name+".pem"), "CERTIFICATE", der)
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func writePEM(t *testing.T, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}

// terminate ends TLS and passes the rest to upstream. It returns its port.
func terminate(t *testing.T, upstream string, cert tls.Certificate, clients *x509.CertPool) int {
	t.Helper()
	l, err := tls.Listen("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { _ = l.Close(); <-done })
	go func() {
		defer close(done)
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			broker, err := net.Dial("tcp", upstream)
			if err != nil {
				_ = client.Close()
				continue
			}
			go func() { _, _ = io.Copy(broker, client); _ = broker.Close() }()
			go func() { _, _ = io.Copy(client, broker); _ = client.Close() }()
		}
	}()
	return l.Addr().(*net.TCPAddr).Port
}
