{{/* A release's name, short enough that a pod's number fits behind it: it is a part of every address of a call. */}}
{{- define "offhook.name" -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 45 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 45 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "offhook.nodes" -}}
{{ include "offhook.name" . }}-nodes
{{- end -}}

{{- define "offhook.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "offhook.labels" -}}
{{ include "offhook.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{/* Not the pods' own labels, or every Service of theirs would have the balancer's pods, too. */}}
{{- define "offhook.haproxySelector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}-haproxy
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{/* What pods say to each other, they say past the Gateway: nobody outside may. */}}
{{- define "offhook.fromOutside" -}}
filters:
  - type: RequestHeaderModifier
    requestHeaderModifier:
      remove: [x-offhook-peer, x-offhook-facts, x-offhook-final, x-offhook-lost]
{{- end -}}

{{/* What a pod has to end in: its calls, their goodbyes, and what the server itself needs. */}}
{{- define "offhook.graceS" -}}
{{- add .Values.drainTimeoutS .Values.farewellTimeoutS .Values.preStopSleepS 50 -}}
{{- end -}}

{{- define "offhook.checks" -}}
{{- if not (index .Values.settings "TRUSTED_PROXIES") -}}
{{- fail "settings.TRUSTED_PROXIES is empty: name the addresses of whoever passes requests on (the Gateway's or HAProxy's pods: their networks, like 10.244.0.0/16), or all callers of the API have one address, and one stranger's mistakes are everybody's" -}}
{{- end -}}
{{- if and .Values.networkPolicy.enabled (not .Values.networkPolicy.ingressFrom) (or .Values.route.enabled .Values.serviceMonitor.enabled) -}}
{{- fail "networkPolicy.ingressFrom is empty: name who may reach the pods' port beside themselves (the Gateway's namespace, Prometheus's); with it empty nobody else may" -}}
{{- end -}}
{{- if gt (int .Values.replicas) (int .Values.maxReplicas) -}}
{{- fail "replicas must not be more than maxReplicas: only so many pods have a route" -}}
{{- end -}}
{{- if and .Values.hpa.enabled .Values.keda.enabled -}}
{{- fail "hpa or keda, not both: each would undo what the other does" -}}
{{- end -}}
{{- end -}}
