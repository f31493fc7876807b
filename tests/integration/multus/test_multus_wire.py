"""Upstream's recorded requests, replayed against hotnic's daemon: what it answers otherwise, and why.

Each difference stands in one table below, and the tables hold nothing else: a difference that is new or gone fails a
test. The other direction, hotnic's own requests, is in ``tests/integration/networks/test_networks_wire.py``.
"""

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.multus_wire.recording import RUNTIME_STATUS, V4_2_4, V4_3_0, V4_3_0_CNI_1_0_0, WireRecording
from tests.support.multus_wire.replay import NodePaths, Replay, recorded_node
from tests.support.node.cni import leases, real_plugins
from tests.support.node.multus_daemon import running_daemon


@dataclass(frozen=True)
class Known:
    """Differences for one reason.

    :ivar field: the field that differs: of the response, of network-status, or the text of an Event.
    :ivar values: hotnic's value, by the exchange or the step.
    """

    why: str
    field: str
    values: dict[str, Any]


def known(*rows: Known) -> dict[tuple[str, str], Any]:
    """Return the rows by place and field."""
    return {(where, row.field): value for row in rows for where, value in row.values.items()}


def both(where: str) -> tuple[str, str]:
    """Return a step that was recorded for ``/cni`` and for ``/delegate``."""
    return f"cni-{where}", f"delegate-{where}"


def each(places: Iterable[str], value: Any) -> dict[str, Any]:
    """Return one value for several places."""
    return dict.fromkeys(places, value)


NAMELESS: Final = [
    f"{step}: {command} (nameless)"
    for step in ("hotplug-nameless", "hotplug-second-fails")
    for command in ("ADD", "DEL")
]
GONE: Final = "pod default/pod-gone with UID 00000000-0000-4000-8000-0000000000ff: pods 'pod-gone' not found"
NO_NETNS: Final = "no network namespace at /var/run/netns/cni-0000000f-0000-0000-0000-00000000000"
TRUNCATED: Final = "Input data was truncated"

FORM = Known(
    "an error is a CNI error document with the plugin's own code: the form that upstream has since v4.2.4 for an "
    "error that still has its code; upstream's other errors are text",
    "code",
    {
        **each(NAMELESS, 4),
        **each(both("no-command"), 4),
        **each(both("null"), 4),
        **each(both("unknown-command"), 4),
        **each(both("no-netns-key"), 4),
        **each(both("no-args-key"), 4),
        **each(both("args-no-equals"), 4),
        **each(both("args-no-pod"), 4),
        **each(both("config-no-json"), 6),
        "delegate-no-config": 6,
        "delegate-gc": 4,
        "delegate-bad-mac": 7,
        "delegate-bad-ip": 7,
        "delegate-add-eth0": 7,
        "runtime-add-b: ADD eth0": 7,
        "runtime-add-d: ADD eth0": 7,
        "shim-add-uid": 3,
        "delegate-uid": 3,
        "delegate-add-pod-gone": 3,
        "shim-add-netns-gone": 3,
        "delegate-add-netns-gone": 3,
        "hotplug-plugin-fails: ADD hp3": 999,
        "hotplug-plugin-fails: DEL hp3": 999,
        "delegate-add-plugin-fails": 999,
        "delegate-del-plugin-fails": 999,
        "runtime-add-c: ADD eth0": 999,
        "hotplug-no-plugin: ADD hp4": 999,
        "hotplug-no-plugin: DEL hp4": 999,
        "delegate-add-no-plugin": 999,
        "delegate-del-no-plugin": 999,
    },
)
TEXTS = Known(
    "hotnic's own words; upstream's are those of Go's libraries or of a plugin that hotnic does not start, or they "
    "do not name the object",
    "text",
    {
        **each(NAMELESS, "CNI_IFNAME '' is not a link name of 1 to 15 characters"),
        **each((*both("malformed"), *both("empty")), f"request body: {TRUNCATED}\n"),
        **each(both("bad-base64"), "request body: config is not base64: Only base64 data is allowed\n"),
        **each((*both("config-no-json"), "delegate-no-config"), f"CNI configuration is not a JSON object: {TRUNCATED}"),
        "delegate-bad-mac": "mac 'zz' is not a MAC address",
        "delegate-bad-ip": "ips: '203.0.113' does not appear to be an IPv4 or IPv6 interface",
        "delegate-add-pod-gone": f"cannot get {GONE}",
        "shim-add-netns-gone": f"{NO_NETNS}4",
        "delegate-add-netns-gone": f"{NO_NETNS}5",
        "runtime-add-d: ADD eth0": f"annotation k8s.v1.cni.cncf.io/networks: {TRUNCATED}",
        "healthz-put": "PUT is not allowed on /healthz; allowed: GET,POST\n",
        "get-cni": "GET is not allowed on /cni; allowed: POST\n",
        "put-delegate": "PUT is not allowed on /delegate; allowed: POST\n",
    },
)
NO_SUCH_PATH = Known(
    "404 has a line of text, upstream's has no body", "content-type", {"no-such-path": "text/plain; charset=utf-8"}
)
MTU = Known(
    "the MTU of the link, which plugins before CNI 1.1.0 do not report",
    "interfaces[2].mtu",
    each(
        (
            *("runtime-add: ADD eth0", "runtime-add-e", "hotplug-two: ADD hp1", "hotplug-two: ADD hp2"),
            *("hotplug-after-failure", "hotplug-second-fails: ADD hp6", "delegate-add", "delegate-add-attributes"),
            *("delegate-add-no-uid", "delegate-add-after-failure"),
        ),
        1500,
    ),
)
STATUS_MTU = [
    Known(MTU.why, f"{entry}.mtu", {f"{step}: network-status": 1500})
    for step, entries in (
        ("runtime-add", ("peer eth0", "default/net-a net1", "default/net-b net2")),
        ("runtime-add-e", ("peer eth0", "default/net-a net1", "default/net-c ifc")),
    )
    for entry in entries
]
EVENTS = [
    Known(
        "the networks controller reports a hot-plug, the daemon does not report it once more",
        f"multus Normal AddedInterface: Add {text}",
        {f"{step}: Events": False},
    )
    for step, text in (
        ("hotplug-two", "hp1 [] from net-c"),
        ("hotplug-two", "hp2 [203.0.113.12/24] from net-b"),
        ("hotplug-after-failure", "hp3 [] from net-c"),
        ("hotplug-second-fails", "hp6 [] from net-c"),
    )
]
CLEANUP = Known(
    "what a failed ADD may have left is not forgotten silently",
    "multus Warning NetworkCleanupFailed: network default/net-fail on interface hp3: DEL failed and is not tried "
    'again: plugin type="bridge" failed (del): invalid CIDR address: 203.0.113.0/33',
    {"hotplug-after-failure: Events": True},
)
OUTCOMES = [
    Known(
        "DEL of a primary network with a list of plugins succeeds and frees its lease; upstream's daemon runs it with "
        "a configuration that has lost the plugins' keys (multus-cni#1449), and its shim hides the failure",
        "status",
        each((*(f"runtime-add-{pod}: DEL eth0" for pod in "bcd"), "runtime-del", "runtime-del-e"), 200),
    ),
    Known("the same ADD once more returns the result of the first (ADR 25)", "status", {"delegate-add-again": 200}),
    Known(
        "CHECK runs the plugins that can CHECK; upstream's cannot run it for a list or for a CNI version below 0.4.0",
        "status",
        {"delegate-check": 200, "delegate-check-list": 200},
    ),
    Known("DEL does not need the pod: it may be gone before its attachments", "status", {"delegate-del-pod-gone": 200}),
    Known(
        "ADD for a pod that is gone fails (ADR 25); upstream's daemon panics and closes the connection below CNI "
        "1.0.0, and reports success with an address of 0.0.0.0/0 from then on",
        "status",
        {"shim-add-pod-gone": 400},
    ),
    Known("as above", "code", {"shim-add-pod-gone": 3}),
    Known("as above", "text", {"shim-add-pod-gone": f"cannot get {GONE}"}),
]
COMMON = known(FORM, TEXTS, NO_SUCH_PATH, MTU, *STATUS_MTU, *EVENTS, CLEANUP, *OUTCOMES)
ONLY_BELOW_1_0_0 = known(
    Known(
        "a prevResult of a newer CNI version than the daemon's is no mistake of the runtime",
        "status",
        {"shim-check-110": 200},
    )
)


