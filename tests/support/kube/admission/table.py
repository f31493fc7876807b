"""The table of what the admission policies allow: identity by object and change. Data, without a cluster.

`docs/admission.md` prints it (`scripts/generate/admission_table.py`), and `tests/interop/admission` sends every cell to
a real API server. Every identity has all rights there, so the policies alone decide. Next: :mod:`.cluster`.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from schemas.kubernetes.networks import NETWORK_STATUS, NETWORKS
from tests.support.kube.admission.objects import (
    COLUMNS,
    HASH,
    LABEL,
    MARK,
    NAMESPACE,
    NODE,
    NODE_ROLES,
    NOTE,
    OPERATION,
    PLUGIN_TYPES,
    POD_NIC,
    RELEASE,
    SLOTS,
    Identity,
    Object,
    config,
    nad,
    pod,
    vm_object,
    vmi_object,
    vmi_spec,
)


@dataclass(frozen=True)
class Row:
    """One change of one object, and who may make it.

    :ivar subject: the kind of object; the heading of a part of the table.
    :ivar path: the object, or the collection for a POST.
    :ivar body: the body, or how to make it for an identity.
    :ivar yes: the columns that may make the change.
    :ivar own: the roles that may make it to objects of their own node.
    """

    subject: str
    change: str
    method: str
    path: str
    body: Any
    yes: frozenset[str]
    own: frozenset[str] = field(default=frozenset())

    @property
    def id(self) -> str:
        """The name of the row's test."""
        return f"{self.subject}: {self.change}"

    def body_of(self, identity: Identity) -> Any:
        """Return the body that an identity sends."""
        return self.body(identity) if callable(self.body) else self.body

    def allows(self, identity: Identity) -> bool:
        """Return whether the policies allow the change to an identity."""
        return identity.column in self.yes or (identity.column in self.own and identity.node == NODE)

    def cell(self, column: str) -> str:
        """Return what the printed table says."""
        return "own node" if column in self.own else "yes" if column in self.yes else "no"


ALL: Final = "users trusted api controller networks multus handler"
PODS, VMIS, VMS, NADS = "Launcher pod", "VirtualMachineInstance", "VirtualMachine", "NetworkAttachmentDefinition"
_CORE = f"/api/v1/namespaces/{NAMESPACE}"
_KUBEVIRT = f"/apis/kubevirt.io/v1/namespaces/{NAMESPACE}"
_NAD = f"/apis/k8s.cni.cncf.io/v1/namespaces/{NAMESPACE}/network-attachment-definitions"
LAUNCHER, ORDINARY, VMI, VM = (
    f"{_CORE}/pods/launcher",
    f"{_CORE}/pods/ordinary",
    f"{_KUBEVIRT}/virtualmachineinstances/vm1",
    f"{_KUBEVIRT}/virtualmachines/vm1",
)
API_SERVICE: Final = "v1.subresources.hotnic.io"


def row(subject: str, change: str, path: str, body: Any, yes: str = "", own: str = "", *, method: str = "PATCH") -> Row:
    """Return a row; columns are separated by spaces. `trusted` may make every change that is not `-trusted`."""
    columns = set(yes.split())
    columns = columns - {"-trusted"} if "-trusted" in columns else columns | {"trusted"}
    return Row(subject, change, method, path, body, frozenset(columns), frozenset(own.split()))


def annotate(**changes: str | None) -> Object:
    """Return a merge patch of annotations."""
    return {"metadata": {"annotations": changes}}


def _annotated(key: str, value: str | None = "{}") -> Object:
    return annotate(**{key: value})


def _networks(name: str) -> str:
    return json.dumps([{"name": "bridge-net", "interface": name}])


