"""Connect the terminal to a guest's serial console, over the unix socket on which QEMU listens.

The terminal is in raw mode meanwhile, so that every key reaches the guest; Ctrl-] detaches. The end of `console.log`
beside the socket, the output so far, is printed first.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
import sys
import termios
import tty
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from lab.namespaces import control

DETACH_KEY: Final = b"\x1d"
"""Ctrl-]."""
BACKLOG_BYTES: Final = 4096
"""Bytes of earlier console output that are printed after attaching."""


def attach(folder: Path, print_error: Callable[[str], None]) -> int:
    """Connect standard input and output to the console of the guest in `folder`; return the exit code."""
    try:
        sock = control.connect(folder / "console.sock", timeout=5.0)
    except control.UnreachableError as error:
        print_error(f"cannot connect to the guest's console: {error}")
        return 1
    print_error("attached; press Ctrl-] to detach")
    with sock, raw_terminal():
        sock.settimeout(None)
        os.write(sys.stdout.fileno(), recent_output(folder / "console.log"))
        return copy_both_ways(sock)


def recent_output(log: Path) -> bytes:
    """Return the end of the guest's console output so far."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - BACKLOG_BYTES))
            return file.read()
    except OSError:
        return b""


def copy_both_ways(sock: socket.socket) -> int:
    """Copy in both directions until the user detaches (return 0) or the guest ends (return 1)."""
    keys, screen = sys.stdin.fileno(), sys.stdout.fileno()
    sources: list[socket.socket | int] = [sock, keys]
    while True:
        for source in select.select(sources, [], [])[0]:
            if source is sock:
                data = sock.recv(4096)
                if not data:
                    return 1
                os.write(screen, data)
                continue
            typed = os.read(keys, 4096)
            before, leave, _ = typed.partition(DETACH_KEY)
            sock.sendall(before)
            if leave:
                return 0
            if not typed:
                # End of a piped input: keep printing the guest's output.
                sources.remove(keys)


@contextlib.contextmanager
def raw_terminal() -> Iterator[None]:
    """Put the terminal into raw mode for the duration, if standard input is a terminal."""
    if not sys.stdin.isatty():
        yield
        return
    saved = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)
