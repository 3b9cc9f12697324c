{{- define "warren.fullname" -}}
{{- $name := .Release.Name -}}
{{- if not (contains "warren" $name) }}{{ $name = printf "%s-warren" $name }}{{ end -}}
{{- $name | trunc 50 | trimSuffix "-" -}}
{{- end }}

{{/* What selects the pods of a component. Immutable in workloads: nothing that an upgrade changes. */}}
{{- define "warren.selector" -}}
app.kubernetes.io/name: warren
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .component }}
{{- end }}

{{/* Of pods: nothing that changes with the chart's version, which would restart them. */}}
{{- define "warren.podLabels" -}}
{{ include "warren.selector" . }}
app.kubernetes.io/part-of: warren
{{- end }}

{{- define "warren.labels" -}}
{{ include "warren.podLabels" . }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
app.kubernetes.io/version: {{ .root.Values.image.tag | default .root.Chart.AppVersion | quote }}
helm.sh/chart: {{ .root.Chart.Name }}-{{ .root.Chart.Version }}
{{- end }}

{{/* Name and labels of a component's object. */}}
{{- define "warren.metadata" -}}
{{- include "warren.refuse" .root -}}
name: {{ include "warren.fullname" .root }}-{{ .short }}
labels:
  {{- include "warren.labels" . | nindent 2 }}
{{- end }}

{{- define "warren.image" -}}
{{- $i := .root.Values.image -}}
image: {{ printf "%s/warren/%s:%s" $i.registry .image ($i.tag | default .root.Chart.AppVersion) | quote }}
imagePullPolicy: {{ $i.pullPolicy }}
{{- end }}

{{/* Of every pod; uid and token are for those that are not like the services. */}}
{{- define "warren.pod" -}}
{{- with .root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
automountServiceAccountToken: {{ .token | default false }}
# A Service named warren-… would inject WARREN_… variables, and an unknown setting
# ends a service.
enableServiceLinks: false
{{- $uid := .uid | default 65532 }}
securityContext:
  runAsNonRoot: true
  runAsUser: {{ $uid }}
  runAsGroup: {{ $uid }}
  fsGroup: {{ $uid }}
  fsGroupChangePolicy: OnRootMismatch
  seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "warren.containerSecurity" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end }}

{{/* On different nodes where there are enough. A rollout's old pods do not count. */}}
{{- define "warren.spread" -}}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "warren.selector" . | nindent 8 }}
    matchLabelKeys: [pod-template-hash]
{{- end }}

{{/*
A missing broker makes a service unready and no more: only /readyz knows of it,
and a failed readiness probe restarts nothing.
*/}}
{{- define "warren.probes" -}}
startupProbe:
  httpGet: {path: /livez, port: admin}
  periodSeconds: 2
  failureThreshold: 60
readinessProbe:
  httpGet: {path: /readyz, port: admin}
  periodSeconds: 2
  failureThreshold: 2
  timeoutSeconds: 2
livenessProbe:
  httpGet: {path: /livez, port: admin}
  periodSeconds: 20
  failureThreshold: 6
  timeoutSeconds: 5
{{- end }}

{{/* The broker's name: its Service, and the beginning of its Secrets' names. */}}
{{- define "warren.broker" -}}
{{- if eq .Values.broker.mode "bundled" }}{{ include "rabbitmq.fullname" .Subcharts.rabbitmq }}
{{- else }}{{ printf "%s-rabbitmq" .Release.Name | trunc 50 | trimSuffix "-" }}{{ end -}}
{{- end }}

{{/*
How a broker user connects. The password of a broker of ours is a file, so that
a new one needs no restart; an external URI brings its own.
*/}}
{{- define "warren.brokerEnv" -}}
{{- if eq .root.Values.broker.mode "external" -}}
- name: WARREN_AMQP_URL
  valueFrom:
    secretKeyRef: {name: {{ get .root.Values.broker.external.secrets .short }}, key: uri}
{{- else -}}
- name: WARREN_AMQP_URL
  value: {{ include "warren.brokerURL" .root }}
- name: WARREN_AMQP_USERNAME
  value: {{ .user }}
- name: WARREN_AMQP_PASSWORD_FILE
  value: /etc/warren/amqp-password
{{- end }}
{{- include "warren.tlsEnv" .root }}
{{- end }}

{{- define "warren.brokerURL" -}}
{{- $tls := ne .Values.broker.tls.caSecret "" -}}
{{ ternary "amqps" "amqp" $tls }}://{{ include "warren.broker" . }}.{{ .Release.Namespace }}.svc:{{ ternary 5671 5672 $tls }}/calc
{{- end }}