def _pod_rows() -> Iterator[Row]:
    path, element = LAUNCHER, _networks("pod1")
    status = json.dumps([{"name": f"{NAMESPACE}/bridge-net", "interface": "pod1"}])
    yield row(PODS, f"alter `{NETWORKS}`", path, _annotated(NETWORKS, element), "controller")
    yield row(PODS, f"remove `{NETWORKS}`", path, _annotated(NETWORKS, None), "controller")
    yield row(PODS, f"alter `{NETWORK_STATUS}`", path, _annotated(NETWORK_STATUS, status), "", "networks multus")
    through = f"alter `{NETWORK_STATUS}` through `pods/status`"
    yield row(PODS, through, f"{path}/status", _annotated(NETWORK_STATUS, status), "", "networks multus")
    record = "alter `hotnic.io/pod-nic.…` through `pods/status`"
    yield row(PODS, record, f"{path}/status", _annotated(POD_NIC), "", "networks multus handler")
    labelled = {"metadata": {"labels": {"example.com/a": "b"}}}
    yield row(PODS, "add a label through `pods/status`", f"{path}/status", labelled, "users")
    finalizers = {"metadata": {"finalizers": ["example.com/f"]}}
    yield row(PODS, "add a finalizer through `pods/status`", f"{path}/status", finalizers, "users")
    yield row(PODS, "change the status", f"{path}/status", {"status": {"message": "other"}}, "users")
    yield row(PODS, f"remove `{NETWORK_STATUS}`", path, _annotated(NETWORK_STATUS, None), "", "networks multus")
    yield row(PODS, "alter `hotnic.io/operation.…`", path, _annotated(OPERATION), "controller")
    yield row(PODS, "alter `hotnic.io/pod-nic.…`", path, _annotated(POD_NIC), "", "networks multus handler")
    yield row(PODS, "add `hotnic.io/attached.…`", path, _annotated(MARK), "", "networks")
    yield row(PODS, "add another `hotnic.io/…`", path, _annotated("hotnic.io/other"))
    yield row(
        PODS, "remove `hotnic.io/…`", path, _annotated(OPERATION, None), "users controller", "networks multus handler"
    )
    yield row(PODS, "add another annotation", path, _annotated(NOTE), "users")
    webhook = "add an annotation of `admission.foreignAnnotations`"
    yield row(PODS, webhook, path, _annotated("kubemacpool.io/x"), "users controller", "networks multus handler")
    yield row(PODS, "add a label", path, {"metadata": {"labels": {"example.com/a": "b"}}}, "users")
    yield row(PODS, f"alter the label `{LABEL}`", path, {"metadata": {"labels": {LABEL: "other"}}})
    yield row(PODS, f"remove the label `{LABEL}`", path, {"metadata": {"labels": {LABEL: None}}})
    yield row(PODS, "add a finalizer", path, {"metadata": {"finalizers": ["example.com/f"]}}, "users")
    image = [{"op": "replace", "path": "/spec/containers/0/image", "value": "other"}]
    yield row(PODS, "change an image", path, image, "users")
    both = [*image, {"op": "add", "path": "/metadata/annotations/hotnic.io~1pod-nic.1", "value": "{}"}]
    yield row(PODS, "change an image and write `hotnic.io/pod-nic.…`", path, both)
    subject, path = "Other pod", ORDINARY
    yield row(subject, f"add `{NETWORKS}`", path, _annotated(NETWORKS, element), "users")
    yield row(subject, f"add `{NETWORK_STATUS}`", path, _annotated(NETWORK_STATUS, status), "", "networks multus")
    yield row(subject, "add `hotnic.io/attached.…`", path, _annotated(MARK), "", "networks")
    yield row(subject, "add `hotnic.io/operation.…`", path, _annotated(OPERATION))
    made = pod("restored", "", **{OPERATION: "{}", NETWORK_STATUS: status, NETWORKS: element})
    yield row(subject, "create it with annotations of hotnic", f"{_CORE}/pods", made, ALL, method="POST")
    binding = {"apiVersion": "v1", "kind": "Binding", "target": {"apiVersion": "v1", "kind": "Node", "name": NODE}}
    to = f"{_CORE}/pods/unbound/binding"
    yield row(subject, "bind it to a node", to, binding | {"metadata": {"name": "unbound"}}, ALL, method="POST")
    for key in (NETWORKS, NETWORK_STATUS, OPERATION):
        written = binding | {"metadata": {"name": "unbound", "annotations": {key: element}}}
        name = key.replace(HASH, "…")
        yield row(subject, f"bind it to a node, with `{name}`", to, written, method="POST")


