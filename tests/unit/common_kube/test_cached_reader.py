"""The cache is used only where it is certain to be fresh enough."""

from dataclasses import dataclass, field

import pytest

from schemas.events import Changed
from schemas.kube import PODS, ObjectMeta, Pod, Resource
from services.common.kube.cached_reader import CachedReader
from services.common.kube.errors import NotFound


def at(version: str, uid: str = "u") -> Pod:
    return Pod(metadata=ObjectMeta(name="p", namespace="n", uid=uid, resource_version=version))


@dataclass
class Cluster:
    """The live object, the cache of it, and how often the live one was read."""

    live: Pod | None = None
    cached: Pod | None = None
    reads: list[str] = field(default_factory=list)

    async def get(self, _resource: Resource[Pod], _namespace: str, name: str) -> Pod:
        """As the client's."""
        self.reads.append(name)
        if self.live is None:
            raise NotFound("gone", status=404)
        return self.live


@dataclass
class CacheOf:
    """As the reflector's."""

    cluster: Cluster

    def get(self, _namespace: str, _name: str) -> Pod | None:
        """The object as last seen."""
        return self.cluster.cached


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


@pytest.fixture
def fresh(cluster: Cluster) -> CachedReader[Pod]:
    return CachedReader(cluster, PODS, CacheOf(cluster))  # type: ignore[arg-type]


async def test_without_a_hint_the_cache_will_do(cluster: Cluster, fresh: CachedReader[Pod]) -> None:
    cluster.cached, cluster.live = at("1"), at("2")
    assert await fresh.read("n", "p") == at("1")
    assert cluster.reads == []


async def test_the_very_version_that_was_spoken_of_is_taken_from_the_cache(
    cluster: Cluster, fresh: CachedReader[Pod]
) -> None:
    cluster.cached = at("2")
    fresh.expect("n", "p", Changed("Pod", "u", "2"))
    assert await fresh.read("n", "p") == at("2")
    assert cluster.reads == []


async def test_a_cache_that_lags_is_not_trusted_until_it_has_caught_up(
    cluster: Cluster, fresh: CachedReader[Pod]
) -> None:
    cluster.cached, cluster.live = at("1"), at("3")
    fresh.wrote(at("3"))
    assert await fresh.read("n", "p") == at("3")
    cluster.cached = at("2")
    assert await fresh.read("n", "p") == at("3")
    cluster.cached = at("3")
    assert await fresh.read("n", "p") == at("3")
    assert len(cluster.reads) == 2


async def test_a_cache_that_is_ahead_costs_one_read(cluster: Cluster, fresh: CachedReader[Pod]) -> None:
    cluster.cached = cluster.live = at("9")
    fresh.expect("n", "p", Changed("Pod", "u", "3"))
    assert await fresh.read("n", "p") == at("9")
    assert await fresh.read("n", "p") == at("9")
    assert len(cluster.reads) == 1


async def test_a_version_that_the_cache_had_meanwhile_is_not_waited_for(
    cluster: Cluster, fresh: CachedReader[Pod]
) -> None:
    fresh.wrote(at("3"))
    for version in ("2", "3", "4"):
        cluster.cached = at(version)
        fresh.saw(cluster.cached)
    assert await fresh.read("n", "p") == at("4")
    assert cluster.reads == []


async def test_what_is_gone_is_forgotten(cluster: Cluster, fresh: CachedReader[Pod]) -> None:
    fresh.expect("n", "p", Changed("Pod", "u", "3"))
    assert await fresh.read("n", "p") is None
    assert await fresh.read("n", "p") is None
    assert len(cluster.reads) == 1


async def test_a_hint_about_another_kind_says_nothing(cluster: Cluster, fresh: CachedReader[Pod]) -> None:
    fresh.expect("n", "p", Changed("VirtualMachineInstance", "u", "3"))
    fresh.expect("n", "p", None)
    assert await fresh.read("n", "p") is None
    assert cluster.reads == []
