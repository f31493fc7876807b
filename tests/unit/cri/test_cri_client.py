"""The client against a runtime on a unix socket."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from services.common.cri.client import Cri
from services.common.cri.errors import CriUnavailable, SandboxMissing
from services.common.cri.sandbox import Sandbox
from tests.support.fake_cri import FakeCri, FakeSandbox, serving_cri
from tests.support.spans import recording_telemetry, tree


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[FakeCri]:
    async with serving_cri(str(tmp_path / "cri.sock"), FakeCri([FakeSandbox("s1", "uid1")])) as fake:
        yield fake


@pytest.fixture
async def cri(tmp_path: Path) -> AsyncIterator[Cri]:
    telemetry, _ = recording_telemetry()
    client = Cri(str(tmp_path / "cri.sock"), telemetry, deadline=1.0)
    yield client
    await client.close()


async def test_sandbox_by_uid(runtime: FakeCri, tmp_path: Path) -> None:
    telemetry, exporter = recording_telemetry()
    client = Cri(str(tmp_path / "cri.sock"), telemetry)
    assert await client.sandbox_of("uid1") == Sandbox(id="s1", netns="/var/run/netns/s1", pid=4711)
    await client.close()
    assert tree(exporter.get_finished_spans()) == [("cri ListPodSandbox", []), ("cri PodSandboxStatus", [])]


async def test_a_sandbox_that_is_still_the_pods_is_asked_nothing_more(runtime: FakeCri, cri: Cri) -> None:
    first = await cri.sandbox_of("uid1")
    runtime.asked.clear()
    assert await cri.sandbox_of("uid1", earlier=first) is first
    assert runtime.asked == {"ListPodSandbox": 1}
    runtime.sandboxes[0].ready = False
    runtime.sandboxes.append(FakeSandbox("s2", "uid1", created_at=2))
    assert (await cri.sandbox_of("uid1", earlier=first)).id == "s2"


async def test_static_pod_is_found_by_name(runtime: FakeCri, cri: Cri) -> None:
    runtime.sandboxes.append(FakeSandbox("s2", "static", "kube-system", "etcd-node1"))
    assert (await cri.sandbox_of("mirror", static=("kube-system", "etcd-node1"))).id == "s2"


async def test_an_ordinary_pod_is_never_found_by_name(runtime: FakeCri, cri: Cri) -> None:
    """A pod of the same name may have been there before, and its sandbox may still stand."""
    with pytest.raises(SandboxMissing, match="no sandbox for pod uid-of-the-next"):
        await cri.sandbox_of("uid-of-the-next")
    assert runtime.asked == {"ListPodSandbox": 1}


async def test_sandbox_that_vanishes_between_the_calls(runtime: FakeCri, cri: Cri) -> None:
    runtime.fail["PodSandboxStatus"] = grpc.StatusCode.NOT_FOUND
    with pytest.raises(SandboxMissing, match="no longer knows"):
        await cri.sandbox_of("uid1")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (grpc.StatusCode.UNIMPLEMENTED, "does not speak CRI v1"),
        (grpc.StatusCode.UNKNOWN, "UNKNOWN: as the test wishes"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED"),
    ],
)
async def test_failures_are_classified(runtime: FakeCri, cri: Cri, code: grpc.StatusCode, text: str) -> None:
    runtime.fail["ListPodSandbox"] = code
    with pytest.raises(CriUnavailable, match=text):
        await cri.sandbox_of("uid1")


async def test_a_runtime_that_hangs(runtime: FakeCri, tmp_path: Path) -> None:
    runtime.hang.add("ListPodSandbox")
    telemetry, _ = recording_telemetry()
    client = Cri(str(tmp_path / "cri.sock"), telemetry, deadline=0.1)
    with pytest.raises(CriUnavailable, match=r"no answer within 0\.1 s"):
        await client.sandbox_of("uid1")
    await client.close()


async def test_a_runtime_that_is_away_and_comes_back(cri: Cri, tmp_path: Path) -> None:
    with pytest.raises(CriUnavailable, match=r"cri\.sock, ListPodSandbox: UNAVAILABLE"):
        await cri.sandbox_of("uid1")
    async with serving_cri(str(tmp_path / "cri.sock"), FakeCri([FakeSandbox("s1", "uid1")])):
        async with asyncio.timeout(10):
            assert (await until_answered(cri)).id == "s1"


async def until_answered(cri: Cri) -> Sandbox:
    while True:
        with contextlib.suppress(CriUnavailable):
            return await cri.sandbox_of("uid1")


async def test_version(runtime: FakeCri, cri: Cri) -> None:
    assert await cri.version() == "fake 1"
