"""The discovery documents of the aggregated API, which kubectl and the aggregation layer request first.

Source: Kubernetes ``meta/v1`` APIGroup and APIResourceList. Every group must serve its resource list; without one
kubectl's short names break for the whole cluster. Next: :mod:`services.api.front_proxy`.
"""

import importlib.metadata
import platform
from typing import Any

from schemas.bus.hotplug_status import LIST_KIND

HOTNIC_GROUP = "subresources.hotnic.io"
KUBEVIRT_GROUP = "subresources.kubevirt.io"
GROUPS: dict[str, tuple[str, ...]] = {HOTNIC_GROUP: ("v1",), KUBEVIRT_GROUP: ("v1", "v1alpha3")}
"""The served versions of each group, the preferred one first."""

API_SERVICES = tuple(f"{version}.{group}" for group, versions in GROUPS.items() for version in versions)
"""The names of the APIServices that register them."""

CHANGE_RESOURCES: dict[str, str] = {
    f"{resource}/{verb}": kind
    for resource in ("virtualmachines", "virtualmachineinstances")
    for verb, kind in (("addinterface", "AddInterfaceOptions"), ("removeinterface", "RemoveInterfaceOptions"))
}
"""The subresources that change an object, and the kind of their bodies."""

STATUS_RESOURCE = "virtualmachineinstances/interfaces"
"""The subresource of the hot-plug status; in :data:`HOTNIC_GROUP` only, because KubeVirt has none."""

KUBEVIRT_VERSION = "1.0.0-rc.0"
"""The version of KubeVirt whose requests are served; virtctl compares it with its own after a refused request."""


def discovery_paths() -> list[str]:
    """Return the paths of all documents; they are served without authentication."""
    found = ["/", "/apis"]
    for group, versions in GROUPS.items():
        found.append(f"/apis/{group}")
        for version in versions:
            found += [f"/apis/{group}/{version}", f"/apis/{group}/{version}/version"]
    return found


def accepts_documents(accept: str) -> bool:
    """Return whether a client accepts the documents, which are plain JSON.

    The aggregation layer first asks for the list of all resources in one document (group ``apidiscovery.k8s.io``). A
    server that answers with another document leaves namespaces undeletable (kubernetes#119662). Without an answer it
    asks for each group's own list.

    :param accept: the ``Accept`` header; empty accepts everything.
    """
    return not accept.strip() or any(_is_plain_json(item) for item in accept.split(","))


def _is_plain_json(media_range: str) -> bool:
    kind, *parameters = (part.strip().lower() for part in media_range.split(";"))
    if kind not in ("*/*", "application/*", "application/json"):
        return False
    given = dict(parameter.partition("=")[::2] for parameter in parameters)
    # `as` requests a conversion, such as `as=APIGroupDiscoveryList;g=apidiscovery.k8s.io`.
    return "as" not in given and given.get("q") not in ("0", "0.0", "0.00", "0.000")


def discovery_document(path: str) -> dict[str, Any] | None:
    """Return the document at a path; ``None`` when there is none."""
    parts = path.strip("/").split("/") if path != "/" else []
    match parts:
        case []:
            return {"paths": [*discovery_paths(), "/healthz", "/livez", "/openapi/v2", "/readyz"]}
        case ["apis"]:
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(group) for group in GROUPS]}
        case ["apis", group] if group in GROUPS:
            return {"kind": "APIGroup", "apiVersion": "v1", **_group(group)}
        case ["apis", group, version] if version in GROUPS.get(group, ()):
            return {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": f"{group}/{version}",
                "resources": [
                    *(_resource(name, kind, "update") for name, kind in CHANGE_RESOURCES.items()),
                    *([_resource(STATUS_RESOURCE, LIST_KIND, "get")] if group == HOTNIC_GROUP else []),
                ],
            }
        case ["apis", group, version, "version"] if version in GROUPS.get(group, ()):
            return _version(group)
        case ["openapi", "v2"]:
            # The aggregation layer downloads this document from every server.
            return {"swagger": "2.0", "info": {"title": "hotnic", "version": "v1"}, "paths": {}}
    return None


def _group(group: str) -> dict[str, Any]:
    versions = [{"groupVersion": f"{group}/{version}", "version": version} for version in GROUPS[group]]
    # KubeVirt's own document has the misspelt name `subresource.kubevirt.io`.
    return {"name": group, "versions": versions, "preferredVersion": versions[0]}


def _resource(name: str, kind: str, verb: str) -> dict[str, Any]:
    return {"name": name, "singularName": "", "namespaced": True, "kind": kind, "verbs": [verb]}


def _version(group: str) -> dict[str, str]:
    own = importlib.metadata.version("hotnic")
    return {
        "gitVersion": f"v{own}" if group == HOTNIC_GROUP else f"v{KUBEVIRT_VERSION}+hotnic.{own}",
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "",
        "goVersion": f"python{platform.python_version()}",
        "compiler": platform.python_implementation(),
        "platform": f"linux/{platform.machine()}",
    }
