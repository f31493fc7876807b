"""A real Prometheus scrapes the roles of a lab, and evaluates the chart's rules on what it has scraped.

It uses the scrape configuration of docker-compose.yml. Prometheus' operator and Grafana are not run.
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from lab.layout import HEALTH_PORTS, ROLES
from lab.namespaces import control
from tests.support.bus.client import nats_client
from tests.support.interop.chart import CHART, CHECKOUT, VALUE_SETS, find, objects, render
from tests.support.interop.prometheus import Prometheus, compose_configuration, prometheus
from tests.support.kube.control_plane import until
from tests.support.lab.running import SAMPLE_NAD, SAMPLE_VM, Lab, running_lab
from tests.support.leftovers import adopt_orphans, nothing_left_behind

VMI = f"/apis/subresources.hotnic.io/v1/namespaces/default/virtualmachineinstances/{SAMPLE_VM}"
ROUNDS, AT_ONCE = 4, 5
"""Plugs while series are counted. A VM of the lab has eight free slots."""
IN_CLUSTER = "hotnic_tls_certificate_expires_seconds"
"""Only an api that makes its own certificate has it: tests/interop/cluster/test_roles.py."""

adopt_orphans()

JOB = '{job="hotnic"}'
"""Selects the series of all roles."""


@pytest.fixture(scope="module", autouse=True)
def nothing_left() -> Iterator[None]:
    """Fail if a link, network namespace, mount or process is left."""
    with nothing_left_behind():
        yield


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, nothing_left: None) -> Iterator[Lab]:
    """A lab with guest doubles."""
    with running_lab(tmp_path_factory.mktemp("lab"), guests="double") as running:
        yield running


@pytest.fixture(scope="module")
def scraped(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes the lab's roles and has the chart's rules."""
    chart = objects(render(*VALUE_SETS["everything"], "--set", "metrics.prometheusRule.enabled=true"))
    groups = find(chart, "PrometheusRule", "hotnic")["spec"]["groups"]
    netns = Path(f"/proc/{control.peer_pid(lab.layout.control_socket)}/ns/net")
    targets = {role: f"127.0.0.1:{HEALTH_PORTS[role]}" for role in ROLES}
    with prometheus(tmp_path_factory.mktemp("prometheus"), netns, targets, groups) as running:
        yield running


@pytest.fixture(scope="module")
def plugged(lab: Lab) -> None:
    """An interface was plugged and unplugged."""
    nad = ("--network-attachment-definition-name", SAMPLE_NAD)
    for command, *options in (("addinterface", *nad), ("removeinterface",)):
        done = lab.hotnic(command, SAMPLE_VM, "--name", "blue", *options, "--wait")
        assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def dead_letter(lab: Lab, scraped: Prometheus) -> None:
    """A message that no role can use was published, after the roles had been scraped."""
    until(lambda: all_up(scraped), lambda: str(scraped.targets()))

    async def publish() -> None:
        async with nats_client(lab.unrestricted_nats) as client:
            await client.publish("hotplug.requested.lab.default.vm", b"no event")

    asyncio.run(publish())


@pytest.fixture(scope="module")
def failing(lab: Lab, scraped: Prometheus) -> Iterator[str]:
    """An interface that cannot be plugged, because its network names a plugin that is not installed."""
    config = {"cniVersion": "1.0.0", "type": "not-installed"}
    network = {
        "apiVersion": "k8s.cni.cncf.io/v1",
        "kind": "NetworkAttachmentDefinition",
        "metadata": {"name": "broken", "namespace": "default"},
        "spec": {"config": json.dumps(config)},
    }
    lab.kubectl("create", "-f", "-", stdin=json.dumps(network))
    request(lab, "addinterface", "red", networkAttachmentDefinitionName="broken")
    yield "red"
    request(lab, "removeinterface", "red")
    until(lambda: "red" not in interfaces(lab), lambda: lab.hotnic("status", SAMPLE_VM).stdout)


def request(lab: Lab, operation: str, interface: str, **fields: str) -> None:
    """Request a plug or unplug, which is not awaited."""
    code, output = lab.raw(f"{VMI}/{operation}", json.dumps({"name": interface, **fields}))
    assert code == 0, output["stderr"]


def interfaces(lab: Lab) -> list[str]:
    """Return the names of the interfaces in the VMI's spec."""
    return [str(one["name"]) for one in lab.vmi(SAMPLE_VM).spec.domain.devices.interfaces or ()]


def all_up(scraped: Prometheus) -> bool:
    """Return whether the last scrape of every role was successful."""
    targets = scraped.targets()
    # Prometheus finds its targets some seconds after it serves its API.
    return targets.keys() == set(ROLES) and all(target["health"] == "up" for target in targets.values())


def test_docker_compose_scrapes_every_role() -> None:
    services = yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text())["services"]
    expected = set()
    for role in ROLES:
        host = services[role].get("network_mode", f"service:{role}").removeprefix("service:")
        expected.add(f"{host}:{services[role]['environment']['HOTNIC_HEALTH_LISTEN'].rpartition(':')[2]}")
    (job,) = compose_configuration()["scrape_configs"]
    assert {target for one in job["static_configs"] for target in one["targets"]} == expected


def test_every_role_is_scraped_without_error(scraped: Prometheus, plugged: None) -> None:
    until(lambda: all_up(scraped), lambda: str(scraped.targets()))
    until(
        lambda: {one["pod"] for one in scraped.series('{__name__=~"(hotnic|multus)_.+"}')} == set(ROLES),
        lambda: "a role has no metrics",
    )


