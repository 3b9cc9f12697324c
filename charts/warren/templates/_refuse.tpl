{{/*
What the schema cannot say. It is part of every object's metadata, so that the
user reads this whichever template Helm renders first.
*/}}
{{- define "warren.refuse" -}}
{{- $v := .Values -}}
{{- $wrong := list -}}
{{- if not $v.image.registry }}{{ $wrong = append $wrong "image.registry: empty: push the images by `scripts/images --push REGISTRY` and name it here, or install into kind with -f charts/warren/values-kind.yaml" }}{{ end -}}

{{- $bundled := eq $v.broker.mode "bundled" -}}
{{- if ne $v.rabbitmq.enabled $bundled }}{{ $wrong = append $wrong (printf "rabbitmq.enabled=%t: with broker.mode=%s set it to %t" $v.rabbitmq.enabled $v.broker.mode $bundled) }}{{ end -}}
{{- $secrets := dict "auditor.tokenSecret" $v.auditor.tokenSecret "broker.tls.caSecret" $v.broker.tls.caSecret "broker.tls.clientSecret" $v.broker.tls.clientSecret -}}
{{- $external := $v.broker.external.secrets -}}
{{- if eq $v.broker.mode "external" -}}
  {{- range $who := list "server" "client" "auditor" -}}
    {{- if not (get $external $who) }}{{ $wrong = append $wrong (printf "broker.external.secrets.%s: empty: name the Secret with this service's broker URI under the key uri" $who) }}{{ end -}}
  {{- end -}}
  {{- range $who, $name := $external }}{{ $_ := set $secrets (printf "broker.external.secrets.%s" $who) $name }}{{ end -}}
{{- else if and (or $v.broker.tls.clientSecret $v.broker.tls.serverName) (not $v.broker.tls.caSecret) -}}
  {{- $wrong = append $wrong "broker.tls.caSecret: empty: the other values of broker.tls are of use with it only" -}}
{{- end -}}
{{- if and $bundled (ne (empty $v.broker.tls.caSecret) (empty (dig "tls" "secret" "" $v.rabbitmq))) -}}
  {{- $wrong = append $wrong "broker.tls.caSecret, rabbitmq.tls.secret: one is empty: a bundled broker has TLS at both ends or at none" -}}
{{- end -}}
{{- if eq $v.broker.mode "operator" -}}
  {{- if not (.Capabilities.APIVersions.Has "rabbitmq.com/v1beta1") }}{{ $wrong = append $wrong "broker.mode=operator: the cluster does not know rabbitmq.com/v1beta1: install RabbitMQ's cluster operator first, or use broker.mode=bundled (without a cluster: --api-versions rabbitmq.com/v1beta1)" }}{{ end -}}
  {{- if and $v.broker.tls.caSecret (not $v.broker.operator.tlsSecret) }}{{ $wrong = append $wrong "broker.operator.tlsSecret: empty: broker.tls.caSecret is set, so the nodes need a certificate" }}{{ end -}}
  {{- $_ := set $secrets "broker.operator.tlsSecret" $v.broker.operator.tlsSecret -}}
{{- end -}}

{{- if eq $v.database.mode "sqlite" -}}
  {{- range $who := list "server" "auditor" -}}
    {{- $n := (get $v $who).replicas | int -}}
    {{- if gt $n 1 }}{{ $wrong = append $wrong (printf "%s.replicas=%d: database.mode=sqlite is one file, and pods share none: at most 1, or another database.mode" $who $n) }}{{ end -}}
  {{- end -}}
{{- else if eq $v.database.mode "external" -}}
  {{- if not $v.database.external.secret }}{{ $wrong = append $wrong "database.external.secret: empty: name the Secret with server-uri, server-password, auditor-uri and auditor-password" }}{{ end -}}
  {{- $_ := set $secrets "database.external.secret" $v.database.external.secret -}}
{{- else -}}
  {{- $_ := set $secrets "database.passwordSecret" $v.database.passwordSecret -}}
{{- end -}}

{{- if $v.production -}}
  {{- if $v.lab.enabled }}{{ $wrong = append $wrong "lab.enabled=true: with production=true nothing may delete pods and read Secrets on demand" }}{{ end -}}
  {{- if $v.faults }}{{ $wrong = append $wrong "faults=true: with production=true nobody may crash a service on demand" }}{{ end -}}
  {{- if $v.seed }}{{ $wrong = append $wrong "seed: set: with production=true no password may follow from a value" }}{{ end -}}
  {{- if not $v.auditor.tokenSecret }}{{ $wrong = append $wrong "auditor.tokenSecret: empty: with production=true name an existing Secret" }}{{ end -}}
  {{- if and (eq $v.database.mode "bundled") (not $v.database.passwordSecret) }}{{ $wrong = append $wrong "database.passwordSecret: empty: with production=true name an existing Secret" }}{{ end -}}
  {{- if and $bundled (not (dig "auth" "existingSecrets" false $v.rabbitmq)) }}{{ $wrong = append $wrong "rabbitmq.auth.existingSecrets=false: with production=true make the Secrets yourself" }}{{ end -}}
  {{- range $name, $_ := $v.server.env -}}
    {{- if has $name (list "AUTO_ACK" "ACK_BEFORE_REPLY" "REPLY_CONFIRM" "IDEMPOTENCY" "DRAIN" "DEADLINE_CHECK" "RECOVER" "ON_INVALID" "WORK_DELAY" "CRASH_ON" "PANIC_ON") }}{{ $wrong = append $wrong (printf "server.env.%s: a lesson: not with production=true" $name) }}{{ end -}}
  {{- end -}}
  {{- if hasKey $v.auditor.env "UNIQUE_KEY" }}{{ $wrong = append $wrong "auditor.env.UNIQUE_KEY: a lesson: not with production=true" }}{{ end -}}
{{- end -}}

{{- $madeUp := or (not $v.auditor.tokenSecret) (eq $v.broker.mode "operator") (and (eq $v.database.mode "bundled") (not $v.database.passwordSecret)) -}}
{{- if and $madeUp (not $v.seed) (not (.Capabilities.APIVersions.Has "v1/Pod")) }}{{ $wrong = append $wrong "seed: empty, and no cluster in sight, so each rendering would make new passwords: set it, or install with helm (a trial: --dry-run=server)" }}{{ end -}}
{{/* A pod that waits for a Secret says so only to those who describe it. */}}
{{- if .Capabilities.APIVersions.Has "v1/Pod" -}}
  {{- range $value, $name := $secrets -}}
    {{- if and $name (not (lookup "v1" "Secret" $.Release.Namespace $name)) }}{{ $wrong = append $wrong (printf "%s=%s: no such Secret in namespace %s: create it first" $value $name $.Release.Namespace) }}{{ end -}}
  {{- end -}}
{{- end -}}
{{- with $wrong }}{{ fail (printf "\n\n%s\n" (join "\n" .)) }}{{ end -}}
{{- end }}
