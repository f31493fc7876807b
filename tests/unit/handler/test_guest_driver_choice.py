"""Which driver a guest is reached by."""

import tempfile
from pathlib import Path

import pytest

from services.common.cri.client import Cri
from services.common.settings import SettingsError
from services.handler.guest.agent import Agent
from services.handler.guest.drivers import DriverSetting, domain_name, drivers
from services.handler.guest.qmp import QmpGuest
from tests.support.spans import recording_telemetry


@pytest.mark.parametrize(
    ("choice", "bound", "monitor"),
    [
        pytest.param("qmp", True, False, id="as told, whatever there is"),
        pytest.param(
            "auto", True, True, id="a guest that has a monitor or will have one, although the binding is there"
        ),
        pytest.param("auto", False, False, id="without the binding, nothing else can"),
    ],
)
def test_a_guest_is_reached_by_its_monitor(choice: DriverSetting, bound: bool, monitor: bool) -> None:
    telemetry, _ = recording_telemetry()
    with tempfile.TemporaryDirectory(prefix="hn-") as folder:
        if monitor:
            Path(folder, "uid-1").mkdir()
        drive = drivers(
            choice,
            qmp_socket=f"{folder}/{{uid}}/qmp.sock",
            agent_socket=f"{folder}/{{uid}}/agent.sock",
            cri=Cri(f"{folder}/cri.sock", telemetry),
            host_root="/",
            tracer=telemetry.tracer,
            bound=bound,
        )
        guest, agent = drive("uid-1", ("default", "vm1"), "pod-1")
    assert isinstance(guest, QmpGuest)
    assert isinstance(agent, Agent)


def test_libvirt_without_its_binding_is_refused_at_the_start() -> None:
    telemetry, _ = recording_telemetry()
    cri = Cri("/nowhere", telemetry)
    with pytest.raises(SettingsError, match=r"HOTNIC_GUEST_DRIVER.*hotnic\[libvirt\]"):
        drivers("libvirt", qmp_socket="", agent_socket="", cri=cri, host_root="/", tracer=telemetry.tracer, bound=False)


def test_a_domain_is_named_as_kubevirt_names_it() -> None:
    assert domain_name("default", "vm1") == "default_vm1"
