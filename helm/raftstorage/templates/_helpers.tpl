{{- define "raftstorage.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 40 | trimSuffix "-" -}}
{{- end -}}

{{/* At most 40 characters: a pod's name adds its ordinal, a service's name its role, and a DNS label ends at 63. */}}
{{- define "raftstorage.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains (include "raftstorage.name" .) .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "raftstorage.name" .) | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "raftstorage.selector" -}}
app.kubernetes.io/name: {{ include "raftstorage.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "raftstorage.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{ include "raftstorage.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- end -}}

{{/* host:port of the pod with ordinal `.ordinal`, under the name that outlives the pod. */}}
{{- define "raftstorage.member" -}}
{{- $name := include "raftstorage.fullname" .root -}}
{{- printf "%s-%d.%s" $name .ordinal (include "raftstorage.domain" .root) -}}
{{- end -}}

{{/* What follows a pod's name in that. */}}
{{- define "raftstorage.domain" -}}
{{- printf "%s-peers.%s.svc.%s:%d" (include "raftstorage.fullname" .) .Release.Namespace .Values.clusterDomain (int .Values.ports.grpc) -}}
{{- end -}}

{{/* How many nodes founded the cluster: what the StatefulSet says, which remembers it, or what is installed first. */}}
{{- define "raftstorage.founders" -}}
{{- if .Values.foundingReplicaCount -}}
{{- int .Values.foundingReplicaCount -}}
{{- else -}}
{{- $there := lookup "apps/v1" "StatefulSet" .Release.Namespace (include "raftstorage.fullname" .) -}}
{{- if $there -}}
{{- dig "metadata" "annotations" "raftstorage/founders" (toString (int $there.spec.replicas)) $there | int -}}
{{- else -}}
{{- int .Values.replicaCount -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* How many nodes there are now, as far as is known; those above replicaCount are to go. */}}
{{- define "raftstorage.before" -}}
{{- $there := lookup "apps/v1" "StatefulSet" .Release.Namespace (include "raftstorage.fullname" .) -}}
{{- if .Values.shrinkFrom -}}
{{- int .Values.shrinkFrom -}}
{{- else if $there -}}
{{- int $there.spec.replicas -}}
{{- else -}}
{{- int .Values.replicaCount -}}
{{- end -}}
{{- end -}}

{{- define "raftstorage.addresses" -}}
{{- $root := . -}}
{{- $all := list -}}
{{- range $i := until (int .Values.replicaCount) -}}
{{- $all = append $all (include "raftstorage.member" (dict "root" $root "ordinal" $i)) -}}
{{- end -}}
{{- join "," $all -}}
{{- end -}}

{{- define "raftstorage.clusterId" -}}
{{- default (printf "%s/%s" .Release.Namespace .Release.Name | sha256sum | trunc 32) .Values.clusterId -}}
{{- end -}}
