"""Runs commands in a lab's guest, over the shell on its serial console.

The guest agent's channel has one client at a time, and that is the handler; the console is nobody's. What the kernel
prints meanwhile comes in lines of its own between the command's, and is taken out.
"""

import itertools
import re
import socket
import time
from pathlib import Path

_KERNEL = re.compile(r"(?:\x1b\[6n)?\[ *\d+\.\d+\] .*\n?")
_numbers = itertools.count(1)


def run(folder: Path, command: str, *, timeout: float = 30.0) -> tuple[int, str]:
    """Run a command of the guest's shell; its exit code and what it printed.

    :param folder: of the guest, with its sockets. :param timeout: seconds.
    """
    mark = f"end-{next(_numbers)}-{time.monotonic_ns()}"
    deadline = time.monotonic() + timeout
    said = ""
    with socket.socket(socket.AF_UNIX) as console:
        console.settimeout(timeout)
        console.connect(str(folder / "console.sock"))
        # The quotes tell what is typed, which the terminal echoes, from what the shell prints.
        console.sendall(f'{command}; echo {mark}-"$?"-\n'.encode())
        while (found := re.search(rf"{mark}-(\d+)-", said)) is None:
            console.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                piece = console.recv(65536)
            except TimeoutError:
                raise AssertionError(f"the guest did not finish {command!r} in {timeout:g} s: {said}") from None
            assert piece, f"the console of the guest closed during {command!r}"
            said += piece.decode(errors="replace").replace("\r", "")
    output = _KERNEL.sub("", said[: found.start()])
    _, _, output = output.partition(f'echo {mark}-"$?"-\n')
    return int(found[1]), output
