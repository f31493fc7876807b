{{/* Names, labels and the image. Next: _pod.tpl, the parts that the roles' pods share. */}}

{{- define "hotnic.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{/* Labels that select the pods of one role. They never change: a selector is immutable. Arguments: root, role. */}}
{{- define "hotnic.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride }}
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end -}}

{{/* Labels of an object. Arguments: root, role. */}}
{{- define "hotnic.labels" -}}
{{ include "hotnic.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | replace "+" "_" | quote }}
app.kubernetes.io/part-of: hotnic
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- with .root.Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "hotnic.image" -}}
{{- $image := .Values.image -}}
{{- $repository := $image.repository -}}
{{- if $image.registry -}}{{- $repository = printf "%s/%s" $image.registry $image.repository -}}{{- end -}}
{{- if $image.digest -}}{{- printf "%s@%s" $repository $image.digest -}}{{- else -}}{{- printf "%s:%s" $repository $image.tag -}}{{- end -}}
{{- end -}}

{{/* Whether the handler is part of the release, as "true" or "". Beside KubeVirt it changes nothing, so the default
     follows vmOwner. */}}
{{- define "hotnic.handlerEnabled" -}}
{{- if kindIs "invalid" .Values.handler.enabled -}}
{{- if eq .Values.vmOwner "hotnic" -}}true{{- end -}}
{{- else if .Values.handler.enabled -}}true{{- end -}}
{{- end -}}

{{/* The roles of this release, space separated. */}}
{{- define "hotnic.roles" -}}
{{- $roles := list -}}
{{- range list "api" "controller" "networks" "multus" -}}
{{- if (index $.Values .).enabled -}}{{- $roles = append $roles . -}}{{- end -}}
{{- end -}}
{{- if include "hotnic.handlerEnabled" . -}}{{- $roles = append $roles "handler" -}}{{- end -}}
{{- join " " $roles -}}
{{- end -}}

{{/* The roles that the pods of multus run: with node.process single, those of the node that are part of the release. */}}
{{- define "hotnic.rolesOfMultus" -}}
{{- $roles := list "multus" -}}
{{- if eq .Values.node.process "single" -}}
{{- range without (splitList " " (include "hotnic.roles" .)) "api" "controller" "multus" -}}{{- $roles = append $roles . -}}{{- end -}}
{{- end -}}
{{- join " " $roles -}}
{{- end -}}

{{/* The roles that have pods of their own, space separated. */}}
{{- define "hotnic.rolesWithPods" -}}
{{- $inside := without (splitList " " (include "hotnic.rolesOfMultus" .)) "multus" -}}
{{- $roles := list -}}
{{- range splitList " " (include "hotnic.roles" .) -}}
{{- if not (has . $inside) -}}{{- $roles = append $roles . -}}{{- end -}}
{{- end -}}
{{- join " " $roles -}}
{{- end -}}

{{/* The role whose pods run a role: itself, or multus. Arguments: root, role. */}}
{{- define "hotnic.podOf" -}}
{{- if has .role (splitList " " (include "hotnic.rolesWithPods" .root)) -}}{{ .role }}{{- else -}}multus{{- end -}}
{{- end -}}

{{/* The ServiceAccounts of the roles that use NATS, each with its role there, comma separated. The process of multus that
     runs both roles of the node has the role node. */}}
{{- define "hotnic.busAccounts" -}}
{{- $accounts := list -}}
{{- $inside := without (splitList " " (include "hotnic.rolesOfMultus" .)) "multus" -}}
{{- range without (splitList " " (include "hotnic.rolesWithPods" .)) "multus" -}}
{{- $accounts = append $accounts (printf "%s-%s=%s" (include "hotnic.fullname" $) . .) -}}
{{- end -}}
{{- if $inside -}}
{{- $role := ternary (first $inside) "node" (eq (len $inside) 1) -}}
{{- $accounts = append $accounts (printf "%s-multus=%s" (include "hotnic.fullname" .) $role) -}}
{{- end -}}
{{- join "," $accounts -}}
{{- end -}}

{{/* The aggregated APIs of this release, as group/version, space separated. */}}
{{- define "hotnic.apis" -}}
subresources.hotnic.io/v1{{ if .Values.api.claimKubevirtGroup }} subresources.kubevirt.io/v1 subresources.kubevirt.io/v1alpha3{{ end }}
{{- end -}}

{{/* Directory of multus' socket on the node: our daemon's, or that of the daemon named instead. */}}
{{- define "hotnic.multusSocketDir" -}}
{{- if .Values.multus.enabled -}}{{ .Values.multus.socketDir }}{{- else -}}{{ .Values.networks.upstreamMultus.socketDir }}{{- end -}}
{{- end -}}

{{/* The Secret of the api's serving certificate. Each provider has its own: Helm would not adopt cert-manager's. */}}
{{- define "hotnic.tlsSecret" -}}
{{ include "hotnic.fullname" . }}-api-{{ ternary "tls" "cert-manager" (eq .Values.certificates.provider "self") }}
{{- end -}}

{{/* The names of their APIServices, comma separated. */}}
{{- define "hotnic.apiServiceNames" -}}
{{- $names := list -}}
{{- range splitList " " (include "hotnic.apis" .) -}}
{{- $parts := splitList "/" . -}}
{{- $names = append $names (printf "%s.%s" (last $parts) (first $parts)) -}}
{{- end -}}
{{- join "," $names -}}
{{- end -}}
