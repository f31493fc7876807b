"""The resolver configuration of a pod is read from its resolv.conf, whatever that file is."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.handler.addresses.offer import MAX_ENTRIES, NO_RESOLVER, Resolver
from services.handler.addresses.resolv import MAX_BYTES, parse_resolv_conf, read_resolver

KUBELET = "search default.svc.cluster.local svc.cluster.local cluster.local\nnameserver 10.96.0.10\noptions ndots:5\n"


def test_kubelets_file_is_parsed() -> None:
    search = ("default.svc.cluster.local", "svc.cluster.local", "cluster.local")
    assert parse_resolv_conf(KUBELET) == Resolver(("10.96.0.10",), search)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", NO_RESOLVER),
        ("nameserver 127.0.0.53\nnameserver ::1\nnameserver fe80::1%eth0\nnameserver what\n", NO_RESOLVER),
        ("nameserver fd00::53 # comment\nnameserver 10.0.0.53\n", Resolver(("fd00::53", "10.0.0.53"))),
        ("domain a.example\nsearch b.example c.example\n", Resolver(search=("b.example", "c.example"))),
        ("search .\n", NO_RESOLVER),
        ("nameserver\nsearch\n#nameserver 10.0.0.1\n", NO_RESOLVER),
        ("nameserver 10.0.0.1\n" * 100, Resolver(("10.0.0.1",) * MAX_ENTRIES)),
    ],
)
def test_parsing_of_lines(text: str, expected: Resolver) -> None:
    assert parse_resolv_conf(text) == expected


@given(st.text())
def test_arbitrary_text_never_fails(text: str) -> None:
    parse_resolv_conf(text)


def make_resolv_conf(root: Path) -> Path:
    (root / "etc").mkdir()
    return root / "etc" / "resolv.conf"


def test_file_is_read_below_the_root(tmp_path: Path) -> None:
    make_resolv_conf(tmp_path).write_text(KUBELET)
    assert read_resolver(tmp_path).nameservers == ("10.96.0.10",)


def test_symbolic_link_is_resolved_below_the_root(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text(KUBELET)
    root = tmp_path / "root"
    root.mkdir()
    make_resolv_conf(root).symlink_to(outside)
    assert read_resolver(root) == NO_RESOLVER
    (root / "run").mkdir()
    (root / "run" / "resolv.conf").write_text("nameserver 10.0.0.53\n")
    (root / "etc" / "resolv.conf").unlink()
    (root / "etc" / "resolv.conf").symlink_to("/run/resolv.conf")
    assert read_resolver(root).nameservers == ("10.0.0.53",)


def test_missing_and_special_files_do_not_block(tmp_path: Path) -> None:
    assert read_resolver(tmp_path) == NO_RESOLVER
    path = make_resolv_conf(tmp_path)
    os.mkfifo(path)
    assert read_resolver(tmp_path) == NO_RESOLVER
    path.unlink()
    path.mkdir()
    assert read_resolver(tmp_path) == NO_RESOLVER


def test_only_the_beginning_of_a_large_file_is_read(tmp_path: Path) -> None:
    make_resolv_conf(tmp_path).write_text(KUBELET + "#" * MAX_BYTES + "\nnameserver 10.0.0.53\n")
    assert read_resolver(tmp_path).nameservers == ("10.96.0.10",)


@pytest.mark.parametrize("swapped", ["etc", "etc/resolv.conf"], ids=["folder", "file"])
def test_a_part_that_becomes_a_link_while_it_is_opened_leads_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
) -> None:
    """The container replaces a part after it was looked at, and before it is opened."""
    outside, root = tmp_path / "outside", tmp_path / "root"
    for folder in (outside / "etc", root / "etc"):
        folder.mkdir(parents=True)
        (folder / "resolv.conf").write_text("nameserver 10.9.9.9\n" if folder.parent == outside else KUBELET)
    real_open = os.open

    def open_after_swap(path: str | Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if Path(path).name in ("etc", "resolv.conf") and not (root / swapped).is_symlink():
            (root / swapped).rename(tmp_path / "aside")
            (root / swapped).symlink_to(outside / swapped)
        return real_open(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", open_after_swap)
    assert read_resolver(root) == NO_RESOLVER
