{{/* Parts of the admission policies: which accounts the roles have, what each may change, and who is trusted. The texts are
     CEL, in single quotes; values.schema.json refuses quotes in the values that get into them. docs/admission.md has the
     table of what is allowed, and tests/interop/admission tries every cell of it. Next: pods.yaml. */}}

{{/* Whether all policies are part of the release, as "true" or "". */}}
{{- define "hotnic.admission.enabled" -}}
{{- if kindIs "invalid" .Values.admission.enabled -}}
{{- if eq .Values.vmOwner "hotnic" -}}true{{- end -}}
{{- else if .Values.admission.enabled -}}true{{- end -}}
{{- end -}}

{{/* Whether those policies are part of the release that restrict hotnic's own accounts, as "true" or "". With
     admission.enabled null they are there beside KubeVirt, too, where they refuse no request of anybody else. */}}
{{- define "hotnic.admission.restrictsRoles" -}}
{{- if or (kindIs "invalid" .Values.admission.enabled) .Values.admission.enabled -}}true{{- end -}}
{{- end -}}

{{/* The match conditions of a policy that is there wherever roles are restricted. Arguments: root. */}}
{{- define "hotnic.admission.conditions" -}}
- name: not-trusted
  expression: >-
    {{- include "hotnic.admission.untrusted" . | nindent 4 }}
{{- if not (include "hotnic.admission.enabled" .) }}
# Users, KubeVirt and other software change the objects as they like.
- name: of-a-role
  expression: >-
    request.userInfo.username in {{ include "hotnic.admission.allAccounts" . }}
{{- end }}
{{- end -}}

{{/* What each role writes: by object, then by role. A key that ends with a dot or a slash is a prefix. Annotations hotnic.io/
     may be removed by everybody. The apply.py of each role and services/common/domain/spec_patch.py build the patches. */}}
{{- define "hotnic.admission.rights" -}}
{{- $owner := eq .Values.vmOwner "hotnic" -}}
pods:
  networks: [k8s.v1.cni.cncf.io/network-status, hotnic.io/pod-nic., hotnic.io/attached.]
  multus: [k8s.v1.cni.cncf.io/network-status, hotnic.io/pod-nic.]
  {{- if $owner }}
  controller: [k8s.v1.cni.cncf.io/networks, hotnic.io/operation.]
  handler: [hotnic.io/pod-nic.]
  {{- end }}
vmis:
  api: [hotnic.io/operation., hotnic.io/unplug.]
  controller: [hotnic.io/operation., hotnic.io/unplug.]
  {{- if $owner }}
  handler: [hotnic.io/operation., hotnic.io/nic-slots]
  {{- end }}
vms:
  api: [hotnic.io/operation.]
  {{- if $owner }}
  controller: [hotnic.io/operation.]
  {{- end }}
# The fields, by role; and the roles that change launcher pods only.
vmiNetworks: [{{ if $owner }}api, controller{{ end }}]
launchersOnly: [controller, handler]
interfaceRequests: [{{ if not $owner }}api{{ end }}]
vmiStatus: [{{ if $owner }}controller, handler{{ end }}]
templateNetworks: [api{{ if $owner }}, controller{{ end }}]
components:
  api: [hotnic-api]
  controller: [hotnic-controller]
  networks: [hotnic-networks]
  multus: [hotnic-multus]
  handler: [hotnic-handler]
kinds:
  api: [VirtualMachine, VirtualMachineInstance]
  controller: [VirtualMachine, VirtualMachineInstance, Pod]
  networks: [VirtualMachineInstance, Pod]
  multus: [Pod]
  handler: [VirtualMachineInstance]
{{- end -}}

{{/* The user name of a role. Arguments: root, role. */}}
{{- define "hotnic.admission.account" -}}
system:serviceaccount:{{ .root.Release.Namespace }}:{{ include "hotnic.fullname" .root }}-{{ include "hotnic.podOf" . }}
{{- end -}}

{{/* CEL: the list of the user names of those of some roles that are part of the release. Arguments: root, roles. */}}
{{- define "hotnic.admission.accounts" -}}
{{- $names := list -}}
{{- range $role := splitList " " (include "hotnic.roles" .root) -}}
{{- if has $role $.roles -}}
{{- $names = append $names (include "hotnic.admission.account" (dict "root" $.root "role" $role)) -}}
{{- end -}}
{{- end -}}
{{- include "hotnic.admission.list" (uniq $names) -}}
{{- end -}}

