"""A missing permission as text, and what is forbidden at present as one state."""

import asyncio

import pytest
import structlog

from services.common.kube.denials import Denials, describe_error
from services.common.kube.errors import BadRequest, Forbidden, KubeError, Unavailable

ACCOUNT = "system:serviceaccount:hotnic:hotnic-networks"
PREFIX = f'pods is forbidden: User "{ACCOUNT}" cannot list resource "pods" in API group ""'
CHECK = f"kubectl auth can-i list pods --as {ACCOUNT}"


def advice(check: str) -> str:
    return f"; bind a role that allows it, as the chart does (check: {check})"


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            Forbidden(f"{PREFIX} at the cluster scope"),
            f"ServiceAccount hotnic/hotnic-networks may not list pods in all namespaces{advice(f'{CHECK} -A')}",
        ),
        (
            Forbidden(f'{PREFIX} in the namespace "a"'),
            f"ServiceAccount hotnic/hotnic-networks may not list pods in namespace a{advice(f'{CHECK} -n a')}",
        ),
        (
            Forbidden(f'{PREFIX} at the cluster scope: RBAC: clusterrole "x" not found'),
            "ServiceAccount hotnic/hotnic-networks may not list pods in all namespaces "
            f'(RBAC: clusterrole "x" not found){advice(f"{CHECK} -A")}',
        ),
        (
            Forbidden(
                'virtualmachineinstances.kubevirt.io "vm" is forbidden: User "me" cannot patch resource '
                '"virtualmachineinstances/status" in API group "kubevirt.io" in the namespace "a"'
            ),
            'user "me" may not patch virtualmachineinstances.kubevirt.io/status in namespace a'
            + advice("kubectl auth can-i patch virtualmachineinstances.kubevirt.io --as me -n a --subresource=status"),
        ),
        (Forbidden("admission webhook refused it"), "admission webhook refused it"),
        (Unavailable(f"{PREFIX} at the cluster scope"), f"{PREFIX} at the cluster scope"),
    ],
)
def test_a_missing_permission_names_who_lacks_it_and_how_to_check_it(error: KubeError, text: str) -> None:
    assert describe_error(error) == text


def test_the_state_is_that_of_all_sources_and_equal_texts_appear_once() -> None:
    states: list[tuple[bool, str]] = []
    denials = Denials(lambda ok, why: states.append((ok, why)))
    for source, why in (("a", ""), ("a", "x"), ("b", "x"), ("a", "x"), ("a", "y"), ("a", ""), ("b", "")):
        denials.set(source, why)
    assert states == [(False, "x"), (False, "x"), (False, "y; x"), (False, "x"), (True, "")]


@pytest.mark.looptime
async def test_a_request_of_the_start_is_sent_again_unless_it_cannot_succeed() -> None:
    states: list[tuple[bool, str]] = []
    denials = Denials(lambda ok, why: states.append((ok, why)))
    outcomes: list[KubeError | None] = [Unavailable("away"), Forbidden("no"), Forbidden("no"), None, BadRequest("bad")]

    async def call() -> str:
        await asyncio.sleep(0)
        if (error := outcomes.pop(0)) is not None:
            raise error
        return "answer"

    assert await denials.retry(call, log=structlog.get_logger()) == "answer"
    with pytest.raises(BadRequest):
        await denials.retry(call, log=structlog.get_logger())
    assert states == [(False, "no"), (True, "")]
