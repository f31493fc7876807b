{{/* daemon-config.json, with upstream's keys: what the chart derives from its values, then multus.config. */}}
{{- define "hotnic.multusConfig" -}}
{{- $multus := .Values.multus -}}
{{- $derived := dict
  "chrootDir" "/host"
  "socketDir" $multus.socketDir
  "daemonSocketDir" $multus.socketDir
  "cniConfigDir" .Values.cniConfDir
  "binDir" .Values.cniBinDir
  "cniDir" $multus.stateDir
  "confDir" (printf "/host%s" $multus.networksDir)
  "multusConfigFile" "auto"
  "multusNamespace" .Release.Namespace
  "namespaceIsolation" .Values.namespaceIsolation.enabled
  "globalNamespaces" (join "," .Values.namespaceIsolation.globalNamespaces)
  "connectionLimit" (int $multus.connectionLimit)
-}}
{{- mergeOverwrite $derived (deepCopy $multus.config) | toPrettyJson -}}
{{- end -}}
