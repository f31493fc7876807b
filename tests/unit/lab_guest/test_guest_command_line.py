"""QEMU's argument vector, a pure function of the spec."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from lab.guest import double
from lab.guest.qemu import BootNic, GuestSpec, command_line
from lab.node.guest_process import double_command_line

SPEC = GuestSpec(
    name="vm",
    uid="5f1d7b0e-8c4c-4b8f-9d57-2a2a3c1f0a11",
    folder=Path("/run/hotnic/guests/u"),
    qemu=Path("/usr/bin/qemu-system-x86_64"),
    kernel=Path("/k"),
    initrd=Path("/i"),
    nics=(BootNic("default", "02:00:00:00:00:01"),),
)


def values(arguments: list[str], option: str) -> list[str]:
    return [value for flag, value in pairwise(arguments) if flag == option]


def test_sockets_have_the_paths_that_the_handler_uses() -> None:
    chardevs = values(command_line(SPEC), "-chardev")
    assert "socket,id=qmp,path=/run/hotnic/guests/u/qmp.sock,server=on,wait=off" in chardevs
    assert "socket,id=agent,path=/run/hotnic/guests/u/agent.sock,server=on,wait=off" in chardevs
    assert any("lab-qmp.sock" in value for value in chardevs)
    assert any("logfile=/run/hotnic/guests/u/console.log" in value for value in chardevs)


def test_each_hot_plug_port_has_its_own_chassis_and_slot() -> None:
    ports = [value for value in values(command_line(SPEC), "-device") if value.startswith("pcie-root-port")]
    assert ports == [f"pcie-root-port,id=rp{n},bus=pcie.0,chassis={n},slot={n},hotplug=on" for n in range(1, 9)]
    assert not [v for v in command_line(replace(SPEC, ports=0)) if v.startswith("pcie-root-port")]


def test_primary_nic_uses_user_networking_and_its_alias() -> None:
    arguments = command_line(SPEC)
    assert values(arguments, "-netdev") == ["user,id=host-ua-default,ipv6=off"]
    assert "virtio-net-pci,id=ua-default,netdev=host-ua-default,mac=02:00:00:00:00:01,romfile=" in arguments


def test_accelerator_option_follows_spec() -> None:
    assert values(command_line(SPEC), "-accel")[0].startswith("tcg")
    assert values(command_line(replace(SPEC, accel="kvm")), "-accel") == ["kvm"]


def test_tcg_guest_uses_acpi_timer_instead_of_tsc() -> None:
    (emulated,) = values(command_line(SPEC), "-append")
    (virtual,) = values(command_line(replace(SPEC, accel="kvm")), "-append")
    assert "notsc" in emulated.split()
    assert "notsc" not in virtual.split()


def test_firmware_option_is_set_only_with_firmware() -> None:
    assert values(command_line(SPEC), "-bios") == []
    assert values(command_line(SPEC, Path("/q.rom")), "-bios") == ["/q.rom"]


@given(st.text(min_size=1))
def test_comma_in_name_adds_no_option(name: str) -> None:
    (value,) = values(command_line(replace(SPEC, name=name, nics=())), "-name")
    assert value.replace(",,", "") == f"guest={name}".replace(",", "")


def test_double_gets_same_sockets_nics_and_ports_as_qemu() -> None:
    _python, _without_site, _module, name, *arguments = double_command_line(
        replace(SPEC, ports=3, cores=2, double=True)
    )
    assert name == double.__name__
    options = double.argument_parser().parse_args(arguments)
    folder = "/run/hotnic/guests/u"
    assert options.monitor == [f"{folder}/qmp.sock", f"{folder}/lab-qmp.sock"]
    assert (options.agent, options.console) == (f"{folder}/agent.sock", f"{folder}/console.log")
    assert (options.nic, options.ports, options.cpus) == (["default=02:00:00:00:00:01"], 3, 2)
