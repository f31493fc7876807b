"""Discovery: which groups, versions and resources there are, in the old and the aggregated form.

kubectl asks for the aggregated form (apidiscovery.k8s.io) and gets everything in two requests; older clients walk
`/api`, `/apis` and each group version. Groups of aggregated servers come in as `Remote`s, told by what those
servers answered last (`aggregation.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from services.lab.apiserver.errors import Object
from services.lab.apiserver.resources import Registry, Resource

_FIRST = ("apiregistration.k8s.io", "apiextensions.k8s.io")


@dataclass(frozen=True, slots=True)
class Remote:
    """One group version of an aggregated server, with the resources it told last."""

    group: str
    version: str
    priority: int
    available: bool
    resources: tuple[Object, ...] = ()


def group_versions(registry: Registry, remotes: list[Remote]) -> dict[str, list[str]]:
    """Versions per group, most preferred first; the core group left out."""
    groups = {group: _by_preference(versions) for group, versions in registry.groups().items() if group}
    for remote in sorted(remotes, key=lambda remote: -remote.priority):
        versions = groups.setdefault(remote.group, [])
        if remote.version not in versions:
            versions.append(remote.version)
    return groups


def _by_preference(versions: list[str]) -> list[str]:
    """GA before beta before alpha, higher numbers first."""

    def rank(version: str) -> tuple[int, int]:
        stable = 0 if "alpha" in version else 1 if "beta" in version else 2
        digits = "".join(c for c in version.split("alpha")[0].split("beta")[0] if c.isdigit())
        return -stable, -int(digits or 0)

    return sorted(versions, key=rank)


def api_versions(address: str) -> Object:
    return {
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    }


def group_list(registry: Registry, remotes: list[Remote]) -> Object:
    groups = [_group(name, versions) for name, versions in group_versions(registry, remotes).items()]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def _group(name: str, versions: list[str]) -> Object:
    told = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": told, "preferredVersion": told[0]}


def one_group(registry: Registry, remotes: list[Remote], name: str) -> Object | None:
    versions = group_versions(registry, remotes).get(name)
    return None if versions is None else {"kind": "APIGroup", "apiVersion": "v1", **_group(name, versions)}


def resource_list(registry: Registry, group: str, version: str) -> Object | None:
    """The resources of one group version that this server itself serves; None when there are none."""
    found = registry.of(group, version)
    if not found:
        return None
    group_version = f"{group}/{version}" if group else version
    resources: list[Object] = []
    for resource in found:
        resources.append(_api_resource(resource))
        resources += [_subresource(resource, name) for name in _subresources(resource)]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}


def _subresources(resource: Resource) -> list[str]:
    return [*resource.subresources, *(["status"] if resource.status else [])]


def _api_resource(resource: Resource) -> Object:
    told: Object = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        told["shortNames"] = list(resource.short_names)
    if resource.categories:
        told["categories"] = list(resource.categories)
    return told


_SUBRESOURCE_KINDS = {
    "binding": ("Binding", ["create"]),
    "log": ("Pod", ["get"]),
    "finalize": ("Namespace", ["update"]),
}


def _subresource(resource: Resource, name: str) -> Object:
    kind, verbs = _SUBRESOURCE_KINDS.get(name, (resource.kind, ["get", "patch", "update"]))
    return {
        "name": f"{resource.plural}/{name}",
        "singularName": "",
        "namespaced": resource.namespaced,
        "kind": kind,
        "verbs": verbs,
    }


# -- the aggregated form


def aggregated(registry: Registry, remotes: list[Remote], form_version: str, *, core: bool) -> Object:
    """`APIGroupDiscoveryList` of the core group (`/api`) or of all others (`/apis`)."""
    if core:
        items = [_discovered_group(registry, [], "", ["v1"])]
    else:
        items = [
            _discovered_group(registry, remotes, name, versions)
            for name, versions in group_versions(registry, remotes).items()
        ]
    return {
        "kind": "APIGroupDiscoveryList",
        "apiVersion": f"apidiscovery.k8s.io/{form_version}",
        "metadata": {},
        "items": items,
    }


def _discovered_group(registry: Registry, remotes: list[Remote], name: str, versions: list[str]) -> Object:
    told: list[Object] = []
    for version in versions:
        remote = next((r for r in remotes if (r.group, r.version) == (name, version)), None)
        if remote is None:
            resources = [_discovered(resource) for resource in registry.of(name, version)]
            told.append({"version": version, "resources": resources, "freshness": "Current"})
        else:
            freshness = "Current" if remote.available else "Stale"
            resources = _discovered_remote(remote)
            told.append({"version": version, "resources": resources, "freshness": freshness})
    metadata = {"name": name} if name else {}
    return {"metadata": {**metadata, "creationTimestamp": None}, "versions": told}


def _discovered(resource: Resource) -> Object:
    told: Object = {
        "resource": resource.plural,
        "responseKind": _gvk(resource.group, resource.version, resource.kind),
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        told["shortNames"] = list(resource.short_names)
    if resource.categories:
        told["categories"] = list(resource.categories)
    subresources = []
    for name in _subresources(resource):
        kind, verbs = _SUBRESOURCE_KINDS.get(name, (resource.kind, ["get", "patch", "update"]))
        kind_told = _gvk(resource.group, resource.version, kind)
        subresources.append({"subresource": name, "responseKind": kind_told, "verbs": verbs})
    if subresources:
        told["subresources"] = subresources
    return told


def _discovered_remote(remote: Remote) -> list[Object]:
    """An old-style resource list of another server in the aggregated form."""
    found: dict[str, Object] = {}
    for told in remote.resources:
        name, _, subresource = told["name"].partition("/")
        scope = "Namespaced" if told.get("namespaced") else "Cluster"
        gvk = _gvk(told.get("group") or remote.group, told.get("version") or remote.version, told.get("kind", ""))
        entry = found.setdefault(
            name,
            {"resource": name, "responseKind": gvk, "scope": scope, "singularResource": "", "verbs": []},
        )
        if subresource:
            entry.setdefault("subresources", []).append(
                {"subresource": subresource, "responseKind": gvk, "verbs": told.get("verbs") or []}
            )
        else:
            entry.update(
                responseKind=gvk,
                scope=scope,
                singularResource=told.get("singularName", ""),
                verbs=told.get("verbs") or [],
            )
    return list(found.values())


def _gvk(group: str, version: str, kind: str) -> Object:
    return {"group": group, "version": version, "kind": kind}
