{{/* Labels of every object. Call with (list . "component"). */}}
{{- define "mics.labels" -}}
{{- $root := index . 0 -}}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
app.kubernetes.io/part-of: mics
{{ include "mics.selector" . }}
{{- end }}

{{/* What selects a component's pods; never changes over a release's life. Pod templates carry
these labels only, so that a newer chart alone restarts nothing. */}}
{{- define "mics.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "mics.image" -}}
{{- $root := index . 0 -}}
{{ printf "%s:%s" $root.Values.image.repository (index . 1 | default $root.Values.image.tag | default $root.Chart.AppVersion) }}
{{- end }}

{{/* Seconds. The 10 are for ending what is not a session (5 at most) and kubelet. */}}
{{- define "mics.needed" -}}
{{ add .Values.gateway.preStopSeconds .Values.drainTimeout 10 }}
{{- end }}
{{- define "mics.grace" -}}
{{ .Values.gateway.terminationGracePeriodSeconds | default (include "mics.needed" . | int) }}
{{- end }}

{{/* A memory quantity in bytes. */}}
{{- define "mics.bytes" -}}
{{- $q := toString . -}}
{{- $number := regexFind "^[0-9.]+" $q -}}
{{- $unit := regexReplaceAll "^[0-9.]+" $q "" -}}
{{- $factors := dict "" 1 "k" 1000 "M" 1000000 "G" 1000000000 "T" 1000000000000 "Ki" 1024 "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776 -}}
{{- if or (not $number) (not (hasKey $factors $unit)) -}}
{{- fail (printf "resources.limits.memory: %q is no quantity such as 512Mi or 2Gi" $q) -}}
{{- end -}}
{{ mulf (float64 $number) (get $factors $unit) | int64 }}
{{- end }}

{{/* The secrets made at random, once per rendering and kept over upgrades. */}}
{{- define "mics.generate" -}}
{{- if not (hasKey .Values "generated") -}}
{{- $old := dig "data" dict (lookup "v1" "Secret" .Release.Namespace (printf "%s-generated" .Values.name) | default dict) -}}
{{- $new := dict "cluster-token" (randAlphaNum 48) "operator-token" (randAlphaNum 48) "redis-password" (randAlphaNum 32) "session-token-keys" (printf "k1:%s" (randBytes 32)) -}}
{{- range $key, $value := $old -}}
{{- if hasKey $new $key -}}{{- $_ := set $new $key (b64dec $value) -}}{{- end -}}
{{- end -}}
{{- $_ := set .Values "generated" $new -}}
{{- end -}}
{{- end }}

{{- define "mics.secret" -}}
{{ .Values.secrets.existing | default (printf "%s-generated" .Values.name) }}
{{- end }}
{{- define "mics.tenantsSecret" -}}
{{ .Values.tenantsSecret | default (printf "%s-tenants" .Values.name) }}
{{- end }}
{{- define "mics.tlsSecret" -}}
{{ .Values.mtls.secret | default (printf "%s-internal-tls" .Values.name) }}
{{- end }}
{{- define "mics.scheme" -}}
{{ ternary "https" "http" .Values.mtls.enabled }}
{{- end }}

{{/* REDIS__CONNECTION, for routers and the control plane. */}}
{{- define "mics.redisEnv" -}}
- name: REDIS__CONNECTION
  valueFrom:
    secretKeyRef:
      {{- if eq .Values.redis.mode "embedded" }}
      name: {{ .Values.name }}-redis
      key: connection
      {{- else if .Values.redis.external.existingSecret }}
      name: {{ .Values.redis.external.existingSecret }}
      key: {{ .Values.redis.external.secretKey }}
      {{- else }}
      name: {{ .Values.name }}-redis
      key: connection
      {{- end }}
{{- end }}

{{/* Environment of every process. Call with (list . values-of-the-component). */}}
{{- define "mics.env" -}}
{{- $root := index . 0 -}}
{{- $own := index . 1 -}}
- name: NODE_ID
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: LOG_LEVEL
  value: {{ $root.Values.log.level }}
{{- with $root.Values.tracing.endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
- name: TRACE_RATIO
  value: {{ $root.Values.tracing.ratio | quote }}
{{- end }}
- name: CLUSTER_TOKEN_FILE
  value: /etc/mics/cluster/cluster-token
{{- if $root.Values.mtls.enabled }}
- name: INTERNAL_TLS_CERT_FILE
  value: /etc/mics/tls/tls.crt
- name: INTERNAL_TLS_KEY_FILE
  value: /etc/mics/tls/tls.key
- name: INTERNAL_TLS_CA_FILE
  value: /etc/mics/tls/ca.crt
{{- with $root.Values.mtls.names }}
- name: INTERNAL_TLS_NAMES
  value: {{ join "," . | quote }}
{{- end }}
{{- end }}
{{- $limits := ($own.resources).limits | default dict }}
{{- with $limits.memory }}
- name: GOMEMLIMIT
  value: {{ div (mul (include "mics.bytes" . | int64) 9) 10 | quote }}
{{- end }}
{{- if $limits.cpu }}
- name: GOMAXPROCS
  valueFrom: {resourceFieldRef: {resource: limits.cpu}}
{{- end }}
{{- range $name, $value := $own.settings }}
- name: {{ $name }}
  value: {{ if kindIs "float64" $value }}{{ if eq (floor $value) $value }}{{ int64 $value | toString | quote }}{{ else }}{{ toString $value | quote }}{{ end }}{{ else }}{{ toString $value | quote }}{{ end }}
{{- end }}
{{- end }}

{{- define "mics.publicEndpoint" -}}
- name: PUBLIC_ENDPOINT
  value: {{ printf "%s://%s:9080" (include "mics.scheme" .) (ternary "[$(POD_IP)]" "$(POD_IP)" .Values.ipv6) }}
{{- end }}

{{- define "mics.mounts" -}}
- {name: cluster, mountPath: /etc/mics/cluster, readOnly: true}
{{- if .Values.mtls.enabled }}
- {name: internal-tls, mountPath: /etc/mics/tls, readOnly: true}
{{- end }}
{{- end }}

{{- define "mics.volumes" -}}
- name: cluster
  secret:
    secretName: {{ include "mics.secret" . }}
    items: [{key: cluster-token, path: cluster-token}]
{{- if .Values.mtls.enabled }}
- name: internal-tls
  secret: {secretName: {{ include "mics.tlsSecret" . }}}
{{- end }}
{{- end }}

{{- define "mics.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "mics.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* What every pod spec has. Call with (list . component values extra-labels). */}}
{{- define "mics.pod" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $own := index . 2 -}}
{{- $labels := index . 3 -}}
serviceAccountName: {{ $root.Values.name }}-{{ $component }}
# Else every Service puts variables into the environment, which is for settings.
enableServiceLinks: false
securityContext:
  {{- include "mics.podSecurity" $root | nindent 2 }}
{{- with $root.Values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $root.Values.image.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . }}
  {{- end }}
{{- end }}
topologySpreadConstraints:
  {{- range list "kubernetes.io/hostname" "topology.kubernetes.io/zone" }}
  - maxSkew: 1
    topologyKey: {{ . }}
    # A cluster without zones has one: that is no reason to leave pods pending.
    whenUnsatisfiable: {{ ternary $root.Values.topologySpread "ScheduleAnyway" (eq . "kubernetes.io/hostname") }}
    labelSelector:
      matchLabels:
        {{- include "mics.selector" (list $root $component) | nindent 8 }}
        {{- range $name, $value := $labels }}
        {{ $name }}: {{ $value | quote }}
        {{- end }}
    matchLabelKeys: [pod-template-hash]
  {{- end }}
{{- with $own.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $own.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}

{{/* Liveness is patient: a process that is busy is not dead. Also with certificates
the port answers these paths on plain HTTP. */}}
{{- define "mics.probes" -}}
startupProbe:
  httpGet: {path: /healthz, port: internal}
  periodSeconds: 1
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /healthz, port: internal}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
readinessProbe:
  httpGet: {path: /readyz, port: internal}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 2
{{- end }}

{{/* Peers of a NetworkPolicy: own components, and others. Call with (list . components peers). */}}
{{- define "mics.from" -}}
{{- $root := index . 0 -}}
{{- range $i, $component := index . 1 }}
{{- if $i }}
{{ end -}}
- podSelector:
    matchLabels:
      {{- include "mics.selector" (list $root $component) | nindent 6 }}
{{- end }}
{{- with index . 2 }}
{{ toYaml . }}
{{- end }}
{{- end }}
