"""What the role concludes from the failures that upstream's daemon has answered to ADD."""

import pytest

from schemas import cni
from services.networks.multus_client import FAILED, attachment_failure
from tests.support.multus_wire.recording import V4_2_4, V4_3_0, V4_3_0_CNI_1_0_0, WireRecording, response_of

PLUGIN_FAILED = {
    "hotplug-plugin-fails: ADD hp3",
    "hotplug-no-plugin: ADD hp4",
    "hotplug-nameless: ADD (nameless)",
    "hotplug-second-fails: ADD (nameless)",
    "delegate-add-plugin-fails",
    "delegate-add-no-plugin",
}
"""Upstream's daemon has found the name free, so whatever has it now was made by this ADD and is rolled back."""


@pytest.mark.parametrize("recording", [V4_3_0, V4_3_0_CNI_1_0_0, V4_2_4], ids=lambda one: one.label)
def test_only_an_add_whose_plugin_failed_is_rolled_back(recording: WireRecording) -> None:
    failed = {}
    for step in recording.steps:
        for exchange in step.exchanges:
            request = exchange.request
            # Not what the role never sends: other methods and bodies that are no call.
            if request.path != "/delegate" or b'"ADD"' not in request.body or response_of(exchange).status == 200:
                continue
            failure = attachment_failure(cni.CniCommand.ADD, 400, response_of(exchange).body)
            assert failure.reason == FAILED
            failed[exchange.label] = failure.plugin_failed
    assert {label for label, plugin_failed in failed.items() if plugin_failed} == PLUGIN_FAILED
    taken = {"delegate-add-again", "delegate-add-eth0"}
    assert failed.keys() >= taken | {"delegate-uid", "delegate-add-pod-gone", "delegate-add-netns-gone"}


def test_a_failed_del_is_never_rolled_back() -> None:
    body = response_of(V4_3_0.exchange("delegate-add-plugin-fails")).body
    assert not attachment_failure(cni.CniCommand.DEL, 400, body).plugin_failed
