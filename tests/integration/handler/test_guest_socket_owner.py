"""A guest's socket on which another user listens is not used: the kernel tells who it is."""

import os
import socket
import tempfile
from pathlib import Path, PurePath

import pytest

from services.common.guest.sockets import connect_below

NOBODY = 65534


@pytest.mark.parametrize("listener", [0, NOBODY])
def test_only_its_owner_or_root_may_listen_on_a_socket(listener: int) -> None:
    with tempfile.TemporaryDirectory(prefix="hn-") as folder, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{folder}/a.sock")
        # The kernel records who listens, whoever the owner of the file is.
        os.seteuid(listener)
        try:
            listening.listen()
        finally:
            os.seteuid(0)
        if listener:
            with pytest.raises(PermissionError, match=f"user {NOBODY} listens on a.sock"):
                connect_below(Path(folder), PurePath("a.sock"))
        else:
            connect_below(Path(folder), PurePath("a.sock")).close()
