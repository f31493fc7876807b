"""The CRI client against a fake runtime on a unix socket."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest

from services.common.cri.client import CriClient
from services.common.cri.errors import CriUnavailable, SandboxMissing
from services.common.cri.sandbox import Sandbox
from tests.support.node.fake_cri import FakeCri, FakeSandbox, serving_cri
from tests.support.telemetry.spans import recording_telemetry, tree


@pytest.fixture
async def runtime(tmp_path: Path) -> AsyncIterator[FakeCri]:
    async with serving_cri(str(tmp_path / "cri.sock"), FakeCri([FakeSandbox("s1", "uid1")])) as fake:
        yield fake


@pytest.fixture
async def cri(tmp_path: Path) -> AsyncIterator[CriClient]:
    telemetry, _ = recording_telemetry()
    client = CriClient(str(tmp_path / "cri.sock"), telemetry, deadline=1.0)
    yield client
    await client.close()


async def test_a_sandbox_is_found_by_pod_uid(runtime: FakeCri, tmp_path: Path) -> None:
    telemetry, exporter = recording_telemetry()
    client = CriClient(str(tmp_path / "cri.sock"), telemetry)
    assert await client.find_sandbox("uid1") == Sandbox(id="s1", netns="/var/run/netns/s1", pid=4711)
    await client.close()
    assert tree(exporter.get_finished_spans()) == [("cri ListPodSandbox", []), ("cri PodSandboxStatus", [])]


async def test_an_earlier_sandbox_that_is_still_the_pods_needs_one_call(runtime: FakeCri, cri: CriClient) -> None:
    first = await cri.find_sandbox("uid1")
    runtime.calls.clear()
    assert await cri.find_sandbox("uid1", earlier=first) is first
    assert runtime.calls == {"ListPodSandbox": 1}
    runtime.sandboxes[0].ready = False
    runtime.sandboxes.append(FakeSandbox("s2", "uid1", created_at=2))
    assert (await cri.find_sandbox("uid1", earlier=first)).id == "s2"


async def test_a_static_pod_is_found_by_name(runtime: FakeCri, cri: CriClient) -> None:
    runtime.sandboxes.append(FakeSandbox("s2", "static", "kube-system", "etcd-node1"))
    assert (await cri.find_sandbox("mirror", static=("kube-system", "etcd-node1"))).id == "s2"


async def test_an_ordinary_pod_is_never_found_by_name(runtime: FakeCri, cri: CriClient) -> None:
    """The sandbox of an earlier pod of the same name may still exist."""
    with pytest.raises(SandboxMissing, match="no sandbox for pod uid-of-the-next"):
        await cri.find_sandbox("uid-of-the-next")
    assert runtime.calls == {"ListPodSandbox": 1}


async def test_a_sandbox_removed_between_the_calls_is_missing(runtime: FakeCri, cri: CriClient) -> None:
    runtime.fail["PodSandboxStatus"] = grpc.StatusCode.NOT_FOUND
    with pytest.raises(SandboxMissing, match="no longer knows"):
        await cri.find_sandbox("uid1")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (grpc.StatusCode.UNIMPLEMENTED, "does not support CRI v1"),
        (grpc.StatusCode.UNKNOWN, "UNKNOWN: injected by the test"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED"),
    ],
)
async def test_failures_are_classified(runtime: FakeCri, cri: CriClient, code: grpc.StatusCode, text: str) -> None:
    runtime.fail["ListPodSandbox"] = code
    with pytest.raises(CriUnavailable, match=text):
        await cri.find_sandbox("uid1")


async def test_a_runtime_that_hangs_is_unavailable(runtime: FakeCri, tmp_path: Path) -> None:
    runtime.hang.add("ListPodSandbox")
    telemetry, _ = recording_telemetry()
    client = CriClient(str(tmp_path / "cri.sock"), telemetry, deadline=0.1)
    with pytest.raises(CriUnavailable, match=r"no response within 0\.1 s"):
        await client.find_sandbox("uid1")
    await client.close()


async def test_a_runtime_that_restarts_is_available_again(cri: CriClient, tmp_path: Path) -> None:
    with pytest.raises(CriUnavailable, match=r"cri\.sock, ListPodSandbox: UNAVAILABLE"):
        await cri.find_sandbox("uid1")
    async with serving_cri(str(tmp_path / "cri.sock"), FakeCri([FakeSandbox("s1", "uid1")])):
        async with asyncio.timeout(10):
            assert (await wait_for_response(cri)).id == "s1"


async def wait_for_response(cri: CriClient) -> Sandbox:
    while True:
        with contextlib.suppress(CriUnavailable):
            return await cri.find_sandbox("uid1")


async def test_version_has_name_and_version_of_the_runtime(runtime: FakeCri, cri: CriClient) -> None:
    assert await cri.version() == "fake 1"
