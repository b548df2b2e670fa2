{{- define "rollout-guard.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- /* 50 characters at most: the longest suffix must still fit in a Service's 63. */}}
{{- define "rollout-guard.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- $name := .Values.nameOverride | default .Chart.Name }}
{{- if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}
{{- end }}

{{- define "rollout-guard.selectorLabels" -}}
app.kubernetes.io/name: {{ include "rollout-guard.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- /* The pods' labels: a new version of the chart alone must not roll them. */}}
{{- define "rollout-guard.podLabels" -}}
{{ include "rollout-guard.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/component: guard
app.kubernetes.io/part-of: rollout-guard
{{- end }}

{{- define "rollout-guard.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "rollout-guard.podLabels" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end }}

{{- define "rollout-guard.image" -}}
{{- if .Values.image.digest }}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) }}
{{- end }}
{{- end }}

{{- define "rollout-guard.serviceAccountName" -}}
{{- if .Values.serviceAccount.create }}
{{- .Values.serviceAccount.name | default (include "rollout-guard.fullname" .) }}
{{- else }}
{{- .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- /* Written by the guard itself; cert-manager's Secret has another name, so that a change of the mode overwrites neither. */}}
{{- define "rollout-guard.ownSecretName" -}}
{{ include "rollout-guard.fullname" . }}-certificates
{{- end }}

{{- define "rollout-guard.mountedSecretName" -}}
{{ include "rollout-guard.fullname" . }}-tls
{{- end }}

{{- define "rollout-guard.terminationGracePeriodSeconds" -}}
{{- with .Values.shutdown }}
{{- add .preStopSeconds .drainDelaySeconds .drainTimeoutSeconds 5 }}
{{- end }}
{{- end }}

{{- /*
The namespaces that neither webhook ever sees. The cluster must be able to heal with the guard gone and failurePolicy Fail,
and the guard must be able to replace itself.
*/}}
{{- define "rollout-guard.namespaceSelector" -}}
{{- $excluded := concat (list "kube-system" "kube-node-lease" "kube-public" .Release.Namespace) .Values.webhook.excludedNamespaces | uniq -}}
{{- with .Values.webhook.namespaceSelector.matchLabels -}}
matchLabels:
  {{- toYaml . | nindent 2 }}
{{ end -}}
matchExpressions:
- key: kubernetes.io/metadata.name
  operator: NotIn
  values:
  {{- toYaml $excluded | nindent 2 }}
{{- with .Values.webhook.namespaceSelector.matchExpressions }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- /* No name that the guard gives to a fallback, which is rollout-guard-<policy>, can be this one. */}}
{{- define "rollout-guard.recordsPolicyName" -}}
records.{{ include "rollout-guard.fullname" . }}
{{- end }}

{{- /* Annotations of both webhook configurations with cert-manager. */}}
{{- define "rollout-guard.caAnnotations" -}}
annotations:
  cert-manager.io/inject-ca-from: {{ .Release.Namespace }}/{{ include "rollout-guard.fullname" . }}
{{- end }}

{{- /* What values.schema.json cannot say: relations between values. */}}
{{/* The Secret that says who is told of what; empty where nobody is, or nothing is watched. */}}
{{- define "rollout-guard.notificationsSecretName" -}}
{{- if .Values.watcher.enabled }}
{{- if .Values.notifications.existingSecret }}
{{- .Values.notifications.existingSecret }}
{{- else if .Values.notifications.config }}
{{- include "rollout-guard.fullname" . }}-notifications
{{- end }}
{{- end }}
{{- end }}

{{- define "rollout-guard.validate" -}}
{{- if and .Values.notifications.existingSecret .Values.notifications.config }}
{{- fail "notifications.existingSecret and notifications.config are both set: one of them says who is told" }}
{{- end }}
{{- $pdb := .Values.podDisruptionBudget }}
{{- if and $pdb.enabled (gt (int .Values.replicas) 1) (ge (int $pdb.minAvailable) (int .Values.replicas)) }}
{{- fail (printf "podDisruptionBudget.minAvailable (%d) must be less than replicas (%d), or no node could ever be drained" (int $pdb.minAvailable) (int .Values.replicas)) }}
{{- end }}
{{- if and (not .Values.serviceAccount.create) (not .Values.serviceAccount.name) }}
{{- fail "serviceAccount.create is false: serviceAccount.name must name the ServiceAccount to use" }}
{{- end }}
{{- if and .Values.rbac.create (not .Values.serviceAccount.create) (eq .Values.serviceAccount.name "default") }}
{{- fail "serviceAccount.name must not be \"default\" while rbac.create is true: every pod of the namespace would get the guard's rights" }}
{{- end }}
{{- range .Values.extraEnv }}
{{- if has .name (list "POD_NAME" "POD_NAMESPACE" "POD_SERVICE_ACCOUNT") }}
{{- fail (printf "extraEnv must not set %s: the chart sets it" .name) }}
{{- end }}
{{- end }}
{{- $set := list "listen" "admin-listen" "namespace" "service" "validating-webhook-configuration" "mutating-webhook-configuration" "certificates" "certificate-secret" "certificate-dir" "client-ca" "fallback" "drain-delay" "drain-timeout" "max-in-flight" "max-connections" "lease" "identity" "service-account" "rollbacks-per-namespace" "rollbacks-per-cluster" "rollbacks-per-hour" "stuck-at-least" "stuck-percent" "notify-config" "otlp-endpoint" "docs-url" "log-format" "log-level" }}
{{- range .Values.extraArgs }}
{{- $flag := splitList "=" . | first | trimPrefix "--" }}
{{- if has $flag $set }}
{{- fail (printf "extraArgs must not hold --%s: the chart sets it, see README.md for the value" $flag) }}
{{- end }}
{{- end }}
{{- if and .Values.certManager.enabled .Values.certManager.issuerRef (not .Values.certManager.issuerRef.name) }}
{{- fail "certManager.issuerRef needs a name; leave issuerRef empty for a self-signed CA of the release's own" }}
{{- end }}
{{- end }}

{{/* CEL: whether the announcement of a rollback stands on the Deployment's status. */}}
{{- define "rollout-guard.announced" -}}
(has(oldObject.status) && has(oldObject.status.conditions) && oldObject.status.conditions.exists(c, c.type == "Stalled" && has(c.reason) && c.reason == "RolledBack"))
{{- end }}
