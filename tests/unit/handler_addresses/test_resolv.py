"""Whom a pod asks for names: read from its file, whatever the file is."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.handler.addresses.offer import NO_RESOLVER, Resolver
from services.handler.addresses.resolv import MAX_BYTES, MAX_ENTRIES, parse, read

KUBELET = "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"


def test_what_kubelet_writes_is_read() -> None:
    search = ("default.svc.cluster.local", "svc.cluster.local", "cluster.local")
    assert parse(KUBELET) == Resolver(("10.96.0.10",), search)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", NO_RESOLVER),
        ("nameserver 127.0.0.53\nnameserver ::1\nnameserver fe80::1%eth0\nnameserver what\n", NO_RESOLVER),
        ("nameserver fd00::53 # ours\nnameserver 10.0.0.53\n", Resolver(("fd00::53", "10.0.0.53"))),
        ("domain a.example\nsearch b.example c.example\n", Resolver(search=("b.example", "c.example"))),
        ("search .\n", NO_RESOLVER),
        ("nameserver\nsearch\n#nameserver 10.0.0.1\n", NO_RESOLVER),
        ("nameserver 10.0.0.1\n" * 100, Resolver(("10.0.0.1",) * MAX_ENTRIES)),
    ],
)
def test_lines(text: str, found: Resolver) -> None:
    assert parse(text) == found


@given(st.text())
def test_no_text_makes_it_fail(text: str) -> None:
    parse(text)


def pod(root: Path) -> Path:
    (root / "etc").mkdir()
    return root / "etc" / "resolv.conf"


def test_a_pods_file_is_read_below_its_root(tmp_path: Path) -> None:
    pod(tmp_path).write_text(KUBELET)
    assert read(tmp_path).nameservers == ("10.96.0.10",)


def test_a_link_stays_below_the_root(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text(KUBELET)
    root = tmp_path / "root"
    root.mkdir()
    pod(root).symlink_to(outside)
    assert read(root) == NO_RESOLVER
    (root / "run").mkdir()
    (root / "run" / "resolv.conf").write_text("nameserver 10.0.0.53\n")
    (root / "etc" / "resolv.conf").unlink()
    (root / "etc" / "resolv.conf").symlink_to("/run/resolv.conf")
    assert read(root).nameservers == ("10.0.0.53",)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path) -> None:
    assert read(tmp_path) == NO_RESOLVER
    path = pod(tmp_path)
    os.mkfifo(path)
    assert read(tmp_path) == NO_RESOLVER
    path.unlink()
    path.mkdir()
    assert read(tmp_path) == NO_RESOLVER


def test_of_a_large_file_the_beginning_is_read(tmp_path: Path) -> None:
    pod(tmp_path).write_text(KUBELET + "#" * MAX_BYTES + "\nnameserver 10.0.0.53\n")
    assert read(tmp_path).nameservers == ("10.96.0.10",)
