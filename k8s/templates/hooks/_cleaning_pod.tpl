{{- /* The pod that removes hotnic's files from one node. It has multus' ServiceAccount without its token, because a
       SecurityContextConstraint may depend on the account. */ -}}
{{- define "hotnic.cleaningPod" -}}
apiVersion: v1
kind: Pod
metadata:
  namespace: {{ .Release.Namespace }}
  labels:
    {{- include "hotnic.labels" (dict "root" . "role" "uninstall-node") | nindent 4 }}
spec:
  serviceAccountName: {{ include "hotnic.fullname" . }}-multus
  automountServiceAccountToken: false
  enableServiceLinks: false
  restartPolicy: OnFailure
  {{- with .Values.imagePullSecrets }}
  imagePullSecrets:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .Values.multus.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  tolerations: [{operator: Exists}]
  securityContext:
    seccompProfile: {type: RuntimeDefault}
  # The pod must start where no CNI plugin works any more.
  hostNetwork: true
  containers:
    - name: clean
      image: {{ include "hotnic.image" . }}
      imagePullPolicy: {{ .Values.image.pullPolicy }}
      args:
        - node
        - clean
        - --host-root=/host
        - --cni-conf-dir={{ .Values.cniConfDir }}
        - --cni-bin-dir={{ .Values.cniBinDir }}
        - --state-dir={{ .Values.multus.stateDir }}
        - --socket-dir={{ .Values.multus.socketDir }}
      {{- /* The hook reads the command's error from the pod's status, and so needs no permission to read logs. */}}
      terminationMessagePolicy: FallbackToLogsOnError
      {{- /* DAC_OVERRIDE: as in multus' init container. */}}
      {{- include "hotnic.nodeContainer" (dict "root" . "capabilities" (list "DAC_OVERRIDE")) | nindent 6 }}
      resources:
        requests: {cpu: 20m, memory: 64Mi}
        limits: {memory: 256Mi}
      volumeMounts:
        - {name: tmp, mountPath: /tmp}
        - {name: host, mountPath: /host}
  volumes:
    - name: tmp
      emptyDir: {sizeLimit: 64Mi}
    - name: host
      hostPath: {path: /, type: Directory}
{{- end -}}
