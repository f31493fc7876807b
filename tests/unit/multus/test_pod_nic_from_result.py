"""Conversion of a CNI result to network-status entries and to the record of a pod interface."""

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import cni
from schemas.kubernetes.networks import Dns, NetworkStatus
from schemas.kubernetes.operations import PodNic, RecordedRoute
from services.common.domain.pod_nic import build_network_status, build_network_statuses, build_pod_nic
from services.multus.cni import results
from services.multus.cni.errors import CniError

RESULT = cni.CniResult(
    "1.1.0",
    [
        cni.CniInterface("br0", "02:00:00:00:00:10"),
        cni.CniInterface("vethx", "02:00:00:00:00:11"),
        cni.CniInterface("net1", "0A:00:00:00:00:01", 1400, "/ns"),
    ],
    [
        cni.CniIp("10.0.0.5/24", "10.0.0.1", 2),
        cni.CniIp("fd00::5/64", None, 2),
        cni.CniIp("10.9.9.9/32", None, 0),
    ],
    [cni.CniRoute("0.0.0.0/0"), cni.CniRoute("10.8.0.0/16", "10.0.0.9", priority=5), cni.CniRoute("::/0", "fd00::1")],
    Dns(nameservers=["10.0.0.2"], domain="example", search=["a.example"]),
)


def test_network_status_has_the_sandbox_link_and_its_addresses() -> None:
    assert build_network_status("default/blue", "net1", RESULT) == NetworkStatus(
        name="default/blue",
        interface="net1",
        ips=["10.0.0.5", "fd00::5"],
        mac="0A:00:00:00:00:01",
        mtu=1400,
        dns=RESULT.dns,
        gateway=["10.0.0.1", "fd00::1"],
    )
    bare = build_network_status("pods", "eth0", cni.CniResult(), default=True)
    assert bare == NetworkStatus(name="pods", interface="eth0", default=True)


def test_network_status_has_an_entry_per_link() -> None:
    """As upstream's builder for several links: addresses by index, without an index on the last link; one default."""
    assert build_network_statuses("pods", "eth0", RESULT, True) == [build_network_status("pods", "eth0", RESULT, True)]
    several = cni.CniResult(
        "1.1.0",
        [
            cni.CniInterface("eth0", "02:00:00:00:00:01", sandbox="/ns"),
            cni.CniInterface("host0", "02:00:00:00:00:02"),
            cni.CniInterface("udn1", "02:00:00:00:00:03", 1400, "/ns"),
        ],
        [cni.CniIp("10.0.0.5/24", None, 0), cni.CniIp("10.1.0.5/24", "10.1.0.1", 2), cni.CniIp("fd00::5/64")],
        [cni.CniRoute("0.0.0.0/0", "10.1.0.1")],
    )
    gateway = ["10.1.0.1"]
    assert build_network_statuses("pods", "eth0", several, True) == [
        NetworkStatus("pods", "eth0", ["10.0.0.5"], "02:00:00:00:00:01", gateway=gateway),
        NetworkStatus("pods", "udn1", ["10.1.0.5", "fd00::5"], "02:00:00:00:00:03", 1400, True, gateway=gateway),
    ]
    no_gateway = msgspec.structs.replace(several, ips=several.ips[:1], routes=[])
    assert [(s.interface, s.default) for s in build_network_statuses("pods", "eth0", no_gateway, True)] == [
        ("eth0", True),
        ("udn1", False),
    ]
    assert not [s for s in build_network_statuses("ns/nad", "net1", several) if s.default]


def test_the_record_has_what_setting_the_link_down_loses() -> None:
    assert build_pod_nic("uid", "abc", "net1", RESULT) == PodNic(
        pod_uid="uid",
        sandbox_id="abc",
        interface="net1",
        mac="0a:00:00:00:00:01",
        mtu=1400,
        ips=("10.0.0.5/24", "fd00::5/64"),
        routes=(
            RecordedRoute("0.0.0.0/0", "10.0.0.1"),
            RecordedRoute("10.8.0.0/16", "10.0.0.9", 5),
            RecordedRoute("::/0", "fd00::1"),
        ),
        nameservers=("10.0.0.2",),
        search=("a.example",),
        domain="example",
    )


def test_the_link_completes_a_result_without_mac_and_mtu() -> None:
    silent = cni.CniResult("1.1.0", [cni.CniInterface("net1", sandbox="/ns")])
    assert build_pod_nic("uid", "abc", "net1", silent) is None
    assert build_pod_nic("uid", "abc", "net1", silent, mac="02:00:00:00:00:01") is None
    record = build_pod_nic("uid", "abc", "net1", cni.CniResult(), mac="02:00:00:00:00:01", mtu=9000)
    assert record is not None
    assert (record.mac, record.mtu, record.ips) == ("02:00:00:00:00:01", 9000, ())
    named = build_pod_nic("uid", "abc", "net1", RESULT, mac="02:00:00:00:00:01", mtu=9000)
    assert named is not None
    assert (named.mac, named.mtu) == ("0a:00:00:00:00:01", 1400)


