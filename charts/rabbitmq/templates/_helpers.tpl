{{- define "rabbitmq.fullname" -}}
{{- if contains "rabbitmq" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-rabbitmq{{ end -}}
{{- end }}

{{- define "rabbitmq.selector" -}}
app.kubernetes.io/name: rabbitmq
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* Of the pods: nothing here changes with the chart's version, which would restart them. */}}
{{- define "rabbitmq.podLabels" -}}
{{ include "rabbitmq.selector" . }}
app.kubernetes.io/component: rabbitmq
app.kubernetes.io/part-of: warren
{{- end }}

{{- define "rabbitmq.labels" -}}
{{ include "rabbitmq.podLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{/* The users, as the definitions have them: the only list is theirs. */}}
{{- define "rabbitmq.users" -}}
{{- range (.Files.Get "files/definitions.json" | fromJson).users }}{{ .name }} {{ end -}}
{{- end }}

{{- define "rabbitmq.image" -}}
{{- with .Values.image -}}
{{ with .registry }}{{ . }}/{{ end }}{{ .repository }}:{{ .tag }}{{ with .digest }}@{{ . }}{{ end }}
{{- end -}}
{{- end }}

{{/* A quantity of memory in bytes; the schema allows Mi and Gi. */}}
{{- define "rabbitmq.bytes" -}}
{{- if hasSuffix "Gi" . }}{{ mul (trimSuffix "Gi" . | int64) 1073741824 }}{{ else }}{{ mul (trimSuffix "Mi" . | int64) 1048576 }}{{ end -}}
{{- end }}

{{/*
A password or the cookie: (list $ secret key). What the cluster has goes first, so
that an upgrade changes nothing. Two calls for one key differ if it is random.
*/}}
{{- define "rabbitmq.secret" -}}
{{- $ := index . 0 }}{{ $name := index . 1 }}{{ $key := index . 2 }}
{{- $found := lookup "v1" "Secret" $.Release.Namespace $name }}
{{- if $found }}
{{- index $found.data $key | required (printf "Secret %s: has no key %s: delete the Secret, or add the key" $name $key) | b64dec }}
{{- else if $.Values.auth.seed }}
{{- printf "%s/%s/%s" $.Values.auth.seed $.Release.Namespace $name | sha256sum | trunc 32 }}
{{- else }}
{{- randAlphaNum 32 }}
{{- end }}
{{- end }}
