{{/* The name of a role's ClusterRole. That of the controller is the same in every release: two controllers would change
     the same VMs, and Helm refuses a second release with an object of the first. */}}
{{- define "hotnic.clusterRole" -}}
{{- if eq .role "controller" -}}hotnic-controller{{- else -}}{{ include "hotnic.fullname" .root }}-{{ .role }}{{- end -}}
{{- end -}}

{{/* The ServiceAccount of a role and the bindings of its ClusterRole and Role. Each role has one file rbac.yaml with
     exactly the rules that its code uses. Arguments: root, role, namespaced (whether there is a Role). */}}
{{- define "hotnic.account" -}}
{{- $pod := .role -}}
{{- if has .role (list "networks" "handler") -}}{{- $pod = include "hotnic.podOf" . -}}{{- end -}}
{{- $name := printf "%s-%s" (include "hotnic.fullname" .root) $pod -}}
{{- $clusterRole := include "hotnic.clusterRole" . -}}
{{- if eq $pod .role }}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ $name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "hotnic.labels" . | nindent 4 }}
  {{- with (index .root.Values .role).serviceAccountAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
---
{{- end }}
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ $clusterRole }}
  labels:
    {{- include "hotnic.labels" . | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {{ $clusterRole }}}
subjects:
  - {kind: ServiceAccount, name: {{ $name }}, namespace: {{ .root.Release.Namespace }}}
{{- if .namespaced }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ $name }}
  namespace: {{ .root.Release.Namespace }}
  labels:
    {{- include "hotnic.labels" . | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ $name }}}
subjects:
  - {kind: ServiceAccount, name: {{ $name }}, namespace: {{ .root.Release.Namespace }}}
{{- end }}
{{- end -}}