def _vmi_rows() -> Iterator[Row]:
    subject, path = VMIS, VMI
    spec = vmi_spec("blue", "red")
    yield row(subject, "add a network and its interface", path, {"spec": spec}, "api controller")
    absent = [{"op": "add", "path": "/spec/domain/devices/interfaces/0/state", "value": "absent"}]
    yield row(subject, "set an interface to `absent`", path, absent, "api controller")
    yield row(subject, "remove all networks", path, {"spec": {"networks": None}}, "api controller")
    entry = {"name": "blue", "infoSource": "domain"}
    yield row(subject, "change `status.interfaces`", path, {"status": {"interfaces": [entry]}}, "controller", "handler")
    yield row(subject, "change the rest of `status`", path, {"status": {"phase": "Failed"}}, "users")
    yield row(subject, "change the rest of `spec`", path, {"spec": {"hostname": "other"}}, "users")
    disks = {"spec": {"domain": {"devices": {"disks": [{"name": "other"}]}}}}
    yield row(subject, "change another device", path, disks, "users")
    yield row(subject, "alter `hotnic.io/operation.…`", path, _annotated(OPERATION), "api controller", "handler")
    yield row(subject, "alter `hotnic.io/nic-slots`", path, _annotated(SLOTS), "", "handler")
    yield row(subject, "add another `hotnic.io/…`", path, _annotated("hotnic.io/other"))
    yield row(subject, "remove `hotnic.io/…`", path, _annotated(SLOTS, None), "users api controller", "handler")
    yield row(subject, "add another annotation", path, _annotated(NOTE), "users")
    yield row(subject, "add a label", path, {"metadata": {"labels": {"example.com/a": "b"}}}, "users")
    yield row(subject, "add a finalizer", path, {"metadata": {"finalizers": ["example.com/f"]}}, "users")
    path, made = f"{_KUBEVIRT}/virtualmachineinstances", vmi_object("restored")
    yield row(subject, "create it with all that hotnic writes", path, made, ALL, method="POST")


def _vm_rows() -> Iterator[Row]:
    subject, path = VMS, VM
    template = {"spec": {"template": {"spec": vmi_spec("blue", "red")}}}
    yield row(subject, "add a network and its interface to the template", path, template, "users api controller")
    absent = [{"op": "add", "path": "/spec/template/spec/domain/devices/interfaces/0/state", "value": "absent"}]
    yield row(subject, "set an interface of the template to `absent`", path, absent, "users api controller")
    inner = {"spec": {"template": {"spec": {"hostname": "other"}}}}
    yield row(subject, "change the rest of the template", path, inner, "users")
    meta = {"spec": {"template": _annotated(OPERATION)}}
    yield row(subject, "add `hotnic.io/…` to the template's metadata", path, meta, "users")
    yield row(subject, "stop it", path, {"spec": {"running": False}}, "users")
    yield row(subject, "alter `hotnic.io/operation.…`", path, _annotated(OPERATION), "api controller")
    yield row(subject, "add another `hotnic.io/…`", path, _annotated("hotnic.io/other"))
    yield row(subject, "remove `hotnic.io/…`", path, _annotated(OPERATION, None), "users api controller")
    yield row(subject, "add another annotation", path, _annotated(NOTE), "users")
    yield row(subject, "add a label", path, {"metadata": {"labels": {"example.com/a": "b"}}}, "users")
    status = {"status": {"printableStatus": "Running"}}
    yield row(subject, "change its status", f"{path}/status", status, "users")
    made = vm_object("restored")
    yield row(subject, "create it with annotations of hotnic", f"{_KUBEVIRT}/virtualmachines", made, ALL, method="POST")


def _nad_rows() -> Iterator[Row]:
    allowed = " and ".join(f"`{name}`" for name in PLUGIN_TYPES)
    bridge, nobody = {"type": "bridge", "ipam": {"type": "host-local"}}, "-trusted"
    created = [
        (f"create one with {allowed}", config(**bridge), ALL),
        ("create one with a chain of these", config(plugins=[bridge, bridge]), ALL),
        ("create one without `spec.config`", "", ALL),
        ("create one with another plugin", config(type="macvlan"), nobody),
        ("… with another one in a chain", config(plugins=[bridge, {"type": "tuning"}]), nobody),
        ("… with another one for addresses", config(type="bridge", ipam={"type": "dhcp"}), nobody),
        ("… named by `Type`", config(**bridge, Type="macvlan"), nobody),
        ("… named twice", '{"type": "bridge", "type": "macvlan"}', nobody),
        ("… named with an escape", '{"type": "bridge", "t\\u0079pe": "macvlan"}', nobody),
        ("… of which the type is no string", '{"type": "bridge", "ipam": {"type": ["dhcp"]}}', nobody),
        ("create one that is no JSON", "type: bridge", nobody),
        ("create one with the shim of a multus", config(type="hotnic-multus"), nobody),
    ]
    for change, content, yes in created:
        yield row(NADS, change, _NAD, nad("made", content), yes, method="POST")
    to = {"spec": {"config": config(type="macvlan")}}
    yield row(NADS, "change the plugin to another one", f"{_NAD}/bridge-net", to, nobody)
    labelled = {"metadata": {"labels": {"example.com/a": "b"}}}
    yield row(NADS, "label one that names another plugin already", f"{_NAD}/earlier", labelled, ALL)


