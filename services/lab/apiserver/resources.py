"""Which resources exist: the built-in table, and the registry that CRDs and APIServices add to.

A `Resource` is one plural of one group in one served version. Objects of all versions of a plural share one
storage key (`group/plural`); only the `apiVersion` written in front of them differs.
Decides nothing about requests (`rest.py`) and renders no discovery (`discovery.py`).
"""

from __future__ import annotations

from dataclasses import dataclass, field

from services.lab.apiserver.schema import Schema

ALL_VERBS = ("create", "delete", "deletecollection", "get", "list", "patch", "update", "watch")


@dataclass(frozen=True, slots=True)
class Column:
    """One printer column of a CRD (`additionalPrinterColumns`)."""

    name: str
    type: str
    path: str
    description: str = ""
    priority: int = 0
    format: str = ""


@dataclass(frozen=True, slots=True)
class Resource:
    """One served resource type.

    `status` says that `/status` is a subresource of its own; `crd` that unknown fields are pruned by `schema`
    and that updates must carry a resourceVersion; `subresources` lists the further ones that exist.
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
    columns: tuple[Column, ...] = ()
    selectable: tuple[str, ...] = ()

    @property
    def group_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def storage_key(self) -> str:
        return f"{self.group}/{self.plural}"

    @property
    def qualified(self) -> str:
        """`virtualmachines.kubevirt.io`, `pods`: the name messages use."""
        return f"{self.plural}.{self.group}" if self.group else self.plural

    @property
    def list_name(self) -> str:
        return self.list_kind or f"{self.kind}List"

    @property
    def type_meta(self) -> bytes:
        """The opening of an object's JSON, up to its own fields."""
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
) -> Resource:
    return Resource(
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

BUILTIN: tuple[Resource, ...] = (
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
        subresources=("finalize",),
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
        subresources=("binding", "eviction", "log", "exec", "attach", "portforward", "proxy"),
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
    _builtin("authorization.k8s.io", "v1", "localsubjectaccessreviews", "LocalSubjectAccessReview", verbs=_CREATE),
    _builtin(
        "authorization.k8s.io",
        "v1",
        "selfsubjectaccessreviews",
        "SelfSubjectAccessReview",
        namespaced=False,
        verbs=_CREATE,
    ),
    _builtin(
        "authorization.k8s.io",
        "v1",
        "selfsubjectrulesreviews",
        "SelfSubjectRulesReview",
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
    """All served resources by (group, version, plural); changes bump `epoch`, so rendered documents can be cached."""

    epoch: int = 0
    _served: dict[tuple[str, str, str], Resource] = field(default_factory=dict)
    _storage: dict[str, Resource] = field(default_factory=dict)

    @classmethod
    def with_builtin(cls) -> Registry:
        registry = cls()
        for resource in BUILTIN:
            registry.add(resource, storage=True)
        return registry

    def add(self, resource: Resource, *, storage: bool, served: bool = True) -> None:
        if served:
            self._served[(resource.group, resource.version, resource.plural)] = resource
        if storage:
            self._storage[resource.storage_key] = resource
        self.epoch += 1

    def drop(self, group: str, plural: str) -> None:
        """Forget every served version of a plural (its CRD is gone or changed)."""
        for key in [key for key in self._served if key[0] == group and key[2] == plural]:
            del self._served[key]
        self._storage.pop(f"{group}/{plural}", None)
        self.epoch += 1

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        return self._served.get((group, version, plural))

    def storage(self, storage_key: str) -> Resource | None:
        """The version in which a plural is stored."""
        return self._storage.get(storage_key)

    def stored(self) -> list[Resource]:
        return list(self._storage.values())

    def by_kind(self, group: str, kind: str) -> Resource | None:
        """The storage version of a kind, for owner references."""
        for resource in self._storage.values():
            if resource.kind == kind and resource.group == group:
                return resource
        return None

    def groups(self) -> dict[str, list[str]]:
        """Served versions per group, in the order they were added; the core group is ""."""
        found: dict[str, list[str]] = {}
        for group, version, _ in self._served:
            versions = found.setdefault(group, [])
            if version not in versions:
                versions.append(version)
        return found

    def of(self, group: str, version: str) -> list[Resource]:
        return [res for key, res in self._served.items() if key[0] == group and key[1] == version]
