{{/* Parts that the roles' pods share. Arguments of each: root, role. Next: api/deployment.yaml. */}}

{{/* Port of /healthz, /readyz and /metrics. multus uses the node's network, so its port must be free on the node. */}}
{{- define "hotnic.healthPort" -}}
{{- if eq .role "multus" -}}{{ .root.Values.multus.healthPort }}{{- else -}}8080{{- end -}}
{{- end -}}

{{/* Second address of the health endpoints of multus, for the probes inside its container. */}}
{{- define "hotnic.healthSocket" -}}
{{- if eq .role "multus" -}},unix:/tmp/health.sock{{- end -}}
{{- end -}}

{{- define "hotnic.podMetadata" -}}
labels:
  {{- /* Without the chart's version: a release that changes nothing of a pod must not replace it. */}}
  {{- include "hotnic.selector" . | nindent 2 }}
  app.kubernetes.io/part-of: hotnic
  {{- if and (eq .role "multus") (has "networks" (splitList " " (include "hotnic.podRoles" .))) }}
  # The component is multus, as the selector is immutable. The api looks for the pod that attaches networks.
  hotnic.io/networks: "true"
  {{- end }}
  {{- with .root.Values.commonLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
  {{- with (index .root.Values .role).podLabels }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
annotations:
  kubectl.kubernetes.io/default-container: {{ .role }}
  {{- if eq .role "multus" }}
  # The daemon reads its configuration once, so a change of it replaces the pods.
  hotnic.io/config: {{ include "hotnic.multusConfig" .root | sha256sum | trunc 16 | quote }}
  {{- end }}
  {{- with (index .root.Values .role).podAnnotations }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end -}}

{{- define "hotnic.podCommon" -}}
{{- $values := index .root.Values .role -}}
serviceAccountName: {{ include "hotnic.fullname" .root }}-{{ .role }}
# No service links: a Service named like a setting would set it.
enableServiceLinks: false
{{- with .root.Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.priorityClassName }}
priorityClassName: {{ . }}
{{- end }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "hotnic.container" -}}
{{- $values := index .root.Values .role -}}
name: {{ .role }}
image: {{ include "hotnic.image" .root }}
imagePullPolicy: {{ .root.Values.image.pullPolicy }}
args: [run, {{ if eq (include "hotnic.podRoles" .) .role }}{{ .role }}{{ else }}node{{ end }}]
ports:
  - name: health
    containerPort: {{ include "hotnic.healthPort" . }}
  {{- if eq .role "api" }}
  - name: https
    containerPort: 8443
  {{- end }}
{{- if eq .role "multus" }}
# Inside the container, on a socket of its own: each pod with the node's network could hold the port and answer there, or
# have the container started again. The program takes 0.15 s of CPU time, so it is not run more often.
startupProbe:
  exec: {command: [hotnic, healthcheck, --live, --timeout, 5s]}
  periodSeconds: 5
  timeoutSeconds: 10
  failureThreshold: 24
livenessProbe:
  exec: {command: [hotnic, healthcheck, --live, --timeout, 5s]}
  periodSeconds: 30
  timeoutSeconds: 10
  failureThreshold: 3
{{- else }}
startupProbe:
  {{- include "hotnic.probe" (merge (dict "path" "/healthz") .) | nindent 2 }}
  periodSeconds: 2
  failureThreshold: 60
livenessProbe:
  {{- include "hotnic.probe" (merge (dict "path" "/healthz") .) | nindent 2 }}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 6
{{- end }}
readinessProbe:
  {{- include "hotnic.probe" (merge (dict "path" "/readyz") .) | nindent 2 }}
  periodSeconds: 5
  timeoutSeconds: 5
{{- with $values.resources }}
resources:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{- define "hotnic.probe" -}}
httpGet:
  path: {{ .path }}
  port: health
  {{- if and (eq .role "multus") (not .root.Values.metrics.serviceMonitor.enabled) }}
  host: 127.0.0.1
  {{- end }}
{{- end -}}

