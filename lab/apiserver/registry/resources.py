"""The served resources: the table of built-in ones, and the registry to which CRDs add theirs.

A `ServedResource` is one plural of one group in one served version. Objects of all versions of a plural share one
storage key (`group/plural`); only the `apiVersion` in the response differs. `rest/verbs.py` handles requests;
`documents/discovery.py` renders discovery.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lab.apiserver.registry.schema import Schema

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, slots=True)
class CrdColumn:
    """A printer column of a CRD (`additionalPrinterColumns`)."""

    name: str
    type: str
    path: str
    description: str = ""
    priority: int = 0
    format: str = ""


@dataclass(frozen=True, slots=True)
class ServedResource:
    """One served resource type.

    :ivar status: whether `/status` is a subresource.
    :ivar crd: whether `schema` prunes unknown fields, and updates must carry a resourceVersion.
    :ivar subresources: further subresources.
    """

    group: str
    version: str
    plural: str
    singular: str
    kind: str
    namespaced: bool
    short_names: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ALL_VERBS
    status: bool = False
    subresources: tuple[str, ...] = ()
    crd: bool = False
    list_kind: str = ""
    schema: Schema | None = None
    columns: tuple[CrdColumn, ...] = ()
    selectable: tuple[str, ...] = ()

    @property
    def group_version(self) -> str:
        """Return the apiVersion of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def storage_key(self) -> str:
        """Return the key under which the store keeps its objects, in all versions."""
        return f"{self.group}/{self.plural}"

    @property
    def qualified(self) -> str:
        """Return the name that messages use, such as `virtualmachines.kubevirt.io` or `pods`."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def list_name(self) -> str:
        """Return the kind of its lists."""
        return self.list_kind or f"{self.kind}List"

    @property
    def type_meta(self) -> bytes:
        """Return the start of an object's JSON, up to its own fields."""
        # Stored bytes lack both fields, so one encoding serves all versions of a resource.
        return b'{"apiVersion":"%s","kind":"%s",' % (self.group_version.encode(), self.kind.encode())


def _builtin(
    group: str,
    version: str,
    plural: str,
    kind: str,
    *,
    namespaced: bool = True,
    short: tuple[str, ...] = (),
    categories: tuple[str, ...] = (),
    status: bool = False,
    subresources: tuple[str, ...] = (),
    verbs: tuple[str, ...] = ALL_VERBS,
    singular: str = "",
) -> ServedResource:
    return ServedResource(
        group=group,
        version=version,
        plural=plural,
        singular=singular or kind.lower(),
        kind=kind,
        namespaced=namespaced,
        short_names=short,
        categories=categories,
        status=status,
        subresources=subresources,
        verbs=verbs,
    )


_CREATE = ("create",)
_ALL = ("all",)

BUILTIN: tuple[ServedResource, ...] = (
    _builtin("", "v1", "configmaps", "ConfigMap", short=("cm",)),
    _builtin("", "v1", "endpoints", "Endpoints", short=("ep",), singular="endpoints"),
    _builtin("", "v1", "events", "Event", short=("ev",)),
    _builtin(
        "",
        "v1",
        "namespaces",
        "Namespace",
        namespaced=False,
        short=("ns",),
        status=True,
        verbs=("create", "delete", "get", "list", "patch", "update", "watch"),
    ),
    _builtin("", "v1", "nodes", "Node", namespaced=False, short=("no",), status=True),
    _builtin(
        "",
        "v1",
        "pods",
        "Pod",
        short=("po",),
        categories=_ALL,
        status=True,
        subresources=("binding", "log", "exec", "attach", "portforward"),
    ),
    _builtin("", "v1", "secrets", "Secret"),
    _builtin("", "v1", "serviceaccounts", "ServiceAccount", short=("sa",)),
    _builtin("", "v1", "services", "Service", short=("svc",), categories=_ALL, status=True),
    _builtin("coordination.k8s.io", "v1", "leases", "Lease"),
    _builtin(
        "apiextensions.k8s.io",
        "v1",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        namespaced=False,
        short=("crd", "crds"),
        categories=("api-extensions",),
        status=True,
    ),
    _builtin(
        "apiregistration.k8s.io",
        "v1",
        "apiservices",
        "APIService",
        namespaced=False,
        categories=("api-extensions",),
        status=True,
    ),
    _builtin(
        "authorization.k8s.io", "v1", "subjectaccessreviews", "SubjectAccessReview", namespaced=False, verbs=_CREATE
    ),
    _builtin(
        "authorization.k8s.io",
        "v1",
        "selfsubjectaccessreviews",
        "SelfSubjectAccessReview",
        namespaced=False,
        verbs=_CREATE,
    ),
    _builtin("authentication.k8s.io", "v1", "tokenreviews", "TokenReview", namespaced=False, verbs=_CREATE),
    _builtin("authentication.k8s.io", "v1", "selfsubjectreviews", "SelfSubjectReview", namespaced=False, verbs=_CREATE),
)

CRD_KEY = "apiextensions.k8s.io/customresourcedefinitions"
APISERVICE_KEY = "apiregistration.k8s.io/apiservices"


@dataclass(slots=True)
class Registry:
    """All served resources by group, version and plural; every change increments `epoch` for caches of documents."""

    epoch: int = 0
    _served: dict[tuple[str, str, str], ServedResource] = field(default_factory=dict)
    _storage: dict[str, ServedResource] = field(default_factory=dict)

    @classmethod
    def with_builtin(cls) -> Registry:
        """Return a registry of the built-in resources."""
        registry = cls()
        for resource in BUILTIN:
            registry.add(resource, storage=True)
        return registry

    def add(self, resource: ServedResource, *, storage: bool, served: bool = True) -> None:
        """Add a resource, as the storage version, a served version, or both."""
        if served:
            self._served[(resource.group, resource.version, resource.plural)] = resource
        if storage:
            self._storage[resource.storage_key] = resource
        self.epoch += 1

    def drop(self, group: str, plural: str) -> None:
        """Remove every version of a plural, because its CRD was deleted or changed."""
        for key in [key for key in self._served if key[0] == group and key[2] == plural]:
            del self._served[key]
        self._storage.pop(f"{group}/{plural}", None)
        self.epoch += 1

    def find(self, group: str, version: str, plural: str) -> ServedResource | None:
        """Return a served resource, or None."""
        return self._served.get((group, version, plural))

    def storage(self, storage_key: str) -> ServedResource | None:
        """Return the storage version of a plural, or None."""
        return self._storage.get(storage_key)

    def stored(self) -> list[ServedResource]:
        """Return the storage versions of all plurals."""
        return list(self._storage.values())

    def by_kind(self, group: str, kind: str) -> ServedResource | None:
        """Return the storage version of a kind, or None."""
        for resource in self._storage.values():
            if resource.kind == kind and resource.group == group:
                return resource
        return None

    def groups(self) -> dict[str, list[str]]:
        """Return the served versions per group, in the order in which they were added; the core group is ""."""
        found: dict[str, list[str]] = {}
        for group, version, _ in self._served:
            versions = found.setdefault(group, [])
            if version not in versions:
                versions.append(version)
        return found

    def of(self, group: str, version: str) -> list[ServedResource]:
        """Return the resources of a group version."""
        return [res for key, res in self._served.items() if key[0] == group and key[1] == version]
