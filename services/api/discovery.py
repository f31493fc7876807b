"""The discovery documents of the aggregated API: what kubectl and the aggregation layer ask first.

Source: Kubernetes ``meta/v1`` APIGroup and APIResourceList. A resource list must be served, or kubectl's short names
break for the whole cluster.
"""

import importlib.metadata
import platform
from typing import Any

from schemas.hotplug_status import LIST_KIND

HOTNIC_GROUP = "subresources.hotnic.io"
KUBEVIRT_GROUP = "subresources.kubevirt.io"
GROUPS: dict[str, tuple[str, ...]] = {HOTNIC_GROUP: ("v1",), KUBEVIRT_GROUP: ("v1", "v1alpha3")}
"""The served versions of each group, the preferred one first."""

RESOURCES: dict[str, str] = {
    f"{resource}/{verb}": kind
    for resource in ("virtualmachines", "virtualmachineinstances")
    for verb, kind in (("addinterface", "AddInterfaceOptions"), ("removeinterface", "RemoveInterfaceOptions"))
}
"""The subresources that change something, and the kind of their bodies."""

LADDER = "virtualmachineinstances/interfaces"
"""The one that is read; of :data:`HOTNIC_GROUP` alone, for KubeVirt has none."""


SPOKEN = "1.0.0-rc.0"
"""The version of KubeVirt whose requests are served. virtctl compares it with its own when a request was refused."""


def paths() -> list[str]:
    """Every document's path; all may be read without a user."""
    found = ["/", "/apis"]
    for group, versions in GROUPS.items():
        found.append(f"/apis/{group}")
        for version in versions:
            found += [f"/apis/{group}/{version}", f"/apis/{group}/{version}/version"]
    return found


def document(path: str) -> dict[str, Any] | None:
    """The document at a path; ``None`` where there is none."""
    parts = path.strip("/").split("/") if path != "/" else []
    match parts:
        case []:
            return {"paths": [*paths(), "/healthz", "/livez", "/openapi/v2", "/readyz"]}
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
                    *(_resource(name, kind, "update") for name, kind in RESOURCES.items()),
                    *([_resource(LADDER, LIST_KIND, "get")] if group == HOTNIC_GROUP else []),
                ],
            }
        case ["apis", group, version, "version"] if version in GROUPS.get(group, ()):
            return _version(group)
        case ["openapi", "v2"]:
            return {"swagger": "2.0", "info": {"title": "hotnic", "version": "v1"}, "paths": {}}
    return None


def _group(group: str) -> dict[str, Any]:
    versions = [{"groupVersion": f"{group}/{version}", "version": version} for version in GROUPS[group]]
    return {"name": group, "versions": versions, "preferredVersion": versions[0]}


def _resource(name: str, kind: str, verb: str) -> dict[str, Any]:
    return {"name": name, "singularName": "", "namespaced": True, "kind": kind, "verbs": [verb]}


def _version(group: str) -> dict[str, str]:
    own = importlib.metadata.version("hotnic")
    return {
        "gitVersion": f"v{own}" if group == HOTNIC_GROUP else f"v{SPOKEN}+hotnic.{own}",
        "gitCommit": "",
        "gitTreeState": "",
        "buildDate": "",
        "goVersion": f"python{platform.python_version()}",
        "compiler": platform.python_implementation(),
        "platform": f"linux/{platform.machine()}",
    }
