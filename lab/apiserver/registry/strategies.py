"""Strategies of the built-in kinds: defaulting, validation and grace periods beyond the common rules.

Only rules that a user of the lab can notice are implemented; each is upstream's (pkg/registry,
pkg/apis/core/v1/defaults). `rest/verbs.py` and `rest/deletion.py` call them; custom resources use
`CustomResourceStrategy`.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Callable
from typing import Any

from lab.apiserver.errors import FieldError, Object
from lab.apiserver.storage.store import Store


class Strategy:
    """The rules of one kind; the base class adds none to the common rules."""

    generation = False
    """Whether changes outside metadata and status increment `metadata.generation`."""

    def on_create(self, obj: Object) -> None:
        """Set defaults, and reset fields that a client may not set on creation."""

    def on_update(self, new: Object, old: Object) -> None:
        """Restore fields that an update silently may not change."""

    def on_status_update(self, new: Object, old: Object) -> None:
        """Restore metadata that an update of the status silently may not change."""

    def causes(self, new: Object, old: Object | None) -> list[FieldError]:
        """Return the field errors of a new object, or of an update of `old`."""
        return []

    def grace_seconds(self, obj: Object, requested: int | None) -> int:
        """Return the grace period of a deletion in seconds; 0 removes the object at once."""
        return 0

    def has_finalizers(self, obj: Object) -> bool:
        """Return whether finalizers keep a deleted object from being removed."""
        return bool(obj["metadata"].get("finalizers"))


class CustomResourceStrategy(Strategy):
    """The strategy of custom resources."""

    generation = True


def _required(path: str) -> FieldError:
    return FieldError("FieldValueRequired", "Required value", path)


class NamespaceStrategy(Strategy):
    """The strategy of namespaces."""

    def on_create(self, obj: Object) -> None:
        """Set the name label, the `kubernetes` finalizer and phase Active."""
        obj["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = obj["metadata"]["name"]
        # The namespace controller removes this finalizer when the namespace is empty.
        obj["spec"] = {"finalizers": ["kubernetes"]}
        obj["status"] = {"phase": "Active"}

    def on_update(self, new: Object, old: Object) -> None:
        """Restore the spec, which only the namespace controller may change, and the name label."""
        new["spec"] = old.get("spec", {})
        new["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = new["metadata"]["name"]

    def has_finalizers(self, obj: Object) -> bool:
        """Return whether metadata or spec have finalizers."""
        return super().has_finalizers(obj) or bool((obj.get("spec") or {}).get("finalizers"))


_POD_CHANGEABLE = ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates")
_POD_RULE = (
    "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"
    "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing"
    " tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)


class PodStrategy(Strategy):
    """The strategy of pods."""

    generation = True

    def on_create(self, obj: Object) -> None:
        """Set the defaults of spec and containers, and phase Pending."""
        spec = obj.setdefault("spec", {})
        spec.setdefault("restartPolicy", "Always")
        spec.setdefault("terminationGracePeriodSeconds", 30)
        spec.setdefault("dnsPolicy", "ClusterFirst")
        spec.setdefault("securityContext", {})
        spec.setdefault("schedulerName", "default-scheduler")
        spec.setdefault("enableServiceLinks", True)
        spec.setdefault("serviceAccountName", "default")
        for kind in ("initContainers", "containers"):
            for container in spec.get(kind) or []:
                _default_container(container)
        obj["status"] = {"phase": "Pending", "qosClass": _quality(spec)}

    def on_status_update(self, new: Object, old: Object) -> None:
        """Restore the owners; other metadata may change, as upstream allows."""
        new["metadata"].pop("ownerReferences", None)
        if "ownerReferences" in old["metadata"]:
            new["metadata"]["ownerReferences"] = old["metadata"]["ownerReferences"]

    def causes(self, new: Object, old: Object | None) -> list[FieldError]:
        """Return missing fields of a new pod, or a change of immutable fields."""
        spec = new.get("spec") or {}
        if old is not None:
            same = _fixed_part(spec) == _fixed_part(old.get("spec") or {})
            return [] if same else [FieldError("FieldValueForbidden", _POD_RULE, "spec")]
        found = []
        containers = spec.get("containers") or []
        if not containers:
            found.append(_required("spec.containers"))
        for index, container in enumerate(containers):
            found += [
                _required(f"spec.containers[{index}].{name}") for name in ("name", "image") if not container.get(name)
            ]
        return found

    def grace_seconds(self, obj: Object, requested: int | None) -> int:
        """Return the requested or specified grace period; 0 for a pod that no kubelet runs."""
        spec, status = obj.get("spec") or {}, obj.get("status") or {}
        if not spec.get("nodeName") or status.get("phase") in ("Succeeded", "Failed"):
            return 0
        grace = requested if requested is not None else spec.get("terminationGracePeriodSeconds", 30)
        # Only the kubelet may remove a running pod at once; a spec without a grace period gets the shortest one.
        return int(grace) if grace or requested == 0 else 1


def _default_container(container: Object) -> None:
    container.setdefault("resources", {})
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    image = container.get("image") or ""
    # An image without a tag or digest means `latest`.
    latest = image.endswith(":latest") or (":" not in image.rpartition("/")[2] and "@" not in image)
    container.setdefault("imagePullPolicy", "Always" if latest else "IfNotPresent")
    for port in container.get("ports") or []:
        port.setdefault("protocol", "TCP")


def _quality(spec: Object) -> str:
    resources = [container.get("resources") or {} for container in spec.get("containers") or []]
    if not any(resource.get("requests") or resource.get("limits") for resource in resources):
        return "BestEffort"
    guaranteed = all(
        (resource.get("limits") or {}).keys() >= {"cpu", "memory"}
        and (resource.get("requests") or resource["limits"]) == resource["limits"]
        for resource in resources
    )
    return "Guaranteed" if guaranteed else "Burstable"


def _fixed_part(spec: Object) -> Object:
    """Return a pod spec without the fields that may change after creation."""
    fixed = {name: value for name, value in spec.items() if name not in _POD_CHANGEABLE}
    for kind in ("containers", "initContainers"):
        if kind in fixed:
            fixed[kind] = [
                {name: value for name, value in container.items() if name != "image"} for container in fixed[kind]
            ]
    return fixed


class ServiceStrategy(Strategy):
    """The strategy of services: they get an address of 10.96.0.0/16, which the lab does not route."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def on_create(self, obj: Object) -> None:
        """Set the defaults of the spec and assign a cluster IP."""
        spec = obj.setdefault("spec", {})
        spec.setdefault("type", "ClusterIP")
        spec.setdefault("sessionAffinity", "None")
        for port in spec.get("ports") or []:
            port.setdefault("protocol", "TCP")
            port.setdefault("targetPort", port.get("port"))
        if spec["type"] != "ExternalName":
            spec.setdefault("internalTrafficPolicy", "Cluster")
            spec.setdefault("ipFamilies", ["IPv4"])
            spec.setdefault("ipFamilyPolicy", "SingleStack")
            if not spec.get("clusterIP"):
                spec["clusterIP"] = self._free_address()
            spec.setdefault("clusterIPs", [spec["clusterIP"]])
        obj["status"] = {"loadBalancer": {}}

    def _free_address(self) -> str:
        used = {(stored.obj.get("spec") or {}).get("clusterIP") for stored in self._store.list("/services")}
        hosts = ipaddress.ip_network("10.96.0.0/16").hosts()
        return next(address for host in hosts if (address := str(host)) not in used)

    def on_update(self, new: Object, old: Object) -> None:
        """Keep the assigned fields that an update leaves out."""
        spec, before = new.setdefault("spec", {}), old.get("spec") or {}
        for name in ("clusterIP", "clusterIPs", "type", "sessionAffinity", "ipFamilies", "ipFamilyPolicy"):
            if name in before:
                spec.setdefault(name, before[name])

    def causes(self, new: Object, old: Object | None) -> list[FieldError]:
        """Return missing ports, or a change of the cluster IP."""
        spec = new.get("spec") or {}
        found = []
        if spec.get("type") != "ExternalName" and spec.get("clusterIP") != "None" and not spec.get("ports"):
            found.append(_required("spec.ports"))
        before = ((old or {}).get("spec") or {}).get("clusterIP")
        if before and spec.get("clusterIP") != before:
            message = f'Invalid value: "{spec.get("clusterIP")}": field is immutable'
            found.append(FieldError("FieldValueInvalid", message, "spec.clusterIPs[0]"))
        return found