{{- define "hotnic.admission.allAccounts" -}}
{{- include "hotnic.admission.accounts" (dict "root" . "roles" (list "api" "controller" "networks" "multus" "handler")) -}}
{{- end -}}

{{/* CEL: a list of strings. */}}
{{- define "hotnic.admission.list" -}}
[{{- range $at, $text := . }}{{ if $at }}, {{ end }}'{{ $text }}'{{ end -}}]
{{- end -}}

{{/* CEL: a map from the roles' user names to lists. Roles in one process have the rights of all of them. Arguments: root,
     rights (lists by role). */}}
{{- define "hotnic.admission.map" -}}
{{- $by := dict -}}
{{- range $role := splitList " " (include "hotnic.roles" .root) -}}
{{- with get $.rights $role -}}
{{- $account := include "hotnic.admission.account" (dict "root" $.root "role" $role) -}}
{{- $_ := set $by $account (concat (default list (get $by $account)) . | uniq) -}}
{{- end -}}
{{- end -}}
{
{{- range $account, $items := $by }}
'{{ $account }}': {{ include "hotnic.admission.list" $items }},
{{- end }}
}
{{- end -}}

{{/* CEL: whether nobody trusted sends the request. Arguments: root. */}}
{{- define "hotnic.admission.untrusted" -}}
{{- $v := .Values -}}
{{- $users := $v.admission.trusted.users -}}
{{- $namespace := $v.admission.kubevirtNamespace -}}
{{- if and (not $namespace) (eq $v.vmOwner "kubevirt") }}{{ $namespace = "kubevirt" }}{{ end -}}
{{- if $namespace -}}
{{- range list "apiserver" "controller" "handler" "operator" -}}
{{- $users = append $users (printf "system:serviceaccount:%s:kubevirt-%s" $namespace .) -}}
{{- end -}}
{{- end -}}
!(request.userInfo.username in {{ include "hotnic.admission.list" $users }})
{{- with $v.admission.trusted.groups }}
&& !request.userInfo.?groups.orValue([]).exists(group, group in {{ include "hotnic.admission.list" . }})
{{- end -}}
{{- end -}}

{{/* CEL: whether two maps are the same but for some keys. Arguments: one, other (expressions), but (a list), added (a list:
     keys that only the first one may have; optional). */}}
{{- define "hotnic.admission.same" -}}
{{- $but := include "hotnic.admission.list" .but -}}
({{ .one }}.all(key, key in {{ $but }} || (key in {{ .other }} ? {{ .one }}[key] == {{ .other }}[key] : {{ if .added }}key in {{ include "hotnic.admission.list" .added }}{{ else }}false{{ end }}))
&& {{ .other }}.all(key, key in {{ $but }} || key in {{ .one }}))
{{- end -}}

{{/* CEL: whether a custom resource is the same but for its metadata. The API server sets the generation, a new one for each
     change of something else; a change of the status alone, through its subresource, has none. */}}
{{- define "hotnic.admission.sameContent" -}}
(request.?subResource.orValue('') == '' && 'generation' in object.metadata
&& object.metadata.generation == oldObject.metadata.?generation.orValue(0))
{{- end -}}

{{/* The variables of a policy for an object with annotations. Arguments: root, rights (lists by role). */}}
{{- define "hotnic.admission.variables" -}}
- name: isRole
  expression: >-
    request.userInfo.username in {{ include "hotnic.admission.allAccounts" .root }}
- name: before
  expression: >-
    oldObject.metadata.?annotations.orValue({})
- name: after
  expression: >-
    object.metadata.?annotations.orValue({})
- name: sameAnnotations
  expression: >-
    variables.after == variables.before
# Annotations that were added, altered or removed. Everybody may remove hotnic's own. Equality is much cheaper to see than
# to find out key by key.
- name: changed
  expression: >-
    variables.sameAnnotations ? [] : variables.after.filter(key, !(key in variables.before) || variables.before[key] != variables.after[key])
    + variables.before.filter(key, !(key in variables.after) && !key.startsWith('hotnic.io/'))
# What the role may change of them; a right that ends with a dot or a slash is a prefix.
- name: rights
  expression: >-
    {{- include "hotnic.admission.map" . | nindent 4 }}
    [?request.userInfo.username].orValue([])
