{{/* A pod of ours: the same security, spreading and volumes, whatever runs in it. */}}

{{- define "darktree.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "darktree.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end -}}

{{/*
Takes a dict: root, component, values (of the component), command, env (YAML), ports (map of name and number), health
(port name, path), and maybe: volumes, mounts (YAML lists), serviceAccount, stopSeconds, sleepSeconds, checksums.
*/}}
{{- define "darktree.pod" -}}
{{- $root := .root -}}
metadata:
  labels:
    {{- include "darktree.labels" (dict "root" $root "component" .component) | nindent 4 }}
  annotations:
    kubectl.kubernetes.io/default-container: {{ .component }}
    {{- if $root.Values.monitoring.scrapeAnnotations }}
    prometheus.io/scrape: "true"
    prometheus.io/port: {{ .ports.metrics | default .ports.http | quote }}
    {{- end }}
    {{- range $name, $value := .checksums }}
    checksum/{{ $name }}: {{ $value | sha256sum }}
    {{- end }}
    {{- with merge (dict) (.values.podAnnotations | default dict) $root.Values.commonAnnotations }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
spec:
  {{- if .serviceAccount }}
  serviceAccountName: {{ include "darktree.fullname" $root }}-{{ .component }}
  {{- end }}
  automountServiceAccountToken: {{ .serviceAccount | default false }}
  enableServiceLinks: false
  terminationGracePeriodSeconds: {{ .stopSeconds | default 60 }}
  securityContext:
    {{- include "darktree.podSecurity" $root | nindent 4 }}
  {{- include "darktree.pullSecrets" $root | nindent 2 }}
  {{- with .values.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with .values.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .values.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  affinity:
    {{- if .values.affinity }}
    {{- toYaml .values.affinity | nindent 4 }}
    {{- else }}
    podAntiAffinity:
      preferredDuringSchedulingIgnoredDuringExecution:
        - weight: 100
          podAffinityTerm:
            topologyKey: kubernetes.io/hostname
            labelSelector:
              matchLabels:
                {{- include "darktree.selector" (dict "root" $root "component" .component) | nindent 16 }}
    {{- end }}
  containers:
    - name: {{ .component }}
      image: {{ include "darktree.image" $root | quote }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      command: {{ toJson .command }}
      env:
        {{- .env | nindent 8 }}
      ports:
        {{- range $name, $port := .ports }}
        - {name: {{ $name }}, containerPort: {{ $port }}, protocol: TCP}
        {{- end }}
      {{- .probes | nindent 6 }}
      {{- with .sleepSeconds }}
      lifecycle: {preStop: {sleep: {seconds: {{ . }}}}}
      {{- end }}
      resources:
        {{- toYaml .values.resources | nindent 8 }}
      terminationMessagePolicy: FallbackToLogsOnError
      securityContext:
        {{- include "darktree.containerSecurity" $root | nindent 8 }}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        {{- with .mounts }}
        {{- . | nindent 8 }}
        {{- end }}
  volumes:
    - {name: tmp, emptyDir: {sizeLimit: 1Gi}}
    {{- with .volumes }}
    {{- . | nindent 4 }}
    {{- end }}
{{- end -}}

{{/* Probes over HTTP. Takes a dict: port, and maybe live and ready (paths). */}}
{{- define "darktree.httpProbes" -}}
startupProbe:
  httpGet: {path: {{ .live | default "/healthz" }}, port: {{ .port }}}
  periodSeconds: 2
  timeoutSeconds: 2
  failureThreshold: 150
readinessProbe:
  httpGet: {path: {{ .ready | default "/readyz" }}, port: {{ .port }}}
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
livenessProbe:
  httpGet: {path: {{ .live | default "/healthz" }}, port: {{ .port }}}
  periodSeconds: 15
  timeoutSeconds: 5
  failureThreshold: 4
{{- end -}}

{{/* One variable from the secrets. Takes a dict: root, name, key. */}}
{{- define "darktree.secretEnv" -}}
- name: {{ .name }}
  valueFrom: {secretKeyRef: {name: {{ include "darktree.secrets" .root }}, key: {{ .key }}}}
{{- end -}}

{{/* A component's free settings. Takes a dict: prefix, settings. */}}
{{- define "darktree.settings" -}}
{{- range $name, $value := .settings }}
- {name: DARKTREE_{{ $.prefix }}_{{ $name }}, value: {{ $value | toString | quote }}}
{{- end }}
{{- end -}}

{{/* Where a component's traces go, when they go anywhere. Takes a dict: root, prefix. */}}
{{- define "darktree.tracingEnv" -}}
{{- $prefix := .prefix -}}
{{- with .root.Values.tracing -}}
{{- if .endpoint -}}
- {name: DARKTREE_{{ $prefix }}_OTLP_ENDPOINT, value: {{ .endpoint | quote }}}
- {name: DARKTREE_{{ $prefix }}_TRACE_SHARE, value: {{ .share | toString | quote }}}
{{- if .header.existingSecret }}
- name: DARKTREE_{{ $prefix }}_OTLP_HEADER
  valueFrom: {secretKeyRef: {name: {{ .header.existingSecret }}, key: {{ .header.key }}}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* The URL of Postgres for a role, with the password left to the environment. Takes a dict: root, role. */}}
{{- define "darktree.databaseUrl" -}}
{{- $place := "" -}}
{{- if include "darktree.bundled" .root -}}
{{- $place = printf "%s-postgres:5432/postgres" (include "darktree.fullname" .root) -}}
{{- else -}}
{{- $place = .root.Values.database.url | trimPrefix "postgresql://" | trimPrefix "postgres://" -}}
{{- end -}}
{{- if .root.Values.database.rootCertificate.existingSecret -}}
{{- $place = printf "%s%ssslrootcert=/etc/darktree/postgres/ca.crt" $place (ternary "&" "?" (contains "?" $place)) -}}
{{- end -}}
postgresql://{{ .role }}:$(DATABASE_PASSWORD)@{{ $place }}
{{- end -}}

{{/* Takes a dict: root, role, key (of the password), variable. */}}
{{- define "darktree.databaseEnv" -}}
{{ include "darktree.secretEnv" (dict "root" .root "name" "DATABASE_PASSWORD" "key" .key) }}
- {name: {{ .variable }}, value: {{ include "darktree.databaseUrl" (dict "root" .root "role" .role) | quote }}}
{{- end -}}

{{- define "darktree.databaseMounts" -}}
{{- if .Values.database.rootCertificate.existingSecret -}}
- {name: postgres-ca, mountPath: /etc/darktree/postgres, readOnly: true}
{{- end -}}
{{- end -}}

{{- define "darktree.databaseVolumes" -}}
{{- with .Values.database.rootCertificate -}}
{{- if .existingSecret -}}
- {name: postgres-ca, secret: {secretName: {{ .existingSecret }}, items: [{key: {{ .key }}, path: ca.crt}]}}
{{- end -}}
{{- end -}}
{{- end -}}
