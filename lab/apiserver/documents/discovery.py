"""Discovery: the groups, versions and resources that are served, in the legacy and the aggregated form.

kubectl requests the aggregated form (apidiscovery.k8s.io) and gets everything in two requests; older clients request
`/api`, `/apis` and each group version. Each group version of an aggregated server is an `AggregatedGroupVersion` with
the resources that the server last listed (`aggregation/api_services.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

from lab.apiserver.errors import Object
from lab.apiserver.registry.resources import Registry, ServedResource


@dataclass(frozen=True, slots=True)
class AggregatedGroupVersion:
    """One group version of an aggregated server, with the resources that it last listed."""

    group: str
    version: str
    priority: int
    available: bool
    resources: tuple[Object, ...] = ()


def group_versions(registry: Registry, remotes: list[AggregatedGroupVersion]) -> dict[str, list[str]]:
    """Return the versions per group, most preferred first; the core group is left out."""
    # The core group has a discovery document of its own, `/api`.
    groups = {group: _by_preference(versions) for group, versions in registry.groups().items() if group}
    for remote in sorted(remotes, key=lambda remote: -remote.priority):
        versions = groups.setdefault(remote.group, [])
        if remote.version not in versions:
            versions.append(remote.version)
    return groups


def _by_preference(versions: list[str]) -> list[str]:
    """Sort versions as Kubernetes does: GA before beta before alpha, higher numbers first."""

    def rank(version: str) -> tuple[int, int]:
        stable = 0 if "alpha" in version else 1 if "beta" in version else 2
        digits = "".join(c for c in version.split("alpha")[0].split("beta")[0] if c.isdigit())
        return -stable, -int(digits or 0)

    return sorted(versions, key=rank)


def api_versions(address: str) -> Object:
    """Return the `APIVersions` document of `/api`."""
    return {
        "kind": "APIVersions",
        "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": address}],
    }


def group_list(registry: Registry, remotes: list[AggregatedGroupVersion]) -> Object:
    """Return the `APIGroupList` document of `/apis`."""
    groups = [_group(name, versions) for name, versions in group_versions(registry, remotes).items()]
    return {"kind": "APIGroupList", "apiVersion": "v1", "groups": groups}


def _group(name: str, versions: list[str]) -> Object:
    document = [{"groupVersion": f"{name}/{version}", "version": version} for version in versions]
    return {"name": name, "versions": document, "preferredVersion": document[0]}


def one_group(registry: Registry, remotes: list[AggregatedGroupVersion], name: str) -> Object | None:
    """Return the `APIGroup` document of a group, or None when it does not exist."""
    versions = group_versions(registry, remotes).get(name)
    return None if versions is None else {"kind": "APIGroup", "apiVersion": "v1", **_group(name, versions)}


def resource_list(registry: Registry, group: str, version: str) -> Object | None:
    """Return the resources of a group version that this server serves itself, or None when there are none."""
    found = registry.of(group, version)
    if not found:
        return None
    group_version = f"{group}/{version}" if group else version
    resources: list[Object] = []
    for resource in found:
        resources.append(_api_resource(resource))
        resources += [_subresource(resource, name) for name in _subresources(resource)]
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources}


def _subresources(resource: ServedResource) -> list[str]:
    return [*resource.subresources, *(["status"] if resource.status else [])]


def _api_resource(resource: ServedResource) -> Object:
    document: Object = {
        "name": resource.plural,
        "singularName": resource.singular,
        "namespaced": resource.namespaced,
        "kind": resource.kind,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        document["shortNames"] = list(resource.short_names)
    if resource.categories:
        document["categories"] = list(resource.categories)
    return document


_SUBRESOURCE_KINDS = {
    "binding": ("Binding", ["create"]),
    "log": ("Pod", ["get"]),
}


def _subresource(resource: ServedResource, name: str) -> Object:
    kind, verbs = _SUBRESOURCE_KINDS.get(name, (resource.kind, ["get", "patch", "update"]))
    return {
        "name": f"{resource.plural}/{name}",
        "singularName": "",
        "namespaced": resource.namespaced,
        "kind": kind,
        "verbs": verbs,
    }


# -- the aggregated form


def aggregated(registry: Registry, remotes: list[AggregatedGroupVersion], form_version: str, *, core: bool) -> Object:
    """Return the `APIGroupDiscoveryList` of the core group (`/api`) or of all others (`/apis`)."""
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


def _discovered_group(
    registry: Registry, remotes: list[AggregatedGroupVersion], name: str, versions: list[str]
) -> Object:
    document: list[Object] = []
    for version in versions:
        remote = next((r for r in remotes if (r.group, r.version) == (name, version)), None)
        if remote is None:
            resources = [_discovered(resource) for resource in registry.of(name, version)]
            document.append({"version": version, "resources": resources, "freshness": "Current"})
        else:
            # Clients keep the last list of an unavailable server, but see that it may be outdated.
            freshness = "Current" if remote.available else "Stale"
            resources = _discovered_remote(remote)
            document.append({"version": version, "resources": resources, "freshness": freshness})
    metadata = {"name": name} if name else {}
    # Upstream's encoder writes a null creationTimestamp.
    return {"metadata": {**metadata, "creationTimestamp": None}, "versions": document}


def _discovered(resource: ServedResource) -> Object:
    document: Object = {
        "resource": resource.plural,
        "responseKind": _gvk(resource.group, resource.version, resource.kind),
        "scope": "Namespaced" if resource.namespaced else "Cluster",
        "singularResource": resource.singular,
        "verbs": list(resource.verbs),
    }
    if resource.short_names:
        document["shortNames"] = list(resource.short_names)
    if resource.categories:
        document["categories"] = list(resource.categories)
    subresources = []
    for name in _subresources(resource):
        kind, verbs = _SUBRESOURCE_KINDS.get(name, (resource.kind, ["get", "patch", "update"]))
        response_kind = _gvk(resource.group, resource.version, kind)
        subresources.append({"subresource": name, "responseKind": response_kind, "verbs": verbs})
    if subresources:
        document["subresources"] = subresources
    return document


def _discovered_remote(remote: AggregatedGroupVersion) -> list[Object]:
    """Convert another server's legacy resource list to the aggregated form."""
    found: dict[str, Object] = {}
    for document in remote.resources:
        name, _, subresource = document["name"].partition("/")
        scope = "Namespaced" if document.get("namespaced") else "Cluster"
        gvk = _gvk(
            document.get("group") or remote.group, document.get("version") or remote.version, document.get("kind", "")
        )
        entry = found.setdefault(
            name,
            {"resource": name, "responseKind": gvk, "scope": scope, "singularResource": "", "verbs": []},
        )
        if subresource:
            entry.setdefault("subresources", []).append(
                {"subresource": subresource, "responseKind": gvk, "verbs": document.get("verbs") or []}
            )
        else:
            entry.update(
                responseKind=gvk,
                scope=scope,
                singularResource=document.get("singularName", ""),
                verbs=document.get("verbs") or [],
            )
    return list(found.values())


def _gvk(group: str, version: str, kind: str) -> Object:
    return {"group": group, "version": version, "kind": kind}