- name: removed
  expression: >-
    variables.sameAnnotations ? [] : variables.before.filter(key, !(key in variables.after) && key.startsWith('hotnic.io/'))
- name: foreign
  expression: >-
    !variables.isRole ? []
    : variables.rights.size() == 0 ? variables.changed + variables.removed
    : variables.changed.filter(key,
    !(variables.rights + {{ include "hotnic.admission.list" .root.Values.admission.foreignAnnotations }}).exists(right,
    right.endsWith('.') || right.endsWith('/') ? key.startsWith(right) : key == right))
- name: isOfNode
  expression: >-
    request.userInfo.username in {{ include "hotnic.admission.accounts" (dict "root" .root "roles" (list "networks" "multus" "handler")) }}
# The node of the pod that the role's token is bound to.
- name: node
  expression: >-
    request.userInfo.?extra[?'authentication.kubernetes.io/node-name'][?0].orValue('')
{{- end -}}

{{/* CEL: what a role's request is refused for, as far as it is the same for every object: the first parts of a chain of
     conditions and texts. Annotations, other metadata, and objects of another node. Arguments: root, nodeName (CEL: the node
     of the object; none: objects of no node). */}}
{{- define "hotnic.admission.roleRefusals" -}}
variables.foreign.size() > 0
? request.userInfo.username + ' may not change the annotations ' + {{ include "hotnic.admission.names" "variables.foreign" }}
+ '; if a webhook of other software sets them, add their prefix to admission.foreignAnnotations of the chart'
: object.metadata.?labels.orValue({}) != oldObject.metadata.?labels.orValue({})
|| object.metadata.?finalizers.orValue([]) != oldObject.metadata.?finalizers.orValue([])
|| object.metadata.?ownerReferences.orValue([]) != oldObject.metadata.?ownerReferences.orValue([])
? request.userInfo.username + ' may not change labels, finalizers and owners'
{{- if .nodeName }}
: variables.isOfNode
{{- if not .root.Values.admission.requireNodeName }} && variables.node != ''{{ end }}
&& (variables.node == '' || variables.node != {{ .nodeName }})
? request.userInfo.username + ' may change objects of its own node only; its token is of '
+ (variables.node == '' ? 'no node: run it in a pod, or set admission.requireNodeName of the chart to false'
: 'node ' + variables.node + ', and the object is not')
{{- end }}
{{- end -}}

{{/* The validation of a policy. Its variable `refusal` is the reason for which the request is refused, or ''; `oversteps` is
     whether a role changes fields that it may not. There is one validation for all reasons, and its message compares no
     fields: the API server computes the messages of all validations, and the variables in them once more, even where
     nothing is refused. Arguments: kind. */}}
{{- define "hotnic.admission.validation" -}}
- expression: >-
    variables.refusal == '' && !variables.oversteps
  reason: Forbidden
  message: hotnic does not allow this change
  messageExpression: >-
    '{{ .kind }} ' + request.namespace + '/' + request.name + ': ' + (variables.refusal != '' ? variables.refusal
    : request.userInfo.username + ' may not change these fields of the spec or of the status')
{{- end -}}

{{/* CEL: a list of names as text. The API server drops a message of more than 5 KiB. */}}
{{- define "hotnic.admission.names" -}}
({{ . }}.size() > 9 ? string({{ . }}.size()) + ' of them' : {{ . }}.join(', '))
{{- end -}}

{{/* The beginning of a policy. Arguments: root, subject. */}}
{{- define "hotnic.admission.head" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicy
metadata:
  name: {{ include "hotnic.fullname" .root }}-{{ .subject }}
  labels:
    {{- include "hotnic.labels" (dict "root" .root "role" "admission") | nindent 4 }}
{{- end -}}

{{/* The binding of a policy: a denial is also in the audit log, with its message. Arguments: root, subject. */}}
{{- define "hotnic.admission.binding" -}}
apiVersion: admissionregistration.k8s.io/v1
kind: ValidatingAdmissionPolicyBinding
metadata:
  name: {{ include "hotnic.fullname" .root }}-{{ .subject }}
  labels:
    {{- include "hotnic.labels" (dict "root" .root "role" "admission") | nindent 4 }}
spec:
  policyName: {{ include "hotnic.fullname" .root }}-{{ .subject }}
  validationActions: [Deny, Audit]
{{- end -}}
