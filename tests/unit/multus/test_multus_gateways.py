"""``default-route`` decided: which attachment loses, keeps and gets which default routes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import cni
from services.multus.errors import CniError
from services.multus.gateways import Steer, parsed, steered, steering

V4, BOTH = frozenset({4}), frozenset({4, 6})


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ([("eth0", None), ("net1", None)], []),
        ([("eth0", None), ("net1", ())], []),
        (
            [("eth0", None), ("net1", ("10.0.0.1",)), ("net2", None)],
            [
                Steer("eth0", frozenset({4})),
                Steer("net1", frozenset({4}), ((4, "10.0.0.1"),)),
                Steer("net2", frozenset({4})),
            ],
        ),
        (
            [("eth0", None), ("net1", ("10.0.0.1", "FD00::1")), ("net2", ())],
            [Steer("eth0", BOTH), Steer("net1", BOTH, ((4, "10.0.0.1"), (6, "fd00::1")))],
        ),
        (
            [("eth0", None), ("net1", ("10.0.0.1",)), ("net2", ("fd00::1",))],
            [Steer("eth0", BOTH), Steer("net1", BOTH, ((4, "10.0.0.1"),)), Steer("net2", BOTH, ((6, "fd00::1"),))],
        ),
    ],
)
def test_each_family_goes_where_it_is_asked(
    asked: list[tuple[str, tuple[str, ...] | None]], expected: list[Steer]
) -> None:
    assert steering(asked) == expected


@pytest.mark.parametrize(
    "asked",
    [
        [("net1", ("10.0.0.1", "10.0.0.2"))],
        [("net1", ("10.0.0.1",)), ("net2", ("10.0.0.2",))],
        [("net1", ("fe80::1", "fd00::1"))],
        [("net1", ("10.0.0.0/24",))],
        [("net1", ("gateway",))],
    ],
)
def test_what_no_kernel_can_have_is_refused(asked: list[tuple[str, tuple[str, ...]]]) -> None:
    with pytest.raises(CniError, match="default-route") as caught:
        steering(asked)
    assert caught.value.code == 7


@given(st.lists(st.text(max_size=12), max_size=3))
def test_any_text_is_addresses_or_an_error(texts: list[str]) -> None:
    try:
        families = [family for family, _ in parsed(texts)]
    except CniError:
        return
    assert len(families) == len(set(families)) == len(texts)


def test_the_result_says_what_the_kernel_has() -> None:
    routes = [
        cni.CniRoute("0.0.0.0/0", "10.0.0.1"),
        cni.CniRoute("::/0", "fd00::1"),
        cni.CniRoute("10.9.0.0/16", "10.0.0.2"),
    ]
    step = Steer("net1", frozenset({4}), ((4, "10.0.0.9"),))
    assert steered(cni.CniResult(routes=routes), step).routes == [
        cni.CniRoute("::/0", "fd00::1"),
        cni.CniRoute("10.9.0.0/16", "10.0.0.2"),
        cni.CniRoute("0.0.0.0/0", "10.0.0.9"),
    ]
