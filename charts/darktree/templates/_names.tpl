{{/* Names, labels and images: the same everywhere. */}}

{{- define "darktree.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- ternary .Release.Name (printf "%s-%s" .Release.Name $name) (contains $name .Release.Name) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* What finds a component's pods; it can never change. Takes (dict "root" $ "component" "gateway"). */}}
{{- define "darktree.selector" -}}
app.kubernetes.io/name: darktree-{{ .component }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
{{- end -}}

{{- define "darktree.labels" -}}
{{ include "darktree.selector" . }}
app.kubernetes.io/component: {{ .component }}
app.kubernetes.io/part-of: darktree
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Takes (dict "root" $ "component" "gateway"), and maybe: name where it differs, namespace, labels, annotations. */}}
{{- define "darktree.metadata" -}}
name: {{ include "darktree.fullname" .root }}-{{ .name | default .component }}
namespace: {{ .namespace | default .root.Release.Namespace }}
labels:
  {{- include "darktree.labels" . | nindent 2 }}
  {{- with .labels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- with merge (dict) (.annotations | default dict) .root.Values.commonAnnotations }}
annotations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "darktree.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{- end -}}
{{- end -}}
{{- end -}}

{{- define "darktree.secrets" -}}
{{ .Values.secrets.existing | default (printf "%s-secrets" (include "darktree.fullname" .)) }}
{{- end -}}

{{/* The namespace with lanes; empty for all of them. */}}
{{- define "darktree.lanesNamespace" -}}
{{- if ne .Values.lanes.namespace "*" -}}{{ .Values.lanes.namespace | default .Release.Namespace }}{{- end -}}
{{- end -}}

{{- define "darktree.bundled" -}}{{ if not .Values.database.url }}yes{{ end }}{{- end -}}

{{- define "darktree.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}
