"""A VM takes as many NICs as it has slots, requested all at once; further requests are refused."""

import asyncio
import json

from schemas.kubernetes.operations import read_nic_slots
from services.cli.tracing.tracer import NoTraces
from services.common.domain.status_interfaces import DOMAIN, find_entry, parse_tokens
from services.common.kube.client import Kube
from services.common.kube.errors import KubeError
from tests.support.lab.running import SAMPLE_NAD, SLOTS, Lab, wait_until

SUBRESOURCES = "/apis/subresources.hotnic.io/v1/namespaces/default/virtualmachineinstances"


async def send_requests(lab: Lab, vm: str, verb: str, *names: str) -> list[str]:
    """Send all requests at once; return the error of each one, empty for an accepted request."""

    async def one(kube: Kube, name: str) -> str:
        body = {"name": name} | ({"networkAttachmentDefinitionName": SAMPLE_NAD} if verb == "addinterface" else {})
        try:
            await kube.request("PUT", f"{SUBRESOURCES}/{vm}/{verb}", body=body)
        except KubeError as error:
            return f"{error.status} {error.message}"
        return ""

    async with await Kube.connect(
        kubeconfig=str(lab.layout.kubeconfig), telemetry=NoTraces(), user_agent="hotnic-test"
    ) as kube:
        return list(await asyncio.gather(*(one(kube, name) for name in names)))


def in_domain(lab: Lab, vm: str) -> set[str]:
    entries = lab.vmi(vm).status.interfaces or []
    return {str(entry["name"]) for entry in entries if DOMAIN in parse_tokens(entry)} - {"default"}


async def in_guest(lab: Lab, vm: str, names: list[str]) -> None:
    """Wait until the guest's kernel has reported each of these NICs."""
    vmi = lab.vmi(vm)
    async with lab.console(vmi) as console:
        for name in names:
            await console.wait_for_link(str((find_entry(vmi.status.interfaces, name) or {})["mac"]), timeout=60)


async def test_ten_requests_at_once_for_eight_slots(lab: Lab) -> None:
    vm = lab.take_slot(empty=True)
    lab.mark_full(vm)
    # The handler reports the slots of a guest independently of its boot.
    await asyncio.to_thread(wait_until, lambda: read_nic_slots(lab.vmi(vm).metadata.annotations) is not None)
    slots = read_nic_slots(lab.vmi(vm).metadata.annotations)
    assert slots is not None
    assert (slots.free, slots.nics) == (SLOTS, 1)

    names = [lab.interface_name() for _ in range(SLOTS + 2)]
    answers = await send_requests(lab, vm, "addinterface", *names)
    assert sorted(answer == "" for answer in answers) == [False] * 2 + [True] * SLOTS, answers
    assert all("no free slot for another NIC" in answer for answer in answers if answer), answers
    accepted = [name for name, answer in zip(names, answers, strict=True) if not answer]
    await asyncio.to_thread(wait_until, lambda: in_domain(lab, vm) == set(accepted), 40)
    slots = read_nic_slots(lab.vmi(vm).metadata.annotations)
    assert slots is not None
    assert (slots.free, slots.nics) == (0, SLOTS + 1)
    (late,) = await send_requests(lab, vm, "addinterface", "late")
    assert late.startswith("409 ")
    assert f"no free slot for another NIC: the domain has {SLOTS + 1};" in late

    await in_guest(lab, vm, accepted)

    # Three interfaces are unplugged and three others are plugged.
    assert await send_requests(lab, vm, "removeinterface", *accepted[:3]) == [""] * 3
    await asyncio.to_thread(wait_until, lambda: in_domain(lab, vm) == set(accepted[3:]), 40)
    others = [lab.interface_name() for _ in range(3)]
    assert await send_requests(lab, vm, "addinterface", *others) == [""] * 3
    await asyncio.to_thread(wait_until, lambda: in_domain(lab, vm) == {*accepted[3:], *others}, 40)
    await in_guest(lab, vm, [*accepted, *others][3:])
    done = json.loads(lab.hotnic("status", vm, "-o", "json").stdout)["interfaces"]
    assert {nic_status["interface"] for nic_status in done if nic_status["stage"] == "guest-attached"} == {
        *accepted[3:],
        *others,
    }
