package chart

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Who may reach whom, by the rendered policies: the networks that the suite is
// tested on enforce none.
func TestWarrenNetworkPolicies(t *testing.T) {
	const prometheus, stranger = "prometheus", "stranger"
	r := renderWarren(t, helms[0], append(installs["lab"], "--set=networkPolicy.from[0].podSelector.matchLabels.app=prometheus")...)
	r.pods[prometheus] = &corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "prometheus"}}}
	r.pods[stranger] = &corev1.PodTemplateSpec{}
	const server, client, auditor, database, broker, lab, check = "warren-server", "warren-client", "warren-auditor", "warren-postgresql", "warren-rabbitmq", "warren-lab", "warren-check"
	for _, tc := range []struct {
		from, to string
		port     int32
		want     bool
	}{
		{server, broker, 5672, true}, {client, broker, 5672, true}, {auditor, broker, 5672, true}, {check, broker, 5672, true},
		{server, broker, 15672, false}, {client, broker, 25672, false}, {lab, broker, 15672, true},
		{server, database, 5432, true}, {auditor, database, 5432, true}, {client, database, 5432, false}, {lab, database, 5432, false},
		{lab, server, 9101, true}, {prometheus, server, 9101, true}, {stranger, server, 9101, false}, {client, server, 9101, false},
		{lab, client, 9101, true}, {prometheus, auditor, 9101, true},
		{check, auditor, 8080, true}, {prometheus, auditor, 8080, true}, {stranger, auditor, 8080, false}, {client, auditor, 8080, false}, {server, auditor, 8080, false},
		{stranger, database, 5432, false}, {stranger, broker, 5672, false}, {database, broker, 5672, false},
	} {
		if got := r.reaches(tc.from, tc.to, tc.port); got != tc.want {
			t.Errorf("%s to %s:%d: got %v, want %v", tc.from, tc.to, tc.port, got, tc.want)
		}
	}
	off := renderWarren(t, helms[0], append(installs["kind"], "--set=networkPolicy.enabled=false,rabbitmq.networkPolicy.enabled=false")...)
	off.pods[stranger] = &corev1.PodTemplateSpec{}
	if !off.reaches(stranger, auditor, 8080) {
		t.Error("networkPolicy.enabled=false: there are policies all the same")
	}
}

// reaches plays the network, for TCP between pods of one namespace.
func (r release) reaches(from, to string, port int32) bool {
	source, target := r.pods[from], r.pods[to]
	egress, ingress := true, true
	for what, verdict := range map[networkingv1.PolicyType]*bool{networkingv1.PolicyTypeEgress: &egress, networkingv1.PolicyTypeIngress: &ingress} {
		subject, peer := source, target
		if what == networkingv1.PolicyTypeIngress {
			subject, peer = target, source
		}
		selected, allowed := false, false
		for _, o := range r.objects {
			p, ok := o.(*networkingv1.NetworkPolicy)
			if !ok || !slices.Contains(p.Spec.PolicyTypes, what) || !matches(&p.Spec.PodSelector, subject) {
				continue
			}
			selected = true
			if what == networkingv1.PolicyTypeEgress {
				for _, rule := range p.Spec.Egress {
					allowed = allowed || peers(rule.To, peer) && open(rule.Ports, port, target)
				}
			} else {
				for _, rule := range p.Spec.Ingress {
					allowed = allowed || peers(rule.From, peer) && open(rule.Ports, port, target)
				}
			}
		}
		*verdict = allowed || !selected
	}
	return egress && ingress
}

func matches(s *metav1.LabelSelector, p *corev1.PodTemplateSpec) bool {
	selector, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && selector.Matches(labels.Set(p.Labels))
}

func peers(all []networkingv1.NetworkPolicyPeer, p *corev1.PodTemplateSpec) bool {
	return len(all) == 0 || slices.ContainsFunc(all, func(peer networkingv1.NetworkPolicyPeer) bool {
		return peer.PodSelector != nil && matches(peer.PodSelector, p)
	})
}

func open(ports []networkingv1.NetworkPolicyPort, port int32, target *corev1.PodTemplateSpec) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool {
		switch {
		case p.Protocol != nil && *p.Protocol != corev1.ProtocolTCP:
			return false
		case p.Port == nil:
			return true
		case p.Port.Type == intstr.String:
			return slices.ContainsFunc(target.Spec.Containers[0].Ports, func(c corev1.ContainerPort) bool {
				return c.Name == p.Port.StrVal && c.ContainerPort == port
			})
		case p.EndPort != nil:
			return p.Port.IntVal <= port && port <= *p.EndPort
		}
		return p.Port.IntVal == port
	})
}
