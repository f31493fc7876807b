{{/* Choices that cannot work. Each is refused with one sentence that says what to change. values.schema.json refuses
     wrong types and missing values; a check here compares several values. Nothing is looked up in the cluster, because
     `helm template` and GitOps have none: what only the cluster knows, the roles check when they start. */}}
{{- define "hotnic.checks" -}}
{{- $v := .Values -}}
{{- $roles := splitList " " (include "hotnic.roles" .) -}}
{{- $handler := include "hotnic.handlerEnabled" . -}}
{{- if not (include "hotnic.roles" .) -}}
{{- fail "no role is enabled; set at least one of api.enabled, controller.enabled, networks.enabled, multus.enabled and handler.enabled to true" -}}
{{- end -}}
{{- if not $v.vmOwner -}}
{{- fail "vmOwner is not set, and it is never guessed; set it to kubevirt where KubeVirt runs (KubeVirt hot-plugs the interfaces of VMs), or to hotnic where no KubeVirt component runs (hotnic does); each file in k8s/choices sets it" -}}
{{- end -}}
{{- if and (eq $v.vmOwner "kubevirt") $v.crds.kubevirt -}}
{{- fail "crds.kubevirt is true and vmOwner is kubevirt, but KubeVirt installs its own CRDs; set crds.kubevirt to false" -}}
{{- end -}}
{{- if and (eq $v.vmOwner "kubevirt") $v.api.enabled $v.api.claimKubevirtGroup -}}
{{- fail "api.claimKubevirtGroup is true and vmOwner is kubevirt, but the group subresources.kubevirt.io would be taken away from KubeVirt with console, vnc, start, stop and migrate; set api.claimKubevirtGroup to false" -}}
{{- end -}}
{{- if and $v.api.enabled (not $v.controller.enabled) -}}
{{- fail "api.enabled is true and controller.enabled is false, so requests would be accepted and never carried out; set controller.enabled to true or api.enabled to false" -}}
{{- end -}}
{{- if and $v.networks.enabled (not $v.multus.enabled) (not $v.networks.upstreamMultus.socketDir) -}}
{{- fail "networks.enabled is true and multus.enabled is false, so nothing would execute CNI plugins; set multus.enabled to true, or networks.upstreamMultus.socketDir to the socket directory of upstream's thick daemon" -}}
{{- end -}}
{{- if and (eq $v.node.process "single") (not $v.multus.enabled) -}}
{{- fail "node.process is single and multus.enabled is false, but it is the pods of multus that run the other roles; set multus.enabled to true or node.process to separate" -}}
{{- end -}}
{{- if and $v.multus.enabled $v.networks.upstreamMultus.socketDir -}}
{{- fail "multus.enabled is true and networks.upstreamMultus.socketDir names another daemon, but a node has one multus daemon; set multus.enabled to false or networks.upstreamMultus.socketDir to \"\"" -}}
{{- end -}}
{{- range list "api" "controller" "handler" -}}
{{- if and (has . $roles) (not $v.nats.url) -}}
{{- fail (printf "nats.url is not set, but %s publishes events; set nats.url to a NATS server with JetStream, such as nats://nats.nats:4222, or %s.enabled to false" . .) -}}
{{- end -}}
{{- end -}}
{{- if and $handler (eq $v.vmOwner "hotnic") (not $v.controller.enabled) -}}
{{- fail "handler.enabled is true and controller.enabled is false, so no pod would get the attachments of its VM; set controller.enabled to true or handler.enabled to false" -}}
{{- end -}}
{{- if and (include "hotnic.admission.enabled" .) $v.networks.upstreamMultus.socketDir (not $v.admission.trusted.users) (not $v.admission.trusted.groups) -}}
{{- fail "networks.upstreamMultus.socketDir names upstream's multus daemon, and the admission policies would refuse its network-status; name its account in admission.trusted.users, such as system:serviceaccount:kube-system:multus, or set admission.enabled to false" -}}
{{- end -}}
{{- range $key, $_ := $v.multus.config -}}
{{- if has $key (list "chrootDir" "socketDir" "daemonSocketDir" "cniConfigDir" "binDir" "cniDir" "kubeconfig" "connectionLimit") -}}
{{- fail (printf "multus.config.%s is set, but the chart derives this key from other values; remove it and set cniBinDir, cniConfDir, multus.socketDir, multus.stateDir or multus.connectionLimit instead" $key) -}}
{{- end -}}
{{- end -}}
{{/* The multus daemon passes these paths on to the shim and to plugins, so they are mounted at the node's own paths. */}}
{{- $usual := dict "cniConfDir" "/etc/cni/net.d" "multus.socketDir" "/run/multus" "multus.stateDir" "/var/lib/cni/multus" -}}
{{- range $key, $path := dict "cniConfDir" $v.cniConfDir "multus.socketDir" $v.multus.socketDir "multus.stateDir" $v.multus.stateDir -}}
{{- if and $v.multus.enabled (regexMatch "^/([^/]+|var/run)$|^/(dev|etc/hotnic|host|opt/hotnic|proc|sys|usr|(var/)?run/secrets)(/|$)" (clean $path)) -}}
{{- fail (printf "%s is %s, and the pod of multus has files of its own there, which the node's directory would hide; set %s to a directory that holds nothing else, such as %s" $key $path $key (get $usual $key)) -}}
{{- end -}}
{{- end -}}
{{- $name := include "hotnic.fullname" . -}}
{{- if not (regexMatch "^[a-z]([a-z0-9-]*[a-z0-9])?$" $name) -}}
{{- fail (printf "%s is not a name of a Service; choose another name of the release, or set fullnameOverride" $name) -}}
{{- end -}}
{{- if hasKey (fromJson $v.test.network) "Error" -}}
{{- fail "test.network is not a JSON object; set it to a CNI configuration" -}}
{{- end -}}
{{- if and $v.nats.authCallout.secret (not $v.nats.url) -}}
{{- fail "nats.authCallout.secret is set and nats.url is not; set nats.url, or nats.authCallout.secret to \"\"" -}}
{{- end -}}
{{- if and $v.nats.authCallout.secret (regexMatch "(^|,)(nats|ws)://" $v.nats.url) -}}
{{- fail (printf "nats.authCallout.secret is set and nats.url is %s, but whoever reads a token on its way could connect as its role; set nats.url to addresses with tls:// or wss://" $v.nats.url) -}}
{{- end -}}
{{- if and $v.nats.authCallout.secret (not $v.api.enabled) -}}
{{- fail "nats.authCallout.secret is set and api.enabled is false, but it is the api that answers the auth callout; set api.enabled to true, or nats.authCallout.secret to \"\"" -}}
{{- end -}}
{{- if and $v.nats.authCallout.secret $v.nats.credentials.secret -}}
{{- fail "nats.authCallout.secret and nats.credentials.secret are set, but a role connects in one way; set one of them to \"\"" -}}
{{- end -}}
{{- if and $v.nats.credentials.secret (not $v.nats.url) -}}
{{- fail "nats.credentials.secret is set and nats.url is not; set nats.url, or nats.credentials.secret to \"\"" -}}
{{- end -}}
{{- end -}}