{{- define "warren.tlsEnv" }}
{{- with .Values.broker.tls }}
{{- if .caSecret }}
- name: WARREN_AMQP_CA_FILE
  value: /etc/warren/amqp-ca.crt
{{- end }}
{{- if .clientSecret }}
- name: WARREN_AMQP_CERT_FILE
  value: /etc/warren/amqp.crt
- name: WARREN_AMQP_KEY_FILE
  value: /etc/warren/amqp.key
{{- end }}
{{- with .serverName }}
- name: WARREN_AMQP_SERVER_NAME
  value: {{ . }}
{{- end }}
{{- end }}
{{- end }}

{{- define "warren.brokerFiles" }}
{{- if ne .root.Values.broker.mode "external" }}
- secret:
    name: {{ include "warren.broker" .root }}-{{ .user }}
    items: [{key: password, path: amqp-password}]
{{- end }}
{{- include "warren.tlsFiles" .root }}
{{- end }}

{{- define "warren.tlsFiles" }}
{{- with .Values.broker.tls.caSecret }}
- secret:
    name: {{ . }}
    items: [{key: ca.crt, path: amqp-ca.crt}]
{{- end }}
{{- with .Values.broker.tls.clientSecret }}
- secret:
    name: {{ . }}
    items: [{key: tls.crt, path: amqp.crt}, {key: tls.key, path: amqp.key}]
{{- end }}
{{- end }}

{{/* Where a service keeps what it must not forget. */}}
{{- define "warren.databaseEnv" -}}
{{- $d := .root.Values.database -}}
{{- if eq $d.mode "sqlite" }}
- name: WARREN_DATABASE
  value: /var/lib/warren/{{ .short }}.db
{{- else }}
- name: WARREN_DATABASE
  {{- if eq $d.mode "external" }}
  valueFrom:
    secretKeyRef: {name: {{ $d.external.secret }}, key: {{ .short }}-uri}
  {{- else }}
  value: postgres://warren_{{ .short }}@{{ include "warren.fullname" .root }}-postgresql.{{ .root.Release.Namespace }}.svc:5432/warren_{{ .short }}?sslmode=disable
  {{- end }}
- name: WARREN_DATABASE_PASSWORD_FILE
  value: /etc/warren/database-password
{{- end }}
{{- end }}

{{- define "warren.databaseFiles" -}}
{{- $d := .root.Values.database -}}
{{- if eq $d.mode "bundled" }}
- secret:
    name: {{ include "warren.databaseSecret" .root }}
    items: [{key: {{ .short }}, path: database-password}]
{{- else if eq $d.mode "external" }}
- secret:
    name: {{ $d.external.secret }}
    items: [{key: {{ .short }}-password, path: database-password}]
{{- end }}
{{- end }}

{{- define "warren.databaseSecret" -}}
{{- .Values.database.passwordSecret | default (printf "%s-postgresql" (include "warren.fullname" .)) -}}
{{- end }}

{{- define "warren.tokenSecret" -}}
{{- .Values.auditor.tokenSecret | default (printf "%s-auditor-token" (include "warren.fullname" .)) -}}
{{- end }}

{{/* What all services have; then the user's own, which the schema keeps apart from the chart's. */}}
{{- define "warren.commonEnv" -}}
{{- if .root.Values.events }}
- name: WARREN_EVENTS
  value: stdout
{{- end }}
{{- if .root.Values.faults }}
- name: WARREN_FAULTS
  value: "true"
{{- end }}
{{- range $name, $value := .env }}
- name: WARREN_{{ $name }}
  value: {{ $value | toString | quote }}
{{- end }}
{{- end }}

{{/* A secret value, base64: the cluster's if it has one, so that an upgrade keeps it. */}}
{{- define "warren.secretValue" -}}
{{- $kept := dig "data" .key "" (lookup "v1" "Secret" .root.Release.Namespace .secret) -}}
{{- if $kept -}}
{{ $kept }}
{{- else if .root.Values.seed -}}
{{ printf "%s/%s/%s/%s" .root.Values.seed .root.Release.Namespace .secret .key | sha256sum | trunc 32 | b64enc }}
{{- else -}}
{{ randAlphaNum 32 | b64enc }}
{{- end -}}
{{- end }}

{{- define "warren.claim" -}}
accessModes: [ReadWriteOnce]
{{- with .Values.database.persistence.storageClass }}
storageClassName: {{ . }}
{{- end }}
resources:
  requests: {storage: {{ .Values.database.persistence.size }}}
{{- end }}

{{/* The broker's users; a test compares them with the code's. */}}
{{- define "warren.users" -}}
topology calc-server calc-client dlq-auditor monitor
{{- end }}

{{- define "warren.retain" -}}
persistentVolumeClaimRetentionPolicy:
  whenDeleted: {{ ternary "Retain" "Delete" .Values.database.persistence.retain }}
  whenScaled: Retain
{{- end }}