def test_every_metric_is_typed_and_documented(
    scraped: Prometheus, plugged: None, dead_letter: None, failing: str
) -> None:
    until(lambda: scraped.alerts("HotnicPlugFailures"), lambda: str(scraped.rules()))
    metadata = scraped.get("targets/metadata")
    found = {one["metric"]: one for one in metadata if one["metric"].startswith(("hotnic", "multus"))}
    assert [name for name, one in found.items() if one["type"] == "unknown" or not one["help"]] == []
    page = (CHECKOUT / "docs" / "observability.md").read_text()
    assert set(re.findall(r"^\| `(\w+)`", page, re.MULTILINE)) >= found.keys()


def test_every_series_that_a_rule_or_the_dashboard_selects_exists(
    scraped: Prometheus, plugged: None, dead_letter: None, failing: str
) -> None:
    dashboard = json.loads((CHART / "files" / "grafana-dashboard.json").read_text())
    shown = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    queries = [rule["query"] for rule in scraped.rules().values()]
    selectors = {selector for query in (*queries, *shown) for selector in scraped.selectors(query)}
    in_cluster = {selector for selector in selectors if IN_CLUSTER in selector}
    assert len(in_cluster) == 1

    def missing() -> list[str]:
        return [selector for selector in selectors - in_cluster if not scraped.series(selector)]

    until(lambda: not missing(), lambda: str(missing()))
    until(lambda: {rule["health"] for rule in scraped.rules().values()} == {"ok"}, lambda: str(scraped.rules()))


def test_a_plug_that_fails_is_alerted(scraped: Prometheus, failing: str) -> None:
    until(lambda: scraped.alerts("HotnicPlugFailures"), lambda: str(scraped.rules()))
    until(lambda: scraped.alerts("HotnicOperationsPending"), lambda: str(scraped.rules()))
    (failure,) = scraped.alerts("HotnicPlugFailures")
    assert failure["stage"] == "multus-attached"
    (pending,) = scraped.alerts("HotnicOperationsPending")
    assert (pending["kind"], pending["stage"]) == ("plug", "pod-annotated")


def test_the_first_dead_letter_is_alerted(scraped: Prometheus, dead_letter: None) -> None:
    until(lambda: scraped.alerts("HotnicDeadLetters"), lambda: str(scraped.query("hotnic_dead_letters_total")))
    assert {alert["reason"] for alert in scraped.alerts("HotnicDeadLetters")} == {"Undecodable"}


def test_a_lost_bus_is_alerted_for_the_roles_that_use_it(lab: Lab, scraped: Prometheus) -> None:
    def without() -> set[str]:
        return {alert["pod"] for alert in scraped.alerts("HotnicBusDown")}

    until(lambda: scraped.query("hotnic_bus_up") and not without(), lambda: str(scraped.query("hotnic_bus_up")))
    with lab.stopped("nats"):
        until(lambda: without() == {"api", "controller", "networks", "handler"}, lambda: str(without()))
    until(lambda: not without(), lambda: str(without()))


def test_the_number_of_series_does_not_grow_with_the_number_of_operations(lab: Lab, scraped: Prometheus) -> None:
    names = [f"series-{number}" for number in range(ROUNDS * AT_ONCE)]
    plug_and_unplug(lab, scraped, names[:AT_ONCE])
    before = count_by_name(scraped)
    for first in range(AT_ONCE, len(names), AT_ONCE):
        plug_and_unplug(lab, scraped, names[first : first + AT_ONCE])
    grown = count_by_name(scraped) - before
    # Rare outcomes and reasons may have come up; a label with a value of its own for each operation has not.
    assert {name: number for name, number in grown.items() if number >= len(names) - AT_ONCE} == {}
    vmi = lab.vmi(SAMPLE_VM)
    named = (*names, SAMPLE_VM, SAMPLE_NAD, vmi.metadata.uid, lab.pod(vmi).metadata.uid)
    values = {value for one in scraped.series(JOB) for value in one.values()}
    assert {value for value in values if any(name in value for name in named)} == set()
    # What the alert about slow plugs compares with its threshold.
    quantile, _, threshold = scraped.rules()["HotnicPlugSlow"]["query"].rpartition(" > ")
    ((_, seconds),) = scraped.query(quantile)
    assert 0 < seconds < float(threshold)


def plug_and_unplug(lab: Lab, scraped: Prometheus, names: list[str]) -> None:
    """Plug interfaces, wait until the roles have counted them, and unplug them likewise."""

    def reached(stage: str) -> float:
        return sum(value for _, value in scraped.query(f'hotnic_stage_seconds_count{{stage="{stage}"}}'))

    plugs, unplugs = reached("guest-attached") + len(names), reached("multus-detached") + len(names)
    for name in names:
        request(lab, "addinterface", name, networkAttachmentDefinitionName=SAMPLE_NAD)
    until(lambda: reached("guest-attached") >= plugs, lambda: lab.hotnic("status", SAMPLE_VM).stdout)
    for name in names:
        request(lab, "removeinterface", name)
    until(lambda: reached("multus-detached") >= unplugs, lambda: lab.hotnic("status", SAMPLE_VM).stdout)
    until(lambda: not {*names} & {*interfaces(lab)}, lambda: lab.hotnic("status", SAMPLE_VM).stdout)


def count_by_name(scraped: Prometheus) -> Counter[str]:
    """Return how many series there are of each metric; the buckets of a histogram count as one."""
    found = {frozenset((name, value) for name, value in one.items() if name != "le") for one in scraped.series(JOB)}
    return Counter(dict(one)["__name__"] for one in found)
