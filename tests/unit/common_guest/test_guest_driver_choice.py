"""Which driver reaches a guest."""

import tempfile
from pathlib import Path

import pytest

from services.common.cri.client import CriClient
from services.common.guest.agent import QemuGuestAgent
from services.common.guest.drivers import DriverSetting, domain_name, driver_factory
from services.common.guest.qmp import QmpGuest
from services.common.runtime.settings import SettingsError
from tests.support.telemetry.spans import recording_telemetry


@pytest.mark.parametrize(
    ("choice", "has_binding", "monitor"),
    [
        pytest.param("qmp", True, False, id="qmp is chosen"),
        pytest.param("auto", True, True, id="the directory of the monitor exists"),
        pytest.param("auto", False, False, id="the binding is not installed"),
    ],
)
def test_a_guest_is_reached_by_qmp(choice: DriverSetting, has_binding: bool, monitor: bool) -> None:
    telemetry, _ = recording_telemetry()
    with tempfile.TemporaryDirectory(prefix="hn-") as folder:
        if monitor:
            Path(folder, "uid-1").mkdir()
        make_driver = driver_factory(
            choice,
            qmp_socket=f"{folder}/{{uid}}/qmp.sock",
            agent_socket=f"{folder}/{{uid}}/agent.sock",
            cri=CriClient(f"{folder}/cri.sock", telemetry),
            host_root="/",
            tracer=telemetry.tracer,
            has_binding=has_binding,
        )
        guest, agent = make_driver("uid-1", ("default", "vm1"), "pod-1")
    assert isinstance(guest, QmpGuest)
    assert isinstance(agent, QemuGuestAgent)


def test_libvirt_without_its_binding_is_a_settings_error() -> None:
    telemetry, _ = recording_telemetry()
    cri = CriClient("/nowhere", telemetry)
    with pytest.raises(SettingsError, match=r"HOTNIC_GUEST_DRIVER.*hotnic\[libvirt\]"):
        driver_factory(
            "libvirt",
            qmp_socket="",
            agent_socket="",
            cri=cri,
            host_root="/",
            tracer=telemetry.tracer,
            has_binding=False,
        )


def test_a_domain_has_the_name_that_kubevirt_gives_it() -> None:
    assert domain_name("default", "vm1") == "default_vm1"
