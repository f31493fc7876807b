"""Network namespaces of sandboxes in the responses of several runtimes.

One response was recorded from the lab's containerd (``answers``). The others were written after the runtimes' sources
and after responses that users have posted, because no machine of the project runs these runtimes.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.cri import runtime_pb2 as pb
from services.common.cri.errors import CriError, CriUnavailable, SandboxMissing
from services.common.cri.sandbox import Sandbox, choose_sandbox, parse_sandbox

OTHERS = [{"type": "pid"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}]
CONTAINERD_16: dict[str, Any] = {
    "pid": 2210,
    "processStatus": "running",
    "netNamespaceClosed": False,
    "image": "registry.k8s.io/pause:3.6",
    "snapshotter": "overlayfs",
    "runtimeType": "io.containerd.runc.v2",
    "config": {"metadata": {"name": "pod1", "uid": "u", "namespace": "default"}},
    "runtimeSpec": {
        "ociVersion": "1.0.2-dev",
        "process": {"args": ["/pause"], "cwd": "/"},
        "linux": {"namespaces": [*OTHERS, {"type": "network", "path": "/var/run/netns/cni-1b6e"}]},
    },
    "cniResult": {"Interfaces": {"eth0": {"IPConfigs": [{"IP": "10.88.0.5"}], "Sandbox": "/var/run/netns/cni-1b6e"}}},
}
CONTAINERD_2 = CONTAINERD_16 | {
    "sandboxMetadata": {"Version": "v1", "Metadata": {"NetNSPath": "/var/run/netns/cni-1b6e"}}
}
CONTAINERD_23 = CONTAINERD_16 | {"image": {"image": "registry.k8s.io/pause:3.10"}, "sandboxMetadata": {}}
"""As posted by a user of 2.3."""
CONTAINERD_2_NO_PAUSE: dict[str, Any] = {
    "pid": 0,
    "processStatus": "running",
    "netNamespaceClosed": False,
    "runtimeSpec": None,
    "sandboxMetadata": {"Version": "v1", "Metadata": {"ID": "s1", "NetNSPath": "/var/run/netns/cni-2"}},
}
CRIO: dict[str, Any] = {
    "image": "registry.k8s.io/pause:3.9",
    "pid": 991,
    "runtimeSpec": {
        "ociVersion": "1.1.0",
        "process": {"args": ["/pause"], "cwd": "/"},
        "annotations": {"io.kubernetes.cri-o.ContainerType": "sandbox"},
        "linux": {"namespaces": [*OTHERS, {"type": "network", "path": "/var/run/netns/8f1c"}]},
    },
}
CRIO_NO_INFRA: dict[str, Any] = {"runtimeSpec": CRIO["runtimeSpec"]}
"""With ``drop_infra_ctr`` there is no infra container, so neither image nor pid."""
CRIO_NO_INFRA_OLD: dict[str, Any] = {}
"""Older versions have no verbose info of such a sandbox."""


def response_with(info: dict[str, Any] | str | None, state: int = pb.SANDBOX_READY) -> pb.PodSandboxStatusResponse:
    text = {} if info is None else {"info": info if isinstance(info, str) else json.dumps(info)}
    return pb.PodSandboxStatusResponse(status=pb.PodSandboxStatus(id="s1", state=state), info=text)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("info", "netns", "pid"),
    [
        pytest.param(CONTAINERD_16, "/var/run/netns/cni-1b6e", 2210, id="containerd 1.6 and 1.7"),
        pytest.param(CONTAINERD_2, "/var/run/netns/cni-1b6e", 2210, id="containerd 2"),
        pytest.param(CONTAINERD_23, "/var/run/netns/cni-1b6e", 2210, id="containerd 2.3"),
        pytest.param(CONTAINERD_2_NO_PAUSE, "/var/run/netns/cni-2", 0, id="containerd 2 without a pause container"),
        pytest.param(
            CONTAINERD_2_NO_PAUSE | {"sandboxMetadata": {"NetNSPath": "/run/netns/x"}},
            "/run/netns/x",
            0,
            id="unwrapped",
        ),
        pytest.param(CRIO, "/var/run/netns/8f1c", 991, id="CRI-O with an infra container"),
        pytest.param(CRIO_NO_INFRA, "/var/run/netns/8f1c", 0, id="CRI-O without an infra container"),
        pytest.param({"pid": 12}, "/proc/12/ns/net", 12, id="a pid alone"),
        pytest.param(
            {"pid": 12, "runtimeSpec": {"linux": {"namespaces": [{"type": "network"}]}}},
            "/proc/12/ns/net",
            12,
            id="a namespace of its own, without a path",
        ),
        pytest.param({"pid": 12, "runtimeSpec": {"windows": {}}}, "/proc/12/ns/net", 12, id="a spec without linux"),
    ],
)
def test_netns_is_found(info: dict[str, Any], netns: str, pid: int) -> None:
    assert parse_sandbox(response_with(info)) == Sandbox(id="s1", netns=netns, pid=pid)


def test_a_recorded_response_is_parsed() -> None:
    recorded = json.loads((Path(__file__).parent / "answers" / "containerd-1.6.20.json").read_text())
    found = parse_sandbox(response_with(recorded["info"], recorded["status"]["state"]))
    assert found == Sandbox(id="s1", netns="/var/run/netns/cni-195aba05-d453-a34d-753d-adb87cfdf268", pid=99)


@pytest.mark.parametrize(
    ("response", "error", "text"),
    [
        pytest.param(response_with(CONTAINERD_16, pb.SANDBOX_NOTREADY), SandboxMissing, "not ready", id="not ready"),
        pytest.param(
            response_with(CONTAINERD_16 | {"netNamespaceClosed": True}), SandboxMissing, "closed", id="netns closed"
        ),
        pytest.param(
            response_with(CONTAINERD_16 | {"processStatus": "deleted"}), SandboxMissing, "being removed", id="deleted"
        ),
        pytest.param(
            response_with({"pid": 7, "runtimeSpec": {"linux": {"namespaces": OTHERS}}}),
            SandboxMissing,
            "network namespace of its node",
            id="host network by its spec",
        ),
        pytest.param(response_with(None), CriUnavailable, "no verbose info", id="no info"),
        pytest.param(response_with("{"), CriUnavailable, "cannot be decoded", id="broken info"),
        pytest.param(response_with("[]"), CriUnavailable, "cannot be decoded", id="info of another shape"),
        pytest.param(
            response_with(CRIO_NO_INFRA_OLD),
            CriUnavailable,
            "no network namespace of sandbox s1",
            id="an older CRI-O without infra container",
        ),
        pytest.param(
            response_with({"pid": 0}), CriUnavailable, "no network namespace of sandbox s1", id="neither path nor pid"
        ),
    ],
)
def test_an_unusable_response_is_an_error_with_the_reason(
    response: pb.PodSandboxStatusResponse, error: type[CriError], text: str
) -> None:
    with pytest.raises(error, match=text):
        parse_sandbox(response)


def test_a_sandbox_with_host_network_is_missing() -> None:
    response = response_with(CONTAINERD_16)
    response.status.linux.namespaces.options.network = pb.NODE
    with pytest.raises(SandboxMissing, match="network namespace of its node"):
        parse_sandbox(response)


@given(st.text() | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists).map(json.dumps))
def test_garbage_is_a_classified_error(text: str) -> None:
    with pytest.raises(CriError):
        parse_sandbox(response_with(text))


def test_the_newest_ready_sandbox_is_chosen() -> None:
    items = [
        pb.PodSandbox(id="leftover", state=pb.SANDBOX_NOTREADY, created_at=9),
        pb.PodSandbox(id="older", state=pb.SANDBOX_READY, created_at=1),
        pb.PodSandbox(id="newer", state=pb.SANDBOX_READY, created_at=2),
    ]
    assert choose_sandbox(items, "u") == "newer"


@pytest.mark.parametrize(
    ("items", "text"),
    [
        ([], "no sandbox for pod u"),
        ([pb.PodSandbox(id="a", state=pb.SANDBOX_NOTREADY)], "1 sandbox.* none of them ready"),
    ],
)
def test_without_a_ready_sandbox_it_is_missing(items: list[pb.PodSandbox], text: str) -> None:
    with pytest.raises(SandboxMissing, match=text):
        choose_sandbox(items, "u")