{{/* The roles that a pod of a role runs, space separated. */}}
{{- define "hotnic.podRoles" -}}
{{- if eq .role "multus" -}}{{ include "hotnic.rolesOfMultus" .root }}{{- else -}}{{ .role }}{{- end -}}
{{- end -}}

{{/* Whether a pod connects to NATS, as "true" or "". multus itself does not. */}}
{{- define "hotnic.usesBus" -}}
{{- if ne (include "hotnic.podRoles" .) "multus" -}}true{{- end -}}
{{- end -}}

{{/* Settings of networks and of handler, wherever they run. */}}
{{- define "hotnic.networksEnv" -}}
- name: HOTNIC_NAMESPACE_ISOLATION
  value: {{ .Values.namespaceIsolation.enabled | quote }}
- name: HOTNIC_GLOBAL_NAMESPACES
  value: {{ join "," .Values.namespaceIsolation.globalNamespaces | quote }}
{{- end -}}

{{- define "hotnic.handlerEnv" -}}
- name: HOTNIC_GUEST_DRIVER
  value: {{ .Values.handler.guestDriver }}
- name: HOTNIC_QMP_SOCKET
  value: {{ printf "/host%s" .Values.handler.qmpSocket | quote }}
- name: HOTNIC_GUEST_AGENT_SOCKET
  value: {{ printf "/host%s" .Values.handler.guestAgentSocket | quote }}
- name: HOTNIC_TAP_OWNER
  value: {{ int64 .Values.handler.tapOwner | quote }}
{{- end -}}

{{- define "hotnic.env" -}}
{{- $root := .root -}}
{{- $values := index $root.Values .role -}}
- name: POD_IP
  valueFrom: {fieldRef: {fieldPath: status.podIP}}
- name: HOTNIC_NAMESPACE
  valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
{{- $roles := splitList " " (include "hotnic.podRoles" .) -}}
{{- if gt (len $roles) 1 }}
- name: HOTNIC_ROLES
  value: {{ join "," $roles }}
{{- end }}
{{- if has .role (list "networks" "multus" "handler") }}
- name: HOTNIC_NODE_NAME
  valueFrom: {fieldRef: {fieldPath: spec.nodeName}}
{{- end }}
- name: HOTNIC_HEALTH_LISTEN
  {{- if and (eq .role "multus") (not $root.Values.metrics.serviceMonitor.enabled) }}
  # The kubelet is on the same network, so nobody else needs to reach the port.
  value: 127.0.0.1:{{ include "hotnic.healthPort" . }}{{ include "hotnic.healthSocket" . }}
  {{- else }}
  # The pod's address, not a wildcard: it is right for IPv4 and for IPv6.
  value: $(POD_IP):{{ include "hotnic.healthPort" . }}{{ include "hotnic.healthSocket" . }}
  {{- end }}
- name: HOTNIC_LOG_LEVEL
  value: {{ $root.Values.log.level }}
- name: HOTNIC_LOG_FORMAT
  value: {{ $root.Values.log.format }}
{{- if or (has .role (list "api" "controller")) (has "handler" $roles) }}
- name: HOTNIC_VM_OWNER
  value: {{ $root.Values.vmOwner }}
{{- with $root.Values.admission.kubevirtNamespace }}
- name: HOTNIC_KUBEVIRT_NAMESPACES
  value: {{ . }}
{{- end }}
{{- end }}
{{- if and (include "hotnic.usesBus" .) $root.Values.nats.url }}
- name: NATS_URL
  value: {{ $root.Values.nats.url | quote }}
{{- if $root.Values.nats.credentials.secret }}
- name: NATS_CREDS
  value: {{ printf "/etc/hotnic/nats/%s" $root.Values.nats.credentials.key | quote }}
{{- end }}
{{- if $root.Values.nats.authCallout.secret }}
- name: NATS_TOKEN_FILE
  value: /etc/hotnic/nats-token/token
{{- end }}
{{- with $root.Values.nats.tls }}
{{- if .secret }}
- name: NATS_CA
  value: {{ printf "/etc/hotnic/nats-tls/%s" .ca | quote }}
{{- if .cert }}
- name: NATS_CERT
  value: {{ printf "/etc/hotnic/nats-tls/%s" .cert | quote }}
