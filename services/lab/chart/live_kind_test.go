//go:build kind

package chart

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	kind "sigs.k8s.io/kind/pkg/cluster"

	"warren.example/lab/substrate/vhost"
	"warren.example/messaging/topology"
)

// These tests take the kind cluster that a lab left with --keep, for its nodes
// and the images on them; its release is left alone. kubectl is the one on the
// node.

const kept = "warren"

// A place is a namespace of the kept cluster that enforces restricted.
type place struct {
	*testing.T
	namespace string
	access    string // kubeconfig
	config    *rest.Config
}

func newPlace(t *testing.T, name string) *place {
	t.Helper()
	text, err := kind.NewProvider(kind.ProviderWithDocker()).KubeConfig(kept, false)
	if err != nil {
		t.Fatalf("no kind cluster %s (%v): go run ./services/lab up --on kind --reuse --detach", kept, err)
	}
	p := &place{T: t, namespace: "warren-chart-" + name, access: filepath.Join(t.TempDir(), "kubeconfig")}
	if err := os.WriteFile(p.access, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if p.config, err = clientcmd.RESTConfigFromKubeConfig([]byte(text)); err != nil {
		t.Fatal(err)
	}
	gone := []string{"delete", "namespace", p.namespace, "--ignore-not-found", "--timeout=2m"}
	p.kubectl("", gone...) // of a test that was killed
	p.kubectl("", "create", "namespace", p.namespace)
	p.kubectl("", "wait", "--for=create", "serviceaccount/default", "configmap/kube-root-ca.crt", "--timeout=30s")
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(p.try("", "get", "pods,persistentvolumeclaims,events"))
		}
		p.kubectl("", gone...)
	})
	p.kubectl("", "label", "namespace", p.namespace, "pod-security.kubernetes.io/enforce=restricted")
	return p
}

func (p *place) try(stdin string, args ...string) (string, error) {
	return said(stdin, "docker", append(onNode, append([]string{"kubectl", "--namespace", p.namespace}, args...)...)...)
}

// onNode runs a command where kubectl is, with the administrator's access.
var onNode = []string{"exec", "--interactive", "--env=KUBECONFIG=/etc/kubernetes/admin.conf", kept + "-control-plane"}

func (p *place) kubectl(stdin string, args ...string) string {
	p.Helper()
	out, err := p.try(stdin, args...)
	if err != nil {
		p.Fatalf("kubectl %s: %v", strings.Join(args, " "), err)
	}
	return out
}

func (p *place) tryHelm(args ...string) (string, error) {
	return said("", program(p.T, helms[1]), append(args, "--kubeconfig", p.access, "--namespace", p.namespace)...)
}

func (p *place) helm(args ...string) string {
	p.Helper()
	out, err := p.tryHelm(args...)
	if err != nil {
		p.Fatalf("helm %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// said is a command's output; its error carries the rest. What hangs is ended,
// so that the namespace can still be deleted.
func said(stdin, program string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, program, args...)
	var out, bad bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &bad
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%w: %s%s", err, out.String(), bad.String())
	}
	return out.String(), nil
}

// values of a small broker, and of the kept release's images: under rabbitmq for
// charts/warren, as they are for charts/rabbitmq.
func (p *place) values(under string) []string {
	p.Helper()
	var of struct {
		RabbitMQ struct{ Image json.RawMessage }
		Database struct{ Image string }
	}
	text, err := said("", program(p.T, helms[1]), "get", "values", kept, "--namespace", kept, "--kubeconfig", p.access, "--output", "json")
	if err == nil {
		err = json.Unmarshal([]byte(text), &of)
	}
	if err != nil {
		p.Fatalf("release %s: %v", kept, err)
	}
	args := []string{"--wait", "--timeout=4m", fmt.Sprintf("--set=%sreplicas=1,%[1]squorumTimeoutSeconds=1,%[1]sdrainTimeoutSeconds=5", under)}
	if of.RabbitMQ.Image != nil {
		args = append(args, "--set-json="+under+"image="+string(of.RabbitMQ.Image))
	}
	if of.Database.Image != "" && under != "" {
		args = append(args, "--set=database.image="+of.Database.Image)
	}
	return args
}

// secrets are those of the namespace that are not Helm's own.
func (p *place) secrets() map[string]map[string][]byte {
	p.Helper()
	var list corev1.SecretList
	if err := json.Unmarshal([]byte(p.kubectl("", "get", "secrets", "--field-selector=type=Opaque", "--output=json")), &list); err != nil {
		p.Fatal(err)
	}
	all := map[string]map[string][]byte{}
	for _, s := range list.Items {
		all[s.Name] = s.Data
	}
	return all
}

// forward makes a port of a pod one of this machine, as kubectl port-forward does.
func (p *place) forward(pod string, port int) (address string, stop func()) {
	p.Helper()
	client, err := kubernetes.NewForConfig(p.config)
	if err != nil {
		p.Fatal(err)
	}
	url := client.CoreV1().RESTClient().Post().Resource("pods").Namespace(p.namespace).Name(pod).SubResource("portforward").URL()
	transport, upgrader, err := spdy.RoundTripperFor(p.config)
	if err != nil {
		p.Fatal(err)
	}
	ended, ready, failed := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	f, err := portforward.New(spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, url),
		[]string{fmt.Sprintf("0:%d", port)}, ended, ready, io.Discard, io.Discard)
	if err != nil {
		p.Fatal(err)
	}
	go func() { failed <- f.ForwardPorts() }()
	select {
	case <-ready:
	case err := <-failed:
		p.Fatalf("port %d of pod %s: %v", port, pod, err)
	}
	ports, err := f.GetPorts()
	if err != nil {
		p.Fatal(err)
	}
	return fmt.Sprintf("127.0.0.1:%d", ports[0].Local), func() { close(ended) }
}

