"""Subresources other than `/status`: pod binding, and errors for all others.

Log, exec, attach and port-forward would need a kubelet's server, which the lab does not have.
"""

from __future__ import annotations

from typing import Any

from lab.apiserver.errors import Object, bad_request, conflict, method_not_allowed, not_implemented
from lab.apiserver.registry.metadata import now
from lab.apiserver.rest.verbs import Rest, RestCall

_CREATED: Object = {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201}


def serve(rest: Rest, call: RestCall, method: str, body: Any) -> Object:
    """Handle one subresource request and return the response's object.

    :raises ApiError: the request is rejected.
    """
    name = call.target.subresource
    if name == "binding":
        return _bind(rest, call, method, body)
    rest.find(call)
    raise not_implemented(f"the lab's API server does not serve {call.resource.plural}/{name}")


def _bind(rest: Rest, call: RestCall, method: str, body: Any) -> Object:
    if method != "POST":
        raise method_not_allowed()
    node = (body.get("target") or {}).get("name") if isinstance(body, dict) else None
    if not node:
        raise bad_request("target.name: Required value")
    stored = rest.find(call)
    before = (stored.obj.get("spec") or {}).get("nodeName")
    if before:
        reason = f"pod {call.target.name} is already assigned to node {before!r}".replace("'", '"')
        raise conflict("", "pods/binding", call.target.name, reason)
    pod = stored.copy(call.resource)
    pod["spec"]["nodeName"] = node
    conditions = pod.setdefault("status", {}).setdefault("conditions", [])
    # Upstream's binding sets this condition in the same write.
    conditions.append({"type": "PodScheduled", "status": "True", "lastTransitionTime": now()})
    if not call.options.dry_run:
        rest.store.put(call.resource.storage_key, pod)
    return _CREATED
