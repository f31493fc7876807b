"""Run commands in a guest of the lab, over the shell on its serial console.

The guest agent's channel serves one client at a time, which is the handler, so commands use the console. Lines that the
kernel prints meanwhile are removed from the output.
"""

import itertools
import re
import socket
import time
from pathlib import Path

_KERNEL = re.compile(r"(?:\x1b\[6n)?\[ *\d+\.\d+\] .*\n?")
_numbers = itertools.count(1)


def run(folder: Path, command: str, *, timeout: float = 45.0) -> tuple[int, str]:
    """Run a command in the guest's shell; return its exit code and its output.

    :param folder: the guest's directory, with its sockets.
    :param command: the command.
    :param timeout: seconds.
    """
    number = f"{next(_numbers)}-{time.monotonic_ns()}"
    begin, end = f"begin-{number}", f"end-{number}"
    deadline = time.monotonic() + timeout
    received = ""
    with socket.socket(socket.AF_UNIX) as console:
        console.settimeout(timeout)
        console.connect(str(folder / "console.sock"))
        # The terminal and then the shell, when it reads late, echo the command with its quotes. The marks are printed
        # without, so only the output matches.
        console.sendall(f'echo begin""-{number}; {command}; echo {end}-"$?"-\n'.encode())
        while (found := re.search(rf"{end}-(\d+)-", received)) is None:
            console.settimeout(max(0.01, deadline - time.monotonic()))
            try:
                piece = console.recv(65536)
            except TimeoutError:
                raise AssertionError(f"the guest did not finish {command!r} in {timeout:g} s: {received}") from None
            assert piece, f"the console of the guest closed during {command!r}"
            received += piece.decode(errors="replace").replace("\r", "")
    output = _KERNEL.sub("", received[: found.start()])
    _, _, output = output.partition(f"{begin}\n")
    return int(found[1]), output