// queue opens a quorum queue that is no service's business.
func (p *place) queue(pod, password string, do func(*amqp.Channel, string) error) {
	p.Helper()
	address, stop := p.forward(pod, 5672)
	defer stop()
	conn, err := vhost.Dial(vhost.URL("amqp", address, topology.Admin, password, "calc"))
	if err != nil {
		p.Fatal(err)
	}
	defer conn.Close()
	ch, err := conn.Channel()
	if err == nil {
		var q amqp.Queue
		if q, err = ch.QueueDeclare("left", true, false, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum}); err == nil {
			err = do(ch, q.Name)
		}
	}
	if err != nil {
		p.Fatal(err)
	}
}

var checked = regexp.MustCompile(`request (check-\S+) was refused`)

// test is helm test; it returns the dead letter that the check leaves on record.
func (p *place) test(release string) (request string) {
	p.Helper()
	m := checked.FindStringSubmatch(p.helm("test", release, "--logs"))
	if m == nil {
		p.Fatal("helm test says nothing of a dead letter")
	}
	return m[1]
}

// follow runs what NOTES.txt prints, but for what never ends.
func (p *place) follow(notes string, least int) (all string) {
	p.Helper()
	n := 0
	for line := range strings.Lines(notes) {
		line = strings.TrimSuffix(strings.TrimSpace(line), " -f")
		if !strings.HasPrefix(line, "kubectl ") || strings.Contains(line, " port-forward ") {
			continue
		}
		n++
		out, err := said("", "docker", append(onNode, "sh", "-c", line)...)
		if err != nil || strings.TrimSpace(out) == "" {
			p.Errorf("NOTES.txt: %s: %q, %v", line, out, err)
		}
		all += "\n" + out
	}
	if n < least {
		p.Errorf("NOTES.txt: %d commands, want %d or more:\n%s", n, least, notes)
	}
	return all
}

// recorded fails unless the auditor has the request's death.
func (p *place) recorded(auditor, request string) {
	p.Helper()
	out := p.kubectl("", "exec", auditor, "--", "/service", "show", request, "--token-file=/etc/warren/token", "--output=json")
	if !strings.Contains(out, `"MALFORMED"`) {
		p.Errorf("dead letter of %s: got %s", request, out)
	}
}

