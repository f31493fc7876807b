"""The cached reader uses the cache only if it has the expected version."""

from dataclasses import dataclass, field

import pytest

from schemas.bus.events import ChangedObject
from schemas.kubernetes.objects import PODS, ObjectMeta, Pod, Resource
from services.common.kube.cache.cached_reader import MAX_EXPECTED, CachedReader
from services.common.kube.errors import NotFound


def at(version: str, uid: str = "u") -> Pod:
    return Pod(metadata=ObjectMeta(name="p", namespace="n", uid=uid, resource_version=version))


@dataclass
class Cluster:
    """The live object, its cached copy, and the live reads."""

    live: Pod | None = None
    cached: Pod | None = None
    reads: list[str] = field(default_factory=list)

    async def get(self, _resource: Resource[Pod], _namespace: str, name: str) -> Pod:
        """Read the live object."""
        self.reads.append(name)
        if self.live is None:
            raise NotFound("gone", status=404)
        return self.live


@dataclass
class Cache:
    """The reflector's store."""

    cluster: Cluster

    def get(self, _namespace: str, _name: str) -> Pod | None:
        """Return the object as last seen."""
        return self.cluster.cached


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def reader(cluster: Cluster) -> CachedReader[Pod]:
    return CachedReader(cluster, PODS, Cache(cluster))  # type: ignore[arg-type]


async def test_read_uses_the_cache_without_an_expected_version(cluster: Cluster, reader: CachedReader[Pod]) -> None:
    cluster.cached, cluster.live = at("1"), at("2")
    assert await reader.read("n", "p") == at("1")
    assert cluster.reads == []


async def test_read_uses_the_cache_if_it_has_the_expected_version(cluster: Cluster, reader: CachedReader[Pod]) -> None:
    cluster.cached = at("2")
    reader.expect("n", "p", ChangedObject("Pod", "u", "2"))
    assert await reader.read("n", "p") == at("2")
    assert cluster.reads == []


async def test_read_is_live_until_the_cache_has_caught_up(cluster: Cluster, reader: CachedReader[Pod]) -> None:
    cluster.cached, cluster.live = at("1"), at("3")
    reader.record_written(at("3"))
    assert await reader.read("n", "p") == at("3")
    cluster.cached = at("2")
    assert await reader.read("n", "p") == at("3")
    cluster.cached = at("3")
    assert await reader.read("n", "p") == at("3")
    assert len(cluster.reads) == 2


async def test_a_cache_that_is_ahead_costs_one_live_read(cluster: Cluster, reader: CachedReader[Pod]) -> None:
    cluster.cached = cluster.live = at("9")
    reader.expect("n", "p", ChangedObject("Pod", "u", "3"))
    assert await reader.read("n", "p") == at("9")
    assert await reader.read("n", "p") == at("9")
    assert len(cluster.reads) == 1


async def test_a_version_that_the_cache_has_passed_is_not_expected_any_more(
    cluster: Cluster, reader: CachedReader[Pod]
) -> None:
    reader.record_written(at("3"))
    for version in ("2", "3", "4"):
        cluster.cached = at(version)
        reader.record_cached(cluster.cached)
    assert await reader.read("n", "p") == at("4")
    assert cluster.reads == []


async def test_a_deleted_object_ends_the_expectation(cluster: Cluster, reader: CachedReader[Pod]) -> None:
    reader.expect("n", "p", ChangedObject("Pod", "u", "3"))
    assert await reader.read("n", "p") is None
    assert await reader.read("n", "p") is None
    assert len(cluster.reads) == 1


async def test_an_expected_version_of_another_kind_is_ignored(cluster: Cluster, reader: CachedReader[Pod]) -> None:
    reader.expect("n", "p", ChangedObject("VirtualMachineInstance", "u", "3"))
    reader.expect("n", "p", None)
    assert await reader.read("n", "p") is None
    assert cluster.reads == []


async def test_a_bounded_number_of_versions_is_expected(cluster: Cluster, reader: CachedReader[Pod]) -> None:
    """Anybody who can publish may name objects that do not exist."""
    reader.expect("n", "p", ChangedObject("Pod", "u", "3"))
    for number in range(MAX_EXPECTED):
        reader.expect("n", f"forged{number}", ChangedObject("Pod", "u", "3"))
    assert len(reader._expected) == MAX_EXPECTED
    cluster.cached = at("2")
    assert await reader.read("n", "p") == at("2")
    assert cluster.reads == []
