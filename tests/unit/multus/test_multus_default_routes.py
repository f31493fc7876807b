"""``default-route``: which attachment loses, keeps or gets which default routes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import cni
from services.multus.cni.default_routes import (
    DefaultRouteChange,
    parse_gateways,
    plan_default_routes,
    result_with_default_routes,
)
from services.multus.cni.errors import CniError

V4, BOTH = frozenset({4}), frozenset({4, 6})


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        ([("eth0", None), ("net1", None)], []),
        ([("eth0", None), ("net1", ())], []),
        (
            [("eth0", None), ("net1", ("10.0.0.1",)), ("net2", None)],
            [
                DefaultRouteChange("eth0", frozenset({4})),
                DefaultRouteChange("net1", frozenset({4}), ((4, "10.0.0.1"),)),
                DefaultRouteChange("net2", frozenset({4})),
            ],
        ),
        (
            [("eth0", None), ("net1", ("10.0.0.1", "FD00::1")), ("net2", ())],
            [DefaultRouteChange("eth0", BOTH), DefaultRouteChange("net1", BOTH, ((4, "10.0.0.1"), (6, "fd00::1")))],
        ),
        (
            [("eth0", None), ("net1", ("10.0.0.1",)), ("net2", ("fd00::1",))],
            [
                DefaultRouteChange("eth0", BOTH),
                DefaultRouteChange("net1", BOTH, ((4, "10.0.0.1"),)),
                DefaultRouteChange("net2", BOTH, ((6, "fd00::1"),)),
            ],
        ),
    ],
)
def test_each_family_goes_to_the_requesting_network(
    requested: list[tuple[str, tuple[str, ...] | None]], expected: list[DefaultRouteChange]
) -> None:
    assert plan_default_routes(requested) == expected


@pytest.mark.parametrize(
    "requested",
    [
        [("net1", ("10.0.0.1", "10.0.0.2"))],
        [("net1", ("10.0.0.1",)), ("net2", ("10.0.0.2",))],
        [("net1", ("fe80::1", "fd00::1"))],
        [("net1", ("10.0.0.0/24",))],
        [("net1", ("gateway",))],
    ],
)
def test_conflicting_or_invalid_gateways_are_refused(requested: list[tuple[str, tuple[str, ...]]]) -> None:
    with pytest.raises(CniError, match="default-route") as caught:
        plan_default_routes(requested)
    assert caught.value.code == 7


@given(st.lists(st.text(max_size=12), max_size=3))
def test_parse_gateways_returns_addresses_or_raises(texts: list[str]) -> None:
    try:
        families = [family for family, _ in parse_gateways(texts)]
    except CniError:
        return
    assert len(families) == len(set(families)) == len(texts)


def test_the_result_matches_the_kernels_routes() -> None:
    routes = [
        cni.CniRoute("0.0.0.0/0", "10.0.0.1"),
        cni.CniRoute("::/0", "fd00::1"),
        cni.CniRoute("10.9.0.0/16", "10.0.0.2"),
    ]
    change = DefaultRouteChange("net1", frozenset({4}), ((4, "10.0.0.9"),))
    assert result_with_default_routes(cni.CniResult(routes=routes), change).routes == [
        cni.CniRoute("::/0", "fd00::1"),
        cni.CniRoute("10.9.0.0/16", "10.0.0.2"),
        cni.CniRoute("0.0.0.0/0", "10.0.0.9"),
    ]