// A release with random secrets is upgraded, uninstalled and installed again.
func TestLiveRelease(t *testing.T) {
	p := newPlace(t, "life")
	install := append(append([]string{"upgrade", "--install", "life", warrenChart}, values("kind")...), append(p.values("rabbitmq."),
		"--set=seed=,rabbitmq.auth.seed=,rabbitmq.persistence.retain=true,database.persistence.retain=true,server.replicas=1,lab.enabled=true")...)
	notes := p.helm(install...)
	first := p.secrets()
	if len(first) < len(users(t))+3 {
		t.Fatalf("Secrets: %v", slices.Sorted(maps.Keys(first)))
	}

	if out := p.follow(notes, 5); !strings.Contains(out, "\n0.3\n") {
		t.Errorf("NOTES.txt: no call is answered: %s", out)
	}
	for workload, name := range map[string]string{"server": "calculator-server", "client": "client", "auditor": "dead-letter-auditor"} {
		out := p.kubectl("", "exec", "deployment/life-warren-"+workload, "--", "/service", "--version")
		if !regexp.MustCompile(`^` + name + `\b.*\b[0-9a-f]{7,40}\b`).MatchString(out) {
			t.Errorf("%s --version: %q, want name, version and commit", name, out)
		}
	}
	metrics := p.kubectl("", "get", "--raw", "/api/v1/namespaces/"+p.namespace+"/pods/life-rabbitmq-0:15692/proxy/metrics")
	if !strings.Contains(metrics, "\nrabbitmq_") {
		t.Errorf("port 15692: %.200q", metrics)
	}
	if out := p.kubectl("", "exec", "deployment/life-warren-lab", "--", "/service", "run", "killed-before-ack", "--on", "cluster", "--release", "life"); !strings.Contains(out, "HELD") {
		t.Errorf("the lab's pod: %s", out)
	}

	p.helm(append(install, "--set=server.prefetch=50")...)
	if !reflect.DeepEqual(p.secrets(), first) {
		t.Error("an upgrade changed Secrets")
	}
	request := p.test("life")

	const text = "do not lose me"
	p.queue("life-rabbitmq-0", string(first["life-rabbitmq-admin"]["password"]), func(ch *amqp.Channel, queue string) error {
		if err := ch.Confirm(false); err != nil {
			return err
		}
		sent, err := ch.PublishWithDeferredConfirm("", queue, true, false, amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte(text)})
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		if acked, err := sent.WaitContext(ctx); err != nil || !acked {
			return fmt.Errorf("message: confirmed: %v, %w", acked, err)
		}
		return nil
	})

	p.helm("uninstall", "life", "--wait", "--timeout=2m")
	p.kubectl("", "wait", "--for=delete", "pod", "--field-selector=status.phase!=Succeeded", "--timeout=2m") // the check's stays
	if left := p.secrets(); len(left) > 0 {
		t.Errorf("Secrets are left: %v", slices.Sorted(maps.Keys(left)))
	}
	p.helm(install...)
	again := p.secrets()
	for name, data := range first {
		if reflect.DeepEqual(again[name], data) {
			t.Errorf("Secret %s: the same as before the uninstall", name)
		}
	}
	p.test("life")
	p.recorded("deployment/life-warren-auditor", request)
	p.queue("life-rabbitmq-0", string(again["life-rabbitmq-admin"]["password"]), func(ch *amqp.Channel, queue string) error {
		if d, ok, err := ch.Get(queue, true); err != nil || !ok || string(d.Body) != text {
			return fmt.Errorf("the message that was left: %v, %q, %w", ok, d.Body, err)
		}
		return nil
	})
}

// Somebody else's broker, by TLS with certificates at both ends, in a virtual
// host where the hook must declare everything; and SQLite.
func TestLiveExternal(t *testing.T) {
	p := newPlace(t, "external")
	const host, database = "mq-rabbitmq", "elsewhere"
	ca := issue(t, "authority", 0, nil)
	for name, i := range map[string]*identity{
		"mq-tls":        issue(t, host+"."+p.namespace+".svc", x509.ExtKeyUsageServerAuth, ca),
		"broker-client": issue(t, "warren", x509.ExtKeyUsageClientAuth, ca),
	} {
		p.kubectl(secretOf(t, name, i.files(t, ca)), "apply", "--filename=-")
	}
	notes := p.helm(append([]string{"install", "mq", rabbitmqChart, "--values=" + rabbitmqChart + "/values-kind.yaml", "--set=tls.secret=mq-tls,tls.verifyClients=true"}, p.values("")...)...)
	p.follow(notes, 4)

	passwords := map[string]string{}
	for name, data := range p.secrets() {
		passwords[strings.TrimPrefix(name, host+"-")] = string(data["password"])
	}
	address, stop := p.forward(host+"-0", 15672)
	defer stop()
	api := vhost.API{URL: "http://" + address, User: topology.Admin, Password: passwords[topology.Admin]}
	if err := api.Create(t.Context(), database); err != nil {
		t.Fatal(err)
	}
	example := read(t, "../../../k8s/external.secrets.yaml")
	for _, u := range topology.Users() {
		if err := api.Put(t.Context(), "permissions/"+database+"/"+u.Name, map[string]string{"configure": u.Configure, "write": u.Write, "read": u.Read}); err != nil {
			t.Fatal(err)
		}
		example = strings.ReplaceAll(example, "amqp://"+u.Name+":PASSWORD@BROKER:5672/calc", vhost.URL("amqps", host+"."+p.namespace+".svc:5671", u.Name, passwords[u.Name], database))
	}
	p.kubectl(example, "apply", "--filename=-")
	p.helm(append(append([]string{"install", "calc", warrenChart}, values("kind")...), "--values=../../../k8s/external.values.yaml", "--wait", "--timeout=4m",
		"--set=broker.tls.caSecret=broker-client,broker.tls.clientSecret=broker-client,database.mode=sqlite,server.replicas=1,events=false")...)
	request := p.test("calc")

	call := func(args ...string) string {
		return strings.TrimSpace(p.kubectl("", append([]string{"exec", "deployment/calc-warren-client", "--", "/service", "call"}, args...)...))
	}
	remembers := call("memory-add", "7")
	p.kubectl("", "delete", "pod", "--selector=app.kubernetes.io/component in (dead-letter-auditor, calculator-server)")
	for _, workload := range []string{"statefulset/calc-warren-auditor", "deployment/calc-warren-server"} {
		p.kubectl("", "rollout", "status", workload, "--timeout=2m")
	}
	p.recorded("statefulset/calc-warren-auditor", request)
	if got := call("memory-recall"); got != remembers {
		t.Errorf("the calculator's memory: %s after a restart, %s before", got, remembers)
	}
}