@asynccontextmanager
async def replaying(folder: Path, recording: WireRecording) -> AsyncIterator[Replay]:
    """Run a daemon on the recorded node."""
    plugins, paths = real_plugins(folder / "bin", "bridge", "host-local", "tuning"), NodePaths(folder)
    with recorded_node(recording, paths):
        async with running_daemon(folder, plugins, cniVersion=recording.cni_version) as daemon:
            replay = Replay(recording, daemon, paths)
            replay.prepare()
            yield replay


@pytest.mark.parametrize(
    ("recording", "expected"),
    [(V4_3_0, COMMON | ONLY_BELOW_1_0_0), (V4_3_0_CNI_1_0_0, COMMON)],
    ids=[V4_3_0.label, V4_3_0_CNI_1_0_0.label],
)
async def test_every_recorded_request_is_answered_as_upstream_but_for_the_table(
    tmp_path: Path, recording: WireRecording, expected: dict[tuple[str, str], Any]
) -> None:
    async with replaying(tmp_path, recording) as replay:
        await replay.run()
        assert replay.found == expected
        # Upstream leaves eth0's lease of every pod, and everything that was hot-plugged and not taken out before.
        assert {name: leases(tmp_path, name) for name in ("peer", "net-a", "net-b")} == {
            "peer": [],
            "net-a": [],
            "net-b": [],
        }
        # The file of a deleted record goes after the response, in a worker thread.
        await replay.daemon.records.flush()
        assert replay.daemon.records.ids() == []


async def test_status_and_gc_need_no_container_as_since_v4_3_0(tmp_path: Path) -> None:
    """v4.2.4 refuses them without ``CNI_CONTAINERID``, and so refused what the runtime asks of a whole node."""
    other = [step for step, base in zip(V4_2_4.steps, V4_3_0.steps, strict=True) if step != base]
    assert [step.name for step in other] == ["shim-status-110", "shim-gc-110", "delegate-gc"]
    async with replaying(tmp_path, V4_2_4) as replay:
        for step in (V4_2_4.step("runtime-add"), *other):
            for exchange in step.exchanges:
                await replay.send(exchange)
        assert replay.found == {
            ("runtime-add: ADD eth0", "interfaces[2].mtu"): 1500,
            ("shim-status-110", "status"): 200,
            ("shim-gc-110", "status"): 200,
            ("delegate-gc", "code"): 4,
        }


async def test_status_of_containerd_is_answered_as_upstream_answers_it(tmp_path: Path) -> None:
    """containerd 2.4.2 asks with empty variables, about every 5 s."""
    async with replaying(tmp_path, V4_3_0) as replay:
        (exchange,) = RUNTIME_STATUS.exchanges
        await replay.send(exchange)
        assert replay.found == {}
        (replay.daemon.config.conf_dir / "10-peer.conflist").unlink()
        await replay.send(exchange)
        assert replay.found[RUNTIME_STATUS.name, "status"] == 400
