"""Subresources other than `/status`: pod binding and eviction, namespace finalize, and clear refusals for the rest.

Log, exec, attach and port-forward need a kubelet behind the server; the lab has none to ask.
"""

from __future__ import annotations

from typing import Any

from services.lab.apiserver.deletion import Deletion, delete
from services.lab.apiserver.errors import Object, bad_request, conflict, method_not_allowed, not_implemented
from services.lab.apiserver.metadata import now
from services.lab.apiserver.request import Target
from services.lab.apiserver.rest import Call, Rest

_CREATED: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def serve(rest: Rest, call: Call, method: str, body: Any) -> Object:
    """Carry out one subresource request and return what to answer. Raises `ApiError`."""
    name = call.target.subresource
    if name == "binding":
        return _bind(rest, call, method, body)
    if name == "eviction":
        return _evict(rest, call, method)
    if name == "finalize":
        return _finalize(rest, call, method, body)
    rest.find(call)
    raise not_implemented(f"the lab's API server does not serve {call.resource.plural}/{name}")


def _bind(rest: Rest, call: Call, method: str, body: Any) -> Object:
    if method != "POST":
        raise method_not_allowed()
    node = (body.get("target") or {}).get("name") if isinstance(body, dict) else None
    if not node:
        raise bad_request("target.name: Required value")
    stored = rest.find(call)
    before = (stored.obj.get("spec") or {}).get("nodeName")
    if before:
        why = f"pod {call.target.name} is already assigned to node {before!r}".replace("'", '"')
        raise conflict("", "pods/binding", call.target.name, why)
    pod = stored.copy(call.resource)
    pod["spec"]["nodeName"] = node
    conditions = pod.setdefault("status", {}).setdefault("conditions", [])
    conditions.append({"type": "PodScheduled", "status": "True", "lastTransitionTime": now()})
    if not call.options.dry_run:
        rest.store.put(call.resource.storage_key, pod)
    return _CREATED


def _evict(rest: Rest, call: Call, method: str) -> Object:
    if method != "POST":
        raise method_not_allowed()
    target = call.target
    plain = Target(target.group, target.version, target.plural, target.namespace, target.name)
    delete(rest, Call(call.resource, plain, call.options), Deletion())
    return _CREATED


def _finalize(rest: Rest, call: Call, method: str, body: Any) -> Object:
    """PUT of a namespace whose `spec.finalizers` shrink; the last one lets a deleted namespace go."""
    if method != "PUT" or not isinstance(body, dict):
        raise method_not_allowed()
    stored = rest.find(call)
    namespace = stored.copy(call.resource)
    namespace["spec"] = body.get("spec") or {}
    if rest.may_go(call.resource, namespace):
        return rest.store.remove(call.resource.storage_key, stored).copy(call.resource)
    return rest.store.put(call.resource.storage_key, namespace).copy(call.resource)
