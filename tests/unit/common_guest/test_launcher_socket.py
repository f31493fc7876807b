"""Finding libvirt's socket below a container's root, without following the container's symbolic links."""

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.guest.launcher import libvirt_socket
from services.common.guest.port import GuestNotReachable


class Container:
    """A directory that serves as a container's root, and the listening sockets in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.sockets: list[socket.socket] = []

    def listen(self, path: str) -> socket.socket:
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        made = socket.socket(socket.AF_UNIX)
        self.sockets.append(made)
        made.bind(str(self.root / path))
        made.listen()
        made.settimeout(2)
        return made


@pytest.fixture
def folder() -> Iterator[Path]:
    """Yield a directory whose path is short enough for unix sockets."""
    with tempfile.TemporaryDirectory(prefix="hn-") as path:
        yield Path(path)


@pytest.fixture
def container(folder: Path) -> Iterator[Container]:
    (folder / "root").mkdir()
    made = Container(folder / "root")
    yield made
    for one in made.sockets:
        one.close()


@pytest.mark.parametrize(
    "path",
    [
        "run/libvirt/virtqemud-sock",
        "var/run/libvirt/virtqemud-sock",
        "run/libvirt/libvirt-sock",
        "var/run/libvirt/libvirt-sock",
    ],
)
def test_a_socket_that_is_found_can_be_connected_to(container: Container, path: str) -> None:
    listener = container.listen(path)
    with libvirt_socket(container.root) as found, socket.socket(socket.AF_UNIX) as client:
        client.connect(found)
        listener.accept()[0].close()


def test_the_socket_of_the_modular_daemon_has_priority(container: Container) -> None:
    container.listen("run/libvirt/libvirt-sock")
    modular = container.listen("var/run/libvirt/virtqemud-sock")
    with libvirt_socket(container.root) as found, socket.socket(socket.AF_UNIX) as client:
        client.connect(found)
        modular.accept()[0].close()


def test_the_path_names_the_socket_that_was_found_after_it_is_replaced(container: Container) -> None:
    listener = container.listen("run/libvirt/virtqemud-sock")
    with libvirt_socket(container.root) as found, socket.socket(socket.AF_UNIX) as client:
        (container.root / "run/libvirt").rename(container.root / "run/moved")
        container.listen("run/libvirt/virtqemud-sock")
        client.connect(found)
        listener.accept()[0].close()


def test_no_symbolic_link_is_followed(container: Container, folder: Path) -> None:
    outside = Container(folder / "node")
    outside.listen("libvirt/virtqemud-sock")
    container.sockets += outside.sockets
    (container.root / "run").symlink_to(folder / "node")
    (container.root / "var/run/libvirt").mkdir(parents=True)
    (container.root / "var/run/libvirt/virtqemud-sock").symlink_to(folder / "node/libvirt/virtqemud-sock")
    with pytest.raises(GuestNotReachable, match="no libvirt socket"), libvirt_socket(container.root):
        pass


def test_a_regular_file_and_a_missing_root_are_not_reachable(container: Container, folder: Path) -> None:
    (container.root / "run/libvirt").mkdir(parents=True)
    (container.root / "run/libvirt/virtqemud-sock").touch()
    for root in (container.root, folder / "gone"):
        with pytest.raises(GuestNotReachable, match="no libvirt socket"), libvirt_socket(root):
            pass
