"""The socket of the container runtime is found among the usual paths; the error names the paths that were tried."""

import socket
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from services.common.cri.discovery import (
    USUAL_PATHS,
    SocketIdentity,
    candidate_paths,
    choose_socket,
    find_socket,
    identify_socket,
    serves_cri,
)
from services.common.runtime.settings import SettingsError
from services.networks.__main__ import Settings as NetworksSettings
from tests.support.node.fake_cri import FakeCri, serving_cri
from tests.support.telemetry.spans import recording_telemetry

CONTAINERD, CRIO, K3S, _ = USUAL_PATHS


def sockets(*existing: Sequence[str]) -> Callable[[str], SocketIdentity | None]:
    """Return what identifies these sockets, each by its paths."""
    identities = {path: (1, inode) for inode, paths in enumerate(existing) for path in paths}
    return identities.get


@pytest.mark.parametrize(
    ("existing", "answering", "expected"),
    [
        ([CONTAINERD], [], CONTAINERD),
        ([CRIO], [], CRIO),
        ([K3S], [], K3S),
        ([CONTAINERD, K3S], [K3S], K3S),
        ([CONTAINERD, CRIO], [CRIO], CRIO),
    ],
    ids=["containerd", "CRI-O", "k3s", "k3s beside Docker", "CRI-O beside Docker"],
)
async def test_the_only_runtime_is_chosen(existing: list[str], answering: list[str], expected: str) -> None:
    asked: list[str] = []

    async def answers(path: str) -> bool:
        asked.append(path)
        return path in answering

    assert await choose_socket(USUAL_PATHS, sockets(*([path] for path in existing)), answers) == expected
    assert asked == (existing if len(existing) > 1 else [])


async def test_no_socket_is_an_error_that_names_the_paths() -> None:
    async def answers(_path: str) -> bool:
        raise AssertionError("asked a socket that does not exist")

    with pytest.raises(SettingsError) as error:
        await choose_socket(candidate_paths("/host"), sockets(), answers)
    assert error.value.variable == "HOTNIC_CRI_SOCKET"
    for path in USUAL_PATHS:
        assert path in error.value.message
        assert f"/host{path}" in error.value.message


@pytest.mark.parametrize(
    ("answering", "message"),
    [([CONTAINERD, CRIO], f"container runtimes answer at {CONTAINERD}, {CRIO}"), ([], "none answers at")],
)
async def test_several_runtimes_or_none_that_answers_are_an_error(answering: list[str], message: str) -> None:
    async def answers(path: str) -> bool:
        return path in answering

    with pytest.raises(SettingsError, match=message):
        await choose_socket(USUAL_PATHS, sockets([CONTAINERD], [CRIO]), answers)


async def test_a_socket_at_several_paths_is_one() -> None:
    async def answers(_path: str) -> bool:
        raise AssertionError("asked although there is one socket")

    paths = candidate_paths("/host")
    assert await choose_socket(paths, sockets([f"/host{CONTAINERD}", CONTAINERD, K3S]), answers) == f"/host{CONTAINERD}"


async def test_each_of_several_sockets_is_asked_and_named_once() -> None:
    asked: list[str] = []

    async def answers(path: str) -> bool:
        asked.append(path)
        return True

    both = sockets([f"/host{CONTAINERD}", CONTAINERD], [f"/host{CRIO}", CRIO])
    with pytest.raises(SettingsError, match=f"container runtimes answer at /host{CONTAINERD}, /host{CRIO};"):
        await choose_socket(candidate_paths("/host"), both, answers)
    assert asked == [f"/host{CONTAINERD}", f"/host{CRIO}"]


def test_a_link_and_a_hard_link_to_a_socket_are_the_same_socket(tmp_path: Path) -> None:
    """A hard link stands for a bind mount, which needs root: both lead to the same inode."""
    names = {name: tmp_path / name for name in ("run", "other", "file", "var-run", "bind-mount", "dangling")}
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        one.bind(str(names["run"]))
        two.bind(str(names["other"]))
        names["file"].touch()
        names["var-run"].symlink_to(names["run"])
        names["bind-mount"].hardlink_to(names["run"])
        names["dangling"].symlink_to(tmp_path / "nothing")
        identities = {name: identify_socket(str(path)) for name, path in names.items()}
    assert identities["run"] is not None
    assert identities["run"] == identities["var-run"] == identities["bind-mount"]
    assert identities["other"] not in (None, identities["run"])
    assert identities["file"] is identities["dangling"] is None


async def test_sockets_below_the_nodes_root_come_first_and_a_set_path_is_not_checked(tmp_path: Path) -> None:
    telemetry, _ = recording_telemetry()
    assert await find_socket("/no/such.sock", telemetry, host_root=str(tmp_path)) == "/no/such.sock"
    assert candidate_paths(str(tmp_path))[0] == f"{tmp_path}{CONTAINERD}"
    assert candidate_paths("/") == list(USUAL_PATHS)


async def test_a_runtime_is_told_from_a_socket_that_serves_no_cri(tmp_path: Path) -> None:
    """Docker's own containerd has no CRI."""
    telemetry, _ = recording_telemetry()
    nobody, runtime = str(tmp_path / "nobody.sock"), str(tmp_path / "cri.sock")
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(nobody)
        async with serving_cri(runtime, FakeCri()):
            assert await serves_cri(runtime, telemetry)
            assert not await serves_cri(nobody, telemetry)


def test_the_socket_is_not_a_required_setting() -> None:
    assert NetworksSettings(node_name="n").cri_socket is None
