"""The discovery documents of the aggregated API, which kubectl and the aggregation layer request first.

Source: Kubernetes ``meta/v1`` APIGroup and APIResourceList, and ``apidiscovery.k8s.io`` APIGroupDiscoveryList, which
has all groups in one document. Every group must serve its resource list; without one kubectl's short names break for
the whole cluster. Next: :mod:`services.api.openapi`, which describes what discovery lists.
"""

import importlib.metadata
import platform
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

import msgspec

from schemas.bus.hotplug_status import LIST_KIND
from services.common.http.documents import JSON, ServedDocument

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

KIND_RESOURCES: dict[str, dict[str, str]] = {
    group: {
        "addinterfaceoptions": "AddInterfaceOptions",
        "removeinterfaceoptions": "RemoveInterfaceOptions",
        **({"hotplugstatuses": LIST_KIND} if group == HOTNIC_GROUP else {}),
    }
    for group in GROUPS
}
"""Resources without a verb, by group: ``kubectl explain`` finds a kind by its resource, and no subresource. Kubernetes'
controllers and ``kubectl api-resources`` pass over a resource without verbs."""

AGGREGATED_VERSIONS: Final = ("v2", "v2beta1")
"""The versions of ``apidiscovery.k8s.io``, whose documents differ in nothing else."""

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


def claimed_groups(api_services: Iterable[str], *, owned_by_hotnic: bool) -> tuple[str, ...]:
    """Return the groups that are this server's: its own always, KubeVirt's only where it is registered and free.

    kube-aggregator believes every server which groups it has. Beside a KubeVirt the claim would replace the OpenAPI
    documents of KubeVirt's own server.

    :param api_services: names of the APIServices that register this server.
    :param owned_by_hotnic: whether hotnic, not KubeVirt, owns the VMs.
    """
    registered = {name.partition(".")[2] for name in api_services}
    claimed = owned_by_hotnic and KUBEVIRT_GROUP in registered
    return (HOTNIC_GROUP, KUBEVIRT_GROUP) if claimed else (HOTNIC_GROUP,)


def negotiate(accept: str, *, aggregated: bool) -> str | None:
    """Return the form of a document that a client prefers: an aggregated version, or an empty string for plain JSON.

    The aggregation layer asks for all resources in one document, ``apidiscovery.k8s.io``, and takes any other document
    with HTTP code 200 for a failure; it did for an empty list, which left namespaces undeletable (kubernetes#119662).
    From 406 it goes on to each group's own list.

    :param accept: the ``Accept`` header; empty accepts everything.
    :param aggregated: whether the document has aggregated forms.
    :return: ``None`` if the client accepts no form.
    """
    if not accept.strip():
        return ""
    best: tuple[float, str] | None = None
    for media_range in accept.split(","):
        quality, form = _read_range(media_range)
        if form is None or quality <= 0 or (form and not aggregated):
            continue
        if best is None or quality > best[0]:
            best = quality, form
    return best[1] if best is not None else None


def _read_range(media_range: str) -> tuple[float, str | None]:
    """Return the quality and the form of one item of ``Accept``; the form is ``None`` if it is none of ours."""
    kind, *parameters = (part.strip() for part in media_range.split(";"))
    given = {key.strip().lower(): value.strip() for key, _, value in (item.partition("=") for item in parameters)}
    try:
        quality = float(given.get("q", "1"))
    except ValueError:
        quality = 0.0
    if kind.lower() not in ("*/*", "application/*", JSON):
        return quality, None
    if "as" not in given:
        return quality, ""
    # `as` requests a conversion: the aggregated document, or a Table, which no document here has.
    known = (given["as"], given.get("g")) == ("APIGroupDiscoveryList", "apidiscovery.k8s.io")
    return quality, given["v"] if known and given.get("v") in AGGREGATED_VERSIONS else None


@lru_cache(maxsize=8)
def aggregated_document(groups: tuple[str, ...], version: str) -> ServedDocument:
    """Return the document of all groups. It is built once.

    :param groups: the groups that are registered for this server.
    :param version: of ``apidiscovery.k8s.io``.
    """
    items = [
        {
            "metadata": {"name": group, "creationTimestamp": None},
            "versions": [
                {"version": name, "resources": _aggregated_resources(group, name), "freshness": "Current"}
                for name in GROUPS[group]
            ],
        }
        for group in groups
    ]
    document = {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": f"apidiscovery.k8s.io/{version}",
        "metadata": {},
        "items": items,
    }
    content_type = f"{JSON};g=apidiscovery.k8s.io;v={version};as=APIGroupDiscoveryList"
    return ServedDocument.of(msgspec.json.encode(document), content_type)


def _aggregated_resources(group: str, version: str) -> list[dict[str, Any]]:
    """Return the resources with their subresources, as kube-aggregator converts the plain list."""
    found: dict[str, dict[str, Any]] = {}
    for listed in _resources(group):
        name, _, subresource = listed["name"].partition("/")
        kind = {"group": group, "version": version, "kind": listed["kind"]}
        # A resource that has only subresources has an empty kind; without one old clients crash (kubernetes#118361).
        resource = found.setdefault(
            name,
            {
                "resource": name,
                "responseKind": {"group": "", "version": "", "kind": ""},
                "scope": "Namespaced",
                "singularResource": "",
                "verbs": [],
            },
        )
        if subresource:
            entry = {"subresource": subresource, "responseKind": kind, "verbs": listed["verbs"]}
            resource.setdefault("subresources", []).append(entry)
        else:
            resource |= {"responseKind": kind, "singularResource": listed["singularName"], "verbs": listed["verbs"]}
    return list(found.values())


def discovery_document(path: str, groups: tuple[str, ...] = tuple(GROUPS)) -> dict[str, Any] | None:
    """Return the document at a path; ``None`` when there is none.

    :param groups: the groups that are registered for this server.
    """
    parts = path.strip("/").split("/") if path != "/" else []
    match parts:
        case []:
            return {"paths": [*discovery_paths(), "/healthz", "/livez", "/openapi/v2", "/openapi/v3", "/readyz"]}
        case ["apis"]:
            return {"kind": "APIGroupList", "apiVersion": "v1", "groups": [_group(group) for group in groups]}
        case ["apis", group] if group in GROUPS:
            return {"kind": "APIGroup", "apiVersion": "v1", **_group(group)}
        case ["apis", group, version] if version in GROUPS.get(group, ()):
            return {
                "kind": "APIResourceList",
                "apiVersion": "v1",
                "groupVersion": f"{group}/{version}",
                "resources": _resources(group),
            }
        case ["apis", group, version, "version"] if version in GROUPS.get(group, ()):
            return _version(group)
    return None


def _group(group: str) -> dict[str, Any]:
    versions = [{"groupVersion": f"{group}/{version}", "version": version} for version in GROUPS[group]]
    # KubeVirt's own document has the misspelt name `subresource.kubevirt.io`.
    return {"name": group, "versions": versions, "preferredVersion": versions[0]}


def _resources(group: str) -> list[dict[str, Any]]:
    return [
        *(_resource(name, kind, "update") for name, kind in CHANGE_RESOURCES.items()),
        *([_resource(STATUS_RESOURCE, LIST_KIND, "get")] if group == HOTNIC_GROUP else []),
        *(_resource(name, kind, singular=kind.lower()) for name, kind in KIND_RESOURCES[group].items()),
    ]


def _resource(name: str, kind: str, *verbs: str, singular: str = "") -> dict[str, Any]:
    return {"name": name, "singularName": singular, "namespaced": True, "kind": kind, "verbs": list(verbs)}


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
