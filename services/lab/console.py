"""A terminal on a guest's serial console, over the unix socket that QEMU listens on.

The terminal is put into raw mode, so that every key reaches the guest; Ctrl-] leaves. What the guest printed
before is in `console.log` beside the socket, whose last lines are shown first.
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

from services.lab import control

LEAVE: Final = b"\x1d"
SHOWN: Final = 4096
"""Bytes of the console's past that are shown on attaching."""


def attach(folder: Path, complain: Callable[[str], None]) -> int:
    """Connect standard input and output with the console of the guest in `folder`; returns the exit code."""
    try:
        sock = control.connect(folder / "console.sock", timeout=5.0)
    except control.UnreachableError as error:
        complain(f"the guest's console does not answer: {error}")
        return 1
    complain("attached; Ctrl-] leaves")
    with sock, raw_terminal():
        sock.settimeout(None)
        os.write(sys.stdout.fileno(), past(folder / "console.log"))
        return carry(sock)


def past(log: Path) -> bytes:
    """Return the end of what the guest has printed so far."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - SHOWN))
            return file.read()
    except OSError:
        return b""


def carry(sock: socket.socket) -> int:
    """Copy both ways until the user leaves (0) or the guest ends (1)."""
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
            before, leave, _ = typed.partition(LEAVE)
            sock.sendall(before)
            if leave:
                return 0
            if not typed:
                # End of a piped input: the guest may still have something to say.
                sources.remove(keys)


@contextlib.contextmanager
def raw_terminal() -> Iterator[None]:
    """Put the terminal into raw mode, if standard input is one."""
    if not sys.stdin.isatty():
        yield
        return
    saved = termios.tcgetattr(sys.stdin)
    try:
        tty.setraw(sys.stdin)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, saved)