class SecretStrategy(Strategy):
    """The strategy of secrets."""

    def on_create(self, obj: Object) -> None:
        """Set the default type and encode `stringData`."""
        obj.setdefault("type", "Opaque")
        self.on_update(obj, obj)

    def on_update(self, new: Object, old: Object) -> None:
        """Move `stringData` to `data`, in base64."""
        plain: dict[str, str] | None = new.pop("stringData", None)
        if plain:
            data = new.setdefault("data", {})
            for name, value in plain.items():
                data[name] = base64.b64encode(value.encode()).decode()

    def causes(self, new: Object, old: Object | None) -> list[FieldError]:
        """Return the changed fields of an immutable secret."""
        return _immutable_causes(new, old)


class ConfigMapStrategy(Strategy):
    """The strategy of config maps."""

    def causes(self, new: Object, old: Object | None) -> list[FieldError]:
        """Return the changed fields of an immutable config map."""
        return _immutable_causes(new, old)


def _immutable_causes(new: Object, old: Object | None) -> list[FieldError]:
    if old is None or not old.get("immutable"):
        return []
    message = "Forbidden: field is immutable when `immutable` is set"
    return [
        FieldError("FieldValueForbidden", message, name)
        for name in ("data", "binaryData", "immutable")
        if new.get(name) != old.get(name)
    ]


class EventStrategy(Strategy):
    """The strategy of core Events."""

    def causes(self, new: Object, old: Object | None) -> list[FieldError]:
        """Return an error when the involved object is in another namespace."""
        involved = (new.get("involvedObject") or {}).get("namespace", "")
        namespace = new["metadata"].get("namespace", "")
        if involved != namespace and not (involved == "" and namespace == "default"):
            message = f'Invalid value: "{involved}": does not match event.namespace'
            return [FieldError("FieldValueInvalid", message, "involvedObject.namespace")]
        return []


class CrdStrategy(Strategy):
    """The strategy of CRDs; the functions of `crd.py` are parameters, so that this module needs no schemas."""

    generation = True

    def __init__(self, complete: Callable[[Object], None], check: Callable[[Object, Any], list[FieldError]]) -> None:
        self._complete = complete
        self._check = check

    def on_create(self, obj: Object) -> None:
        """Reset the status and set defaults."""
        obj["status"] = {"conditions": [], "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": []}
        self._complete(obj)

    def on_update(self, new: Object, old: Object) -> None:
        """Set defaults."""
        self._complete(new)

    def causes(self, new: Object, old: Object | None) -> list[FieldError]:
        """Return the field errors of the CRD."""
        return self._check(new, old)
