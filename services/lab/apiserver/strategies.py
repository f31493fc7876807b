"""What the built-in kinds demand beyond the common rules: defaults, checks, grace periods.

Only what users of the lab can see is here; each rule is upstream's (pkg/registry, pkg/apis/core/v1/defaults).
Called by `rest.py` and `deletion.py`; custom resources have the plain `Strategy`.
"""

from __future__ import annotations

import base64
import ipaddress
from collections.abc import Callable
from typing import Any

from services.lab.apiserver.errors import Cause, Object
from services.lab.apiserver.store import Store


class Strategy:
    """The rules of one kind; this one adds nothing to the common rules."""

    generation = False
    """Whether changes outside of metadata and status bump `metadata.generation`."""

    def on_create(self, obj: Object) -> None:
        """Fill in defaults and reset what a creator may not set."""

    def on_update(self, new: Object, old: Object) -> None:
        """Carry over what an update may not change in silence."""

    def causes(self, new: Object, old: Object | None) -> list[Cause]:
        """Field errors for a 422."""
        return []

    def grace_seconds(self, obj: Object, asked: int | None) -> int:
        """How long the object stays, marked as deleted, after a deletion; 0 removes it at once."""
        return 0

    def held(self, obj: Object) -> bool:
        """Whether finalizers keep a deleted object from going."""
        return bool(obj["metadata"].get("finalizers"))


class CustomResources(Strategy):
    generation = True


def _required(path: str) -> Cause:
    return Cause("FieldValueRequired", "Required value", path)


class Namespaces(Strategy):
    def on_create(self, obj: Object) -> None:
        obj["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = obj["metadata"]["name"]
        obj["spec"] = {"finalizers": ["kubernetes"]}
        obj["status"] = {"phase": "Active"}

    def on_update(self, new: Object, old: Object) -> None:
        new["spec"] = old.get("spec", {})
        new["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = new["metadata"]["name"]

    def held(self, obj: Object) -> bool:
        return super().held(obj) or bool((obj.get("spec") or {}).get("finalizers"))


_POD_CHANGEABLE = ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates")
_POD_RULE = (
    "Forbidden: pod updates may not change fields other than `spec.containers[*].image`,"
    "`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing"
    " tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)"
)


class Pods(Strategy):
    generation = True

    def on_create(self, obj: Object) -> None:
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

    def causes(self, new: Object, old: Object | None) -> list[Cause]:
        spec = new.get("spec") or {}
        if old is not None:
            same = _fixed_part(spec) == _fixed_part(old.get("spec") or {})
            return [] if same else [Cause("FieldValueForbidden", _POD_RULE, "spec")]
        found = []
        containers = spec.get("containers") or []
        if not containers:
            found.append(_required("spec.containers"))
        for index, container in enumerate(containers):
            found += [
                _required(f"spec.containers[{index}].{name}") for name in ("name", "image") if not container.get(name)
            ]
        return found

    def grace_seconds(self, obj: Object, asked: int | None) -> int:
        spec, status = obj.get("spec") or {}, obj.get("status") or {}
        if not spec.get("nodeName") or status.get("phase") in ("Succeeded", "Failed"):
            return 0
        wanted = asked if asked is not None else spec.get("terminationGracePeriodSeconds", 30)
        # a pod that asks for no grace still gets the shortest one: only its kubelet may say 0
        return int(wanted) if wanted or asked == 0 else 1


def _default_container(container: Object) -> None:
    container.setdefault("resources", {})
    container.setdefault("terminationMessagePath", "/dev/termination-log")
    container.setdefault("terminationMessagePolicy", "File")
    image = container.get("image") or ""
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
    """A pod spec without the fields that may change after creation."""
    fixed = {name: value for name, value in spec.items() if name not in _POD_CHANGEABLE}
    for kind in ("containers", "initContainers"):
        if kind in fixed:
            fixed[kind] = [
                {name: value for name, value in container.items() if name != "image"} for container in fixed[kind]
            ]
    return fixed


class Services(Strategy):
    """Services get an address of 10.96.0.0/16; nothing routes it, Endpoints are what counts in the lab."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def on_create(self, obj: Object) -> None:
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
        spec, before = new.setdefault("spec", {}), old.get("spec") or {}
        for name in ("clusterIP", "clusterIPs", "type", "sessionAffinity", "ipFamilies", "ipFamilyPolicy"):
            if name in before:
                spec.setdefault(name, before[name])

    def causes(self, new: Object, old: Object | None) -> list[Cause]:
        spec = new.get("spec") or {}
        found = []
        if spec.get("type") != "ExternalName" and spec.get("clusterIP") != "None" and not spec.get("ports"):
            found.append(_required("spec.ports"))
        before = ((old or {}).get("spec") or {}).get("clusterIP")
        if before and spec.get("clusterIP") != before:
            message = f'Invalid value: "{spec.get("clusterIP")}": field is immutable'
            found.append(Cause("FieldValueInvalid", message, "spec.clusterIPs[0]"))
        return found


class Secrets(Strategy):
    def on_create(self, obj: Object) -> None:
        obj.setdefault("type", "Opaque")
        self.on_update(obj, obj)

    def on_update(self, new: Object, old: Object) -> None:
        plain: dict[str, str] | None = new.pop("stringData", None)
        if plain:
            data = new.setdefault("data", {})
            for name, value in plain.items():
                data[name] = base64.b64encode(value.encode()).decode()

    def causes(self, new: Object, old: Object | None) -> list[Cause]:
        return _immutable_causes(new, old)


class ConfigMaps(Strategy):
    def causes(self, new: Object, old: Object | None) -> list[Cause]:
        return _immutable_causes(new, old)


def _immutable_causes(new: Object, old: Object | None) -> list[Cause]:
    if old is None or not old.get("immutable"):
        return []
    message = "Forbidden: field is immutable when `immutable` is set"
    return [
        Cause("FieldValueForbidden", message, name)
        for name in ("data", "binaryData", "immutable")
        if new.get(name) != old.get(name)
    ]


class Events(Strategy):
    def causes(self, new: Object, old: Object | None) -> list[Cause]:
        involved = (new.get("involvedObject") or {}).get("namespace", "")
        namespace = new["metadata"].get("namespace", "")
        if involved != namespace and not (involved == "" and namespace == "default"):
            message = f'Invalid value: "{involved}": does not match event.namespace'
            return [Cause("FieldValueInvalid", message, "involvedObject.namespace")]
        return []


class CustomResourceDefinitions(Strategy):
    """The checks of `crd.py`, given in as functions to keep this module free of schemas."""

    generation = True

    def __init__(self, complete: Callable[[Object], None], check: Callable[[Object, Any], list[Cause]]) -> None:
        self._complete = complete
        self._check = check

    def on_create(self, obj: Object) -> None:
        obj["status"] = {"conditions": [], "acceptedNames": {"plural": "", "kind": ""}, "storedVersions": []}
        self._complete(obj)

    def on_update(self, new: Object, old: Object) -> None:
        self._complete(new)

    def causes(self, new: Object, old: Object | None) -> list[Cause]:
        return self._check(new, old)
