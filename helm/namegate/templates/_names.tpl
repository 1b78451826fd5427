{{- define "namegate.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{- define "namegate.fullname" -}}
{{- $name := include "namegate.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "namegate.serviceAccount" -}}
{{- if .Values.serviceAccount.name -}}
{{- .Values.serviceAccount.name -}}
{{- else if .Values.serviceAccount.create -}}
{{- include "namegate.fullname" . -}}
{{- else -}}
{{- fail "serviceAccount.create is false: set serviceAccount.name to the account that the agent uses" -}}
{{- end -}}
{{- end -}}

{{/* "true" where the next agent of a node starts beside the one that runs. */}}
{{- define "namegate.surges" -}}
{{- /* None in values of an earlier chart that are used again. */ -}}
{{- $surge := ne (toString (.Values.updateStrategy.maxSurge | default 0)) "0" -}}
{{- if eq $surge (ne (toString .Values.updateStrategy.maxUnavailable) "0") -}}
{{- fail "updateStrategy: one of maxSurge and maxUnavailable is 0, and the other is not" -}}
{{- end -}}
{{- if $surge -}}true{{- end -}}
{{- end -}}

{{- define "namegate.selector" -}}
app.kubernetes.io/name: {{ include "namegate.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "namegate.labels" -}}
{{ include "namegate.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "namegate.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (.Values.image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end -}}

{{- /* Ranges and resolvers as one environment variable each. */ -}}
{{- define "namegate.lists" -}}
{{- with .Values.cluster.podCIDRs }}
- {name: NAMEGATE_POD_CIDRS, value: {{ join "," . | quote }}}
{{- end }}
{{- with .Values.cluster.serviceCIDRs }}
- {name: NAMEGATE_SERVICE_CIDRS, value: {{ join "," . | quote }}}
{{- end }}
{{- with .Values.cluster.nodeCIDRs }}
- {name: NAMEGATE_NODE_CIDRS, value: {{ join "," . | quote }}}
{{- end }}
{{- with .Values.dns.resolvers }}
- {name: NAMEGATE_RESOLVERS, value: {{ join "," . | quote }}}
{{- end }}
{{- end -}}

{{- /* What loading, attaching and writing need, and no more. */ -}}
{{- define "namegate.security" -}}
runAsUser: 0
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
privileged: false
seccompProfile: {type: RuntimeDefault}
capabilities:
  drop: [ALL]
  # BPF and PERFMON: load the programs. NET_ADMIN: attach them, make the proxy's interface, look
  # behind the pods' interfaces. SYS_RESOURCE is not needed: maps are charged to the cgroup.
  add: [BPF, NET_ADMIN, PERFMON]
{{- end -}}
