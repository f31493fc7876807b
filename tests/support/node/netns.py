"""Network namespaces by path for tests that run as root, and veth pairs in them.

A namespace is bind-mounted to a path, as a container runtime does, so that hotnic and real CNI plugins can open it.
"""

import ctypes
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

_libc = ctypes.CDLL(None, use_errno=True)
_CLONE_NEWNET = 0x40000000
_MS_BIND = 4096
_MNT_DETACH = 2


def _checked(result: int) -> None:
    if result != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


def _in_thread(work: Callable[[], None]) -> None:
    """Run a function in a new thread, whose namespaces end with it."""
    failures: list[Exception] = []

    def run() -> None:
        try:
            work()
        except OSError as exc:
            failures.append(exc)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def run_in_netns(path: Path, work: Callable[[], T]) -> T:
    """Run a function in a namespace and return its result. A socket that it opens stays in the namespace."""
    results: list[T] = []

    def run() -> None:
        with path.open("rb") as namespace:
            _checked(_libc.setns(namespace.fileno(), _CLONE_NEWNET))
        results.append(work())

    _in_thread(run)
    return results[0]


def add(path: Path) -> None:
    """Create a network namespace and mount it at the path."""
    path.touch()

    def make() -> None:
        _checked(_libc.unshare(_CLONE_NEWNET))
        here = f"/proc/self/task/{threading.get_native_id()}/ns/net"
        _checked(_libc.mount(here.encode(), str(path).encode(), None, _MS_BIND, None))

    _in_thread(make)


def remove(path: Path) -> None:
    """Unmount the namespace and remove its path. A missing path is no failure."""
    _libc.umount2(str(path).encode(), _MNT_DETACH)
    path.unlink(missing_ok=True)


def ip(path: Path, *arguments: str) -> str:
    """Run iproute2's ``ip`` in the namespace and return its output."""
    done = subprocess.run(
        ["nsenter", f"--net={path}", "ip", *arguments], capture_output=True, text=True, check=False, timeout=10
    )
    if done.returncode != 0:
        raise AssertionError(f"ip {' '.join(arguments)}: {done.stderr.strip()}")
    return done.stdout


def configured(path: Path) -> tuple[Any, ...]:
    """Return the links, addresses and routes in the namespace, without what the kernel changes by itself.

    That is the carrier, link-local addresses and the detection of duplicate addresses.
    """
    links = json.loads(ip(path, "-json", "address"))
    routes = [route for family in ("-4", "-6") for route in json.loads(ip(path, "-json", family, "route"))]
    keys = ("ifindex", "ifname", "link", "master", "address", "mtu")
    return (
        [(*(link.get(key) for key in keys), "UP" in link["flags"]) for link in links],
        sorted(
            (link["ifname"], f"{address['local']}/{address['prefixlen']}")
            for link in links
            for address in link["addr_info"]
            if address["scope"] != "link"
        ),
        sorted(
            (route["dst"], route.get("gateway", ""), route.get("metric", 0), route["dev"])
            for route in routes
            if not route["dst"].startswith("fe80:")
        ),
    )


def links(path: Path) -> dict[str, dict[str, Any]]:
    """Return the links of the namespace by name, with the details that iproute2 prints."""
    return {link["ifname"]: link for link in json.loads(ip(path, "-j", "-d", "link"))}


def addresses(path: Path, name: str) -> list[str]:
    """Return the IPv4 addresses of a link, each with its prefix length."""
    [link] = json.loads(ip(path, "-j", "-4", "addr", "show", name))
    return [f"{info['local']}/{info['prefixlen']}" for info in link["addr_info"]]


@contextmanager
def pod_namespace(directory: Path) -> Iterator[Path]:
    """Create a pod's namespace. Its links are deleted first; their host ends would outlive it for a moment."""
    with namespace(directory, "pod") as path:
        yield path
        if path.exists():
            for name in links(path).keys() - {"lo"}:
                with suppress(AssertionError):  # deleted together with another link
                    ip(path, "link", "del", name)


@contextmanager
def namespace(directory: Path, name: str = "netns") -> Iterator[Path]:
    """Create a namespace that exists while the context is open; yield its path."""
    path = directory / name
    add(path)
    try:
        yield path
    finally:
        remove(path)


def veth(inner: Path, name: str, outer: Path, peer: str) -> None:
    """Create a veth pair: ``name`` in ``inner`` (down), its peer in ``outer`` (up)."""
    ip(outer, "link", "add", peer, "type", "veth", "peer", "name", f"{peer}-p")
    # The target is passed as a descriptor of this process, because `ip link set netns` takes only names and pids.
    with inner.open("rb") as target:
        done = subprocess.run(
            [
                "nsenter",
                f"--net={outer}",
                "ip",
                "link",
                "set",
                f"{peer}-p",
                "netns",
                f"/proc/{os.getpid()}/fd/{target.fileno()}",
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
        if done.returncode != 0:
            raise AssertionError(done.stderr)
    ip(inner, "link", "set", f"{peer}-p", "name", name)
    ip(outer, "link", "set", peer, "up")


def ping(path: Path, address: str) -> None:
    """Check that an address is reachable from the namespace, by a refused TCP connection: no ping program is needed."""
    script = (
        "import socket,sys;s=socket.socket(socket.AF_INET,socket.SOCK_STREAM);s.settimeout(5)\n"
        "try: s.connect((sys.argv[1],9))\n"
        "except ConnectionRefusedError: pass\n"
    )
    done = subprocess.run(
        ["nsenter", f"--net={path}", sys.executable, "-I", "-S", "-c", script, address],
        capture_output=True,
        text=True,
        check=False,
        timeout=10,
    )
    if done.returncode != 0:
        raise AssertionError(f"{address} is not reachable: {done.stderr.strip()}")
