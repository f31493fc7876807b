"""A guest's sockets are in a folder that its pod can write: no symbolic link leads to another guest's."""

import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.common.guest.agent import AgentUnavailable, QemuGuestAgent
from services.common.guest.drivers import trusted_folder
from services.common.guest.port import GuestNotReachable
from services.common.guest.qmp import QmpGuest
from services.common.guest.sockets import may_listen
from tests.support.telemetry.spans import recording_telemetry


@pytest.fixture
def node() -> Iterator[Path]:
    """Yield the folder of all guests, which a symbolic link of the node leads to, with a neighbour's socket."""
    with tempfile.TemporaryDirectory(prefix="hn-") as path:
        (Path(path) / "real" / "neighbour").mkdir(parents=True)
        (Path(path) / "guests").symlink_to("real")
        yield Path(path) / "guests"


@pytest.mark.parametrize("how", ["socket", "folder", "above"])
async def test_no_client_connects_to_a_neighbours_socket(node: Path, how: str) -> None:
    with socket.socket(socket.AF_UNIX) as neighbour:
        neighbour.bind(str(node / "neighbour" / "a.sock"))
        neighbour.listen()
        neighbour.setblocking(False)
        if how == "folder":
            (node / "mine").symlink_to("neighbour")
        else:
            (node / "mine").mkdir()
        if how == "socket":
            (node / "mine" / "a.sock").symlink_to("../neighbour/a.sock")
        path = str(node / ("mine/../neighbour" if how == "above" else "mine") / "a.sock")
        guest = QmpGuest(path, recording_telemetry()[0].tracer, trusted=str(node), deadline=0.2)
        with pytest.raises(GuestNotReachable):
            await guest.list()
        with pytest.raises(AgentUnavailable):
            await QemuGuestAgent(path, trusted=str(node)).interfaces(timeout=0.2)
        with pytest.raises(BlockingIOError):
            neighbour.accept()


def test_only_what_is_above_the_guests_folder_is_trusted() -> None:
    assert trusted_folder("/var/run/guests/{uid}/qmp.sock") == "/var/run/guests"
    assert trusted_folder("/run/guests/vm-{uid}.sock") == "/run/guests"
    assert trusted_folder("/run/qmp.sock") == "/run"


@pytest.mark.parametrize(("user", "owner", "may"), [(107, 107, True), (0, 107, True), (1000, 107, False)])
def test_the_owner_of_a_socket_or_root_may_listen_on_it(user: int, owner: int, may: bool) -> None:
    assert may_listen(user, owner=owner) is may