- name: NATS_KEY
  value: {{ printf "/etc/hotnic/nats-tls/%s" .key | quote }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}
{{- with $root.Values.tracing }}
{{- if .endpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ .endpoint | quote }}
- name: OTEL_EXPORTER_OTLP_PROTOCOL
  value: {{ .protocol }}
- name: POD_NAME
  valueFrom: {fieldRef: {fieldPath: metadata.name}}
- name: OTEL_RESOURCE_ATTRIBUTES
  value: k8s.namespace.name=$(HOTNIC_NAMESPACE),k8s.pod.name=$(POD_NAME)
{{- end }}
{{- end }}
{{- with concat ($root.Values.extraEnv | default list) ($values.extraEnv | default list) }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "hotnic.mounts" -}}
- name: tmp
  mountPath: /tmp
{{- if and (include "hotnic.usesBus" .) .root.Values.nats.url }}
{{- if .root.Values.nats.credentials.secret }}
- name: nats-credentials
  mountPath: /etc/hotnic/nats
  readOnly: true
{{- end }}
{{- if .root.Values.nats.authCallout.secret }}
- name: nats-token
  mountPath: /etc/hotnic/nats-token
  readOnly: true
{{- end }}
{{- if .root.Values.nats.tls.secret }}
- name: nats-tls
  mountPath: /etc/hotnic/nats-tls
  readOnly: true
{{- end }}
{{- end }}
{{- end -}}

{{- define "hotnic.volumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 64Mi}
{{- if and (include "hotnic.usesBus" .) .root.Values.nats.url }}
{{- with .root.Values.nats.credentials }}
{{- if .secret }}
- name: nats-credentials
  secret: {secretName: {{ .secret | quote }}, defaultMode: 0440, items: [{key: {{ .key | quote }}, path: {{ .key | quote }}}]}
{{- end }}
{{- end }}
{{- with .root.Values.nats.authCallout }}
{{- if .secret }}
# A token for NATS alone, which no API server accepts. The kubelet replaces it.
- name: nats-token
  projected:
    sources:
      - serviceAccountToken: {path: token, audience: {{ .audience | quote }}, expirationSeconds: {{ int64 .tokenSeconds }}}
{{- end }}
{{- end }}
{{- with .root.Values.nats.tls }}
{{- if .secret }}
- name: nats-tls
  secret: {secretName: {{ .secret | quote }}, defaultMode: 0440}
{{- end }}
{{- end }}
{{- end }}
{{- end -}}

{{/* Security of a pod whose role needs nothing of the node: no user id of its own, because OpenShift assigns one; the
     image's user is not root. The group lets it read Secrets. */}}
{{- define "hotnic.unprivilegedPod" -}}
securityContext:
  runAsNonRoot: true
  {{- with .Values.fsGroup }}
  fsGroup: {{ int64 . }}
  {{- end }}
  seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "hotnic.unprivilegedContainer" -}}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
{{- end -}}

{{/* Security of a container on the node. It is root, because sockets and directories of the node belong to root, and
     has the capabilities of its list and no others. Arguments: root, capabilities. */}}
{{- define "hotnic.nodeContainer" -}}
securityContext:
  runAsUser: 0
  runAsGroup: 0
  # Not `privileged`: that would add every capability and every device of the node.
  privileged: false
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities:
    drop: [ALL]
    {{- with .capabilities }}
    add: [{{ join ", " . }}]
    {{- end }}
  {{- with .root.Values.node.seLinuxOptions }}
  seLinuxOptions:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
