"""Process ids of containers in the responses of several runtimes, and the calls for them.

The response of containerd 1.6.20 was recorded, without the container's configuration and runtime spec. CRI-O's was
written after its source.
"""

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.cri import runtime_pb2 as pb
from services.common.cri.client import CriClient
from services.common.cri.container import choose_container, parse_pid
from services.common.cri.errors import ContainerMissing, CriError, CriUnavailable
from tests.support.node.fake_cri import FakeCri, FakeSandbox, serving_cri
from tests.support.telemetry.spans import recording_telemetry, tree

SPEC = {"ociVersion": "1.1.0", "process": {"args": ["/usr/bin/virt-launcher-monitor"], "cwd": "/"}}
CONTAINERD: dict[str, Any] = {
    "sandboxID": "09317ba3fcf354c4cac0f26f48735eb57c33a084fa5370c94076604b4b1498bb",
    "pid": 112,
    "removing": False,
    "snapshotKey": "86934b1bd47496e68ed7bfd54d186a088f23b72d69b355d6b523ca9ab7dd5451",
    "snapshotter": "overlayfs",
    "runtimeType": "io.containerd.runc.v2",
    "runtimeOptions": {"binary_name": "runc"},
    "config": {"metadata": {"name": "compute"}, "image": {"image": "quay.io/kubevirt/virt-launcher"}},
    "runtimeSpec": SPEC,
}
CRIO: dict[str, Any] = {"sandboxID": "5c1d", "pid": 991, "runtimeSpec": SPEC, "privileged": False}
"""Newer versions add ``privileged``."""


def response_with(info: dict[str, Any] | str | None, state: int = pb.CONTAINER_RUNNING) -> pb.ContainerStatusResponse:
    text = {} if info is None else {"info": info if isinstance(info, str) else json.dumps(info)}
    return pb.ContainerStatusResponse(status=pb.ContainerStatus(id="c1", state=state), info=text)  # type: ignore[arg-type]


@pytest.mark.parametrize(("info", "pid"), [(CONTAINERD, 112), (CRIO, 991), ({"pid": 5}, 5)])
def test_the_first_process_is_found(info: dict[str, Any], pid: int) -> None:
    assert parse_pid(response_with(info)) == pid


@pytest.mark.parametrize(
    ("response", "error", "text"),
    [
        pytest.param(
            response_with(CONTAINERD | {"pid": 0}, pb.CONTAINER_CREATED), ContainerMissing, "not running", id="created"
        ),
        pytest.param(
            response_with(CONTAINERD | {"pid": 0}, pb.CONTAINER_EXITED), ContainerMissing, "not running", id="exited"
        ),
        pytest.param(response_with(CONTAINERD | {"removing": True}), ContainerMissing, "being removed", id="removing"),
        pytest.param(response_with(None), CriUnavailable, "no verbose info", id="no info"),
        pytest.param(response_with("{"), CriUnavailable, "cannot be decoded", id="broken info"),
        pytest.param(response_with({"pid": "7"}), CriUnavailable, "cannot be decoded", id="info of another shape"),
        pytest.param(response_with(CONTAINERD | {"pid": 0}), CriUnavailable, "no process id", id="no pid"),
        pytest.param(response_with({"pid": -1}), CriUnavailable, "no process id", id="invalid pid"),
    ],
)
def test_an_unusable_response_is_an_error_with_the_reason(
    response: pb.ContainerStatusResponse, error: type[CriError], text: str
) -> None:
    with pytest.raises(error, match=text):
        parse_pid(response)


@given(st.text() | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_garbage_is_a_classified_error(text: str) -> None:
    with pytest.raises(CriError):
        parse_pid(response_with(text))


def test_the_newest_running_container_is_chosen() -> None:
    items = [
        pb.Container(id="ended", state=pb.CONTAINER_EXITED, created_at=9),
        pb.Container(id="older", state=pb.CONTAINER_RUNNING, created_at=1),
        pb.Container(id="newer", state=pb.CONTAINER_RUNNING, created_at=2),
    ]
    assert choose_container(items, "x") == "newer"
    with pytest.raises(ContainerMissing, match="no running compute"):
        choose_container(items[:1], "compute")


async def test_the_container_is_found_by_pod_and_name(tmp_path: Path) -> None:
    telemetry, exporter = recording_telemetry()
    boxes = [
        FakeSandbox("s1", "uid1", containers={"compute": 17, "volumes": 18}),
        FakeSandbox("s2", "uid2", containers={"compute": 19}),
    ]
    async with serving_cri(str(tmp_path / "cri.sock"), FakeCri(boxes)) as runtime:
        client = CriClient(str(tmp_path / "cri.sock"), telemetry)
        assert await client.find_container_pid("uid1", "compute") == 17
        assert tree(exporter.get_finished_spans()) == [("cri ListContainers", []), ("cri ContainerStatus", [])]
        with pytest.raises(ContainerMissing, match="no running container guest for pod uid1"):
            await client.find_container_pid("uid1", "guest")
        runtime.fail["ContainerStatus"] = grpc.StatusCode.NOT_FOUND
        with pytest.raises(ContainerMissing, match="no longer knows the container"):
            await client.find_container_pid("uid1", "compute")
        await client.close()
