package kubernetes

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"warren.example/lab/link"
	"warren.example/lab/substrate"
	"warren.example/lab/substrate/process"
)

// linkPort is where services find a link.
const linkPort = 5672

// linked is a link in a pod of its own, which other pods reach by its address.
type linked struct {
	*Process
	url string
}

// Connect starts a pod that runs `lab link`. The users are the broker's, and
// each template names its own, so that a link serves all of them.
func (r *Room) Connect(ctx context.Context, user string) (substrate.Link, error) {
	svc := substrate.Service{Kind: substrate.CalculatorServer, Name: fmt.Sprintf("link-%d", r.links.Add(1))}
	template, err := r.s.template(svc.Kind)
	if err != nil {
		return nil, err
	}
	broker, err := r.serviceURL()
	if err != nil {
		return nil, fmt.Errorf("a link for %s: %w", user, err)
	}
	p, err := r.admit(ctx, svc, linkPod(clone(template, r.name, r.name+"-"+svc.Name, svc, nil), broker.Host))
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", svc.Name, err)
	}
	if err := process.WaitReady(ctx, p, retryAfter, p.log.closed, p.tail.Last); err != nil {
		return nil, err
	}
	// The API server may tell of the address later than the pod answers.
	var ip string
	err = r.s.pods.await(ctx, p.pod, func(pod *corev1.Pod) bool {
		if pod != nil {
			ip = pod.Status.PodIP
		}
		return over(pod) || ip != ""
	})
	if err != nil {
		return nil, fmt.Errorf("wait for the address of pod %s: %w", p.pod, err)
	}
	broker.Host = net.JoinHostPort(ip, strconv.Itoa(linkPort))
	return linked{p, broker.String()}, nil
}

// linkPod makes a link of a server's pod: what the release says of pods holds
// for it, too.
func linkPod(pod *corev1.Pod, target string) *corev1.Pod {
	pod.Labels[component] = "link"
	c := &pod.Spec.Containers[0]
	c.Image = strings.Replace(c.Image, "/"+string(substrate.CalculatorServer), "/lab", 1)
	c.Args = []string{"link", "--listen", fmt.Sprintf(":%d", linkPort), "--target", target, "--control", fmt.Sprintf(":%d", adminPort)}
	c.Env, c.ReadinessProbe = nil, nil
	return pod
}

func (l linked) URL() string { return l.url }

func (l linked) Do(ctx context.Context, o link.Order) error {
	_, err := l.Admin(ctx, http.MethodPost, "/orders", o)
	return err
}

func (l linked) Hit(ctx context.Context) (hit int, err error) {
	b, err := l.Admin(ctx, http.MethodGet, "/hit", nil)
	if err == nil {
		err = json.Unmarshal(b, &hit)
	}
	return hit, err
}