// What the cluster lacks is refused by name, and nothing is created.
func TestLiveRefusals(t *testing.T) {
	p := newPlace(t, "refused")
	opaque := func(keys ...string) func(name string) string {
		data := map[string]string{}
		for _, k := range keys {
			data[k] = "x"
		}
		return func(name string) string { return secretOf(t, name, data) }
	}
	claim := func(name, more string) string {
		return "{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {name: " + name + more + "}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Mi}}}}\n"
	}
	existing := func(release, last string) (all string) {
		for _, user := range users(t) {
			all += "---\n" + opaque("username", "password", "uri")(release+"-rabbitmq-"+user)
		}
		return all + "---\n" + last
	}
	set := `{apiVersion: apps/v1, kind: StatefulSet, metadata: {name: size-rabbitmq}, spec: {replicas: 0, serviceName: x, selector: {matchLabels: {x: x}},
		template: {metadata: {labels: {x: x}}, spec: {containers: [{name: x, image: x}]}},
		volumeClaimTemplates: [{metadata: {name: data}, spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 5Mi}}}}]}}`
	no := func(value, name string) string {
		return value + "=" + name + ": no such Secret in namespace " + p.namespace + ": create it first"
	}
	missing := func(field, name, key string) string {
		return fmt.Sprintf("%s: Secret %s in namespace %s: missing, or without key %s", field, name, p.namespace, key)
	}
	kinds := p.kubectl("", "api-resources", "--api-group=rabbitmq.com", "--output=name")
	if kinds != "" {
		t.Fatalf("the cluster knows %s", kinds)
	}
	const warren, mq = warrenChart, rabbitmqChart
	for release, tc := range map[string]struct {
		chart, set string
		there      string // what is there before
		then       []string
		want       []string
	}{
		"token":    {chart: warren, set: "auditor.tokenSecret=nope", want: []string{no("auditor.tokenSecret", "nope")}},
		"postgres": {chart: warren, set: "database.passwordSecret=nope", want: []string{no("database.passwordSecret", "nope")}},
		"external": {
			chart: warren, there: opaque("uri")("there"),
			set:  "broker.mode=external,rabbitmq.enabled=false,database.mode=external,database.external.secret=d,broker.external.secrets.server=there,broker.external.secrets.client=c,broker.external.secrets.auditor=a,broker.external.secrets.topology=t,broker.tls.caSecret=ca,broker.tls.clientSecret=cc",
			want: []string{no("database.external.secret", "d"), no("broker.external.secrets.client", "c"), no("broker.external.secrets.auditor", "a"), no("broker.external.secrets.topology", "t"), no("broker.tls.caSecret", "ca"), no("broker.tls.clientSecret", "cc")},
		},
		"operator": {chart: warren, set: "broker.mode=operator,rabbitmq.enabled=false", want: []string{"broker.mode=operator: the cluster does not know rabbitmq.com/v1beta1: install RabbitMQ's cluster operator first, or use broker.mode=bundled"}},
		"tls":      {chart: mq, set: "tls.secret=nope", want: []string{missing("tls.secret", "nope", "tls.crt")}},
		"tlskey":   {chart: mq, set: "tls.secret=half", there: opaque("tls.crt", "tls.key")("half"), want: []string{missing("tls.secret", "half", "ca.crt")}},
		"own":      {chart: mq, set: "auth.existingSecrets=true", want: []string{missing("auth.existingSecrets", "own-rabbitmq-"+topology.Admin, "username")}},
		"ownkey":   {chart: mq, set: "auth.existingSecrets=true", there: existing("ownkey", opaque("biscuit")("ownkey-rabbitmq-cookie")), want: []string{missing("auth.existingSecrets", "ownkey-rabbitmq-cookie", "cookie")}},
		"helms": {
			chart: mq, set: "auth.existingSecrets=true", there: existing("helms", opaque("cookie")("helms-rabbitmq-cookie")),
			then: []string{"annotate", "secret", "helms-rabbitmq-monitor", "meta.helm.sh/release-name=helms"},
			want: []string{"auth.existingSecrets: Secret helms-rabbitmq-monitor belongs to this release, and Helm would delete it now: kubectl -n " + p.namespace + " annotate secret helms-rabbitmq-monitor helm.sh/resource-policy=keep meta.helm.sh/release-name-"},
		},
		"keyless": {chart: mq, there: opaque("x")("keyless-rabbitmq-cookie"), want: []string{"Secret keyless-rabbitmq-cookie: has no key cookie: delete the Secret, or add the key"}},
		"going": {
			chart: mq, there: claim("data-going-rabbitmq-2", ", finalizers: [warren.example/test]"),
			then: []string{"delete", "pvc", "data-going-rabbitmq-2", "--wait=false"},
			want: []string{"PersistentVolumeClaim data-going-rabbitmq-2: still being deleted: kubectl -n " + p.namespace + " wait --for=delete pvc/data-going-rabbitmq-2"},
		},
		"one":  {chart: mq, set: "replicas=1", there: claim("data-one-rabbitmq-1", ""), want: []string{"replicas: 1: PersistentVolumeClaim data-one-rabbitmq-1 is of a cluster of three, and one of three nodes is no majority: keep replicas: 3, or uninstall and delete the claims"}},
		"size": {chart: mq, set: "persistence.size=6Mi", there: set, want: []string{"persistence.size: 6Mi: the StatefulSet size-rabbitmq has 5Mi, and Kubernetes refuses to change it: keep 5Mi, or delete the StatefulSet with --cascade=orphan"}},
	} {
		t.Run(release, func(t *testing.T) {
			p := &place{t, p.namespace, p.access, p.config}
			if tc.there != "" {
				p.kubectl(tc.there, "apply", "--filename=-")
			}
			if tc.then != nil {
				p.kubectl("", tc.then...)
			}
			const all = "configmaps,secrets,services,serviceaccounts,persistentvolumeclaims,pods,deployments,statefulsets,jobs,poddisruptionbudgets,networkpolicies,roles,rolebindings"
			before := p.kubectl("", "get", all, "--output=name")
			for _, trial := range []string{"--dry-run=server", "--dry-run=none"} {
				_, err := p.tryHelm("install", release, tc.chart, "--values="+tc.chart+"/values-kind.yaml", "--set="+tc.set, trial)
				for _, want := range tc.want {
					if err == nil || !strings.Contains(err.Error(), want) {
						t.Fatalf("%s: got %v, want %q", trial, err, want)
					}
				}
			}
			if after := p.kubectl("", "get", all, "--output=name"); after != before {
				t.Errorf("there was\n%sand now is\n%s", before, after)
			}
		})
	}
	p.kubectl("", "patch", "pvc", "data-going-rabbitmq-2", "--type=merge", `--patch={"metadata":{"finalizers":null}}`)
}

func secretOf(t *testing.T, name string, files map[string]string) string {
	t.Helper()
	s := map[string]any{"apiVersion": "v1", "kind": "Secret", "metadata": map[string]string{"name": name}, "stringData": files}
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	return string(text) + "\n"
}

// An identity is a certificate with its key.
type identity struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// issue signs a certificate for a host or, by nobody, an authority's.
func issue(t *testing.T, name string, use x509.ExtKeyUsage, by *identity) *identity {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{name}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{use}}
	if by == nil {
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
		c.Subject.CommonName = name
		by = &identity{c, key}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, by.cert, key.Public(), by.key)
	if err == nil {
		c, err = x509.ParseCertificate(der)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &identity{c, key}
}

// files are what a Secret has of it and of the authority.
func (i *identity) files(t *testing.T, authority *identity) map[string]string {
	t.Helper()
	key, err := x509.MarshalPKCS8PrivateKey(i.key)
	if err != nil {
		t.Fatal(err)
	}
	block := func(kind string, der []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}))
	}
	return map[string]string{"tls.crt": block("CERTIFICATE", i.cert.Raw), "tls.key": block("PRIVATE KEY", key), "ca.crt": block("CERTIFICATE", authority.cert.Raw)}
}