def test_a_result_of_an_old_plugin_is_completed_from_the_link() -> None:
    old = results.decode(b'{"cniVersion":"0.3.1","interfaces":[{"name":"net1","sandbox":"/ns"}]}', "p", "0.3.1", b"")
    done = results.fill_in_link(old, "net1", mac="02:00:00:00:00:01", mtu=1450)
    assert done.interfaces == [cni.CniInterface("net1", "02:00:00:00:00:01", 1450, "/ns")]
    assert results.fill_in_link(RESULT, "net1", mac="x", mtu=1) == RESULT
    assert results.fill_in_link(cni.CniResult(), "net1", mac="x", mtu=1) == cni.CniResult()


def test_null_counts_as_absent_anywhere() -> None:
    """Plugins that do not use libcni's types print ``null``."""
    empty = cni.CniResult("1.1.0")
    nulls = b'{"cniVersion":"1.0.0","interfaces":null,"ips":null,"routes":null,"dns":null}'
    assert results.decode(nulls, "p", "1.0.0", b"") == empty
    raw = (
        b'{"interfaces":[{"name":"a","mac":null}],"ips":[{"address":"10.0.0.1/24","gateway":""}],"dns":{"search":null}}'
    )
    found = results.decode(raw, "p", "1.0.0", b"")
    assert found == cni.CniResult("1.1.0", [cni.CniInterface("a")], [cni.CniIp("10.0.0.1/24", "")])
    assert build_network_status("n", "a", found).gateway is None


interfaces = st.builds(
    cni.CniInterface,
    st.text(min_size=1, max_size=5),
    mtu=st.none() | st.integers(68, 9000),
    sandbox=st.none() | st.just("/ns"),
)
ips = st.builds(
    cni.CniIp,
    st.sampled_from(["10.0.0.1/24", "fd00::1/64"]),
    st.none() | st.just("10.0.0.254"),
    st.none() | st.integers(0, 2),
)


@given(st.builds(cni.CniResult, st.just("1.1.0"), st.lists(interfaces, max_size=3), st.lists(ips, max_size=3)))
def test_results_survive_conversion_to_every_version(result: cni.CniResult) -> None:
    for version in ("0.3.0", *cni.SUPPORTED_VERSIONS):
        document = results.down_convert(result, version)
        assert document["cniVersion"] == version
        back = results.decode(msgspec.json.encode(document), "p", version, b"")
        assert back.ips == result.ips
        assert [i.name for i in back.interfaces] == [i.name for i in result.interfaces]
        if version == "1.1.0":
            assert back == result


@pytest.mark.parametrize(
    "raw",
    [
        b"{",
        b"[]",
        b'{"ips":"x"}',
        b"\xff",
        b'{"ips":[{"address":"10.0.0.300/24"}]}',
        b'{"ips":[{"address":"10.0.0.3/24","gateway":"none"}]}',
        b'{"routes":[{"dst":"everywhere"}]}',
        b'{"routes":[{"dst":"10.0.0.0/8","gw":"10.0.0.1/8"}]}',
    ],
)
def test_decode_refuses_what_is_not_a_result(raw: bytes) -> None:
    with pytest.raises(CniError, match="not a result"):
        results.decode(raw, "p", "1.0.0", b"")


EARLY = b'{"ip4":{"ip":"192.0.2.5/24","gateway":"192.0.2.1","routes":[{"dst":"0.0.0.0/0"}]},"ip6":{"ip":"fd00::5/64"}}'


def test_a_result_of_cni_0_2_0_has_the_addresses_of_the_link() -> None:
    """multus-cni#491: read as one of a later version, it has no address, and the guest gets none by DHCP."""
    result = results.decode(EARLY, "p", "0.2.0", b"")
    assert [(ip.address, ip.gateway) for ip in result.ips] == [("192.0.2.5/24", "192.0.2.1"), ("fd00::5/64", None)]
    assert [(route.dst, route.gw) for route in result.routes] == [("0.0.0.0/0", None)]
    filled = results.fill_in_link(result, "net1", mac="02:00:00:00:00:01", mtu=1450, early_in="/ns")
    status = build_network_status("n", "net1", filled)
    assert (status.interface, status.ips, status.mac) == ("net1", ["192.0.2.5", "fd00::5"], "02:00:00:00:00:01")
    assert build_pod_nic("uid", "sandbox", "net1", filled) is not None
    back = results.down_convert(filled, "0.1.0")
    assert back == {"cniVersion": "0.1.0", **json.loads(EARLY)}
    assert results.decode(json.dumps(back).encode(), "p", "1.0.0", b"").ips == result.ips


@pytest.mark.parametrize(
    ("raw", "code", "reason"),
    [
        (EARLY, 6, "has the addresses of CNI 0.2.0, and the version 1.0.0"),
        (b'{"cniVersion":"2.0.0","ips":[]}', 6, "CNI version '2.0.0' is not supported"),
        (b'{"cniVersion":"1.0.0","code":111,"msg":"no lease"}', 111, "no lease"),
        (b'{"cniVersion":"1.0.0","code":7}', 6, "error document with code 7"),
        (b"[" * 5000, 6, "is not a result"),
        (b'{"dns":' + b'{"a":' * 5000, 6, "is not a result"),
    ],
)
def test_what_cannot_be_read_is_an_error_and_never_a_result_without_addresses(
    raw: bytes, code: int, reason: str
) -> None:
    with pytest.raises(CniError, match=reason) as caught:
        results.decode(raw, "p", "1.0.0", b"")
    assert caught.value.code == code