def _event(component: Callable[[str], str], kind: Callable[[str], str]) -> Callable[[Identity], Object]:
    def build(identity: Identity) -> Object:
        role = identity.role or "networks"
        about = {"kind": kind(role), "namespace": NAMESPACE, "name": "one"}
        host = {"host": NODE} if role in NODE_ROLES else {}
        metadata = {"name": "one.1", "namespace": NAMESPACE}
        source = {"source": {"component": component(role)} | host, "reportingComponent": component(role)}
        return {"apiVersion": "v1", "kind": "Event", "metadata": metadata, "involvedObject": about} | source

    return build


def _own_kind(role: str) -> str:
    return "Pod" if role in ("networks", "multus") else "VirtualMachineInstance"


def _own_rows() -> Iterator[Row]:
    subject, path = "Event", f"{_CORE}/events"
    own = _event(lambda role: f"hotnic-{role}", _own_kind)
    yield row(
        subject, "record one of its own", path, own, "users api controller", "networks multus handler", method="POST"
    )
    kubelet = _event(lambda _role: "kubelet", _own_kind)
    yield row(subject, "record one in the name of another component", path, kubelet, "users", method="POST")
    secret = _event(lambda role: f"hotnic-{role}", lambda _role: "Secret")
    yield row(subject, "record one about another kind", path, secret, "users", method="POST")
    subject, path = "Secret in hotnic's namespace", f"/api/v1/namespaces/{RELEASE}/secrets"
    serving: Object = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"{RELEASE}-api-tls"},
        "type": "Opaque",
    }
    yield row(subject, "create that of the serving certificate", path, serving, "users api", method="POST")
    other = serving | {"metadata": {"name": "other"}}
    yield row(subject, "create another one", path, other, "users", method="POST")
    account = {"kubernetes.io/service-account.name": "default"}
    token = serving | {"metadata": serving["metadata"] | {"annotations": account}}
    token |= {"type": "kubernetes.io/service-account-token"}
    yield row(subject, "create it as the token of an account", path, token, "users", method="POST")
    path = f"{path}/{RELEASE}-api-tls"
    yield row(subject, "write a certificate into it", path, {"data": {"tls.crt": "YQ=="}}, "users api")
    yield row(subject, "write another key into it", path, {"data": {"release": "YQ=="}}, "users")
    yield row(subject, "add a label to it", path, {"metadata": {"labels": {"owner": "helm"}}}, "users")
    yield row(subject, "add an annotation to it", path, annotate(note="x"), "users")
    subject, path = "Lease in hotnic's namespace", f"/apis/coordination.k8s.io/v1/namespaces/{RELEASE}/leases"
    lease = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": "hotnic-controller"}}
    yield row(subject, "create that of the controller", path, lease, "users controller", method="POST")
    lease = lease | {"metadata": {"name": "other"}}
    yield row(subject, "create another one", path, lease, "users", method="POST")
    subject, path = "APIService", f"/apis/apiregistration.k8s.io/v1/apiservices/{API_SERVICE}"
    yield row(subject, "set its `caBundle`", path, {"spec": {"caBundle": "YQ=="}}, "users api")
    yield row(subject, "add a label to it", path, {"metadata": {"labels": {"owner": "helm"}}}, "users")
    yield row(subject, "lead it to another Service", path, {"spec": {"service": {"name": "other"}}}, "users")


def rows() -> list[Row]:
    """Return the whole table."""
    return [*_pod_rows(), *_vmi_rows(), *_vm_rows(), *_nad_rows(), *_own_rows()]


def print_table() -> str:
    """Return the table as Markdown, one part for each subject."""
    lines: list[str] = []
    subject = ""
    for one in rows():
        if one.subject != subject:
            subject = one.subject
            lines += ["", f"### {subject}", "", f"| change | {' | '.join(COLUMNS)} |", f"|---|{'---|' * len(COLUMNS)}"]
        lines.append(f"| {one.change} | {' | '.join(one.cell(column) for column in COLUMNS)} |")
    return "\n".join(lines[1:]) + "\n"
