{{- define "kube-ipvs.name" -}}
{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "kube-ipvs.serviceAccount" -}}
{{ .Values.serviceAccount.name | default (include "kube-ipvs.name" .) }}
{{- end }}

{{- define "kube-ipvs.selector" -}}
app.kubernetes.io/name: kube-ipvs
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "kube-ipvs.labels" -}}
{{ include "kube-ipvs.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "kube-ipvs.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{- /* The port of an address such as [::]:10256. */}}
{{- define "kube-ipvs.port" -}}
{{ regexFind "[0-9]+$" . }}
{{- end }}
