"""The lab's roles work under the admission policies of the chart, and nobody who is not trusted does their work.

`tests/interop/admission` has the whole table. A refusal of a role itself fails the session, as a missing right does.
"""

import json
import subprocess
from typing import Any

from schemas.kubernetes.networks import NETWORKS
from tests.support.lab.plug_check import plugging_without_handler
from tests.support.lab.rig import Rig
from tests.support.lab.running import Lab

MULTUS = "system:serviceaccount:hotnic:hotnic-multus"


async def test_a_plug_completes_although_a_tenant_and_another_node_try_to_change_it(rig: Rig) -> None:
    lab = rig.lab
    async with plugging_without_handler(rig):
        [vmi, *_] = json.loads(lab.kubectl("get", "vmi", "-o", "json"))["items"]
        pods = json.loads(lab.kubectl("get", "pods", "-o", "json"))["items"]
        [pod, *_] = [one["metadata"]["name"] for one in pods if one["metadata"].get("ownerReferences")]
        emptied = {"metadata": {"annotations": {NETWORKS: "[]"}}}
        assert "hotnic-pods" in refusal(lab, "tenant", "pod", pod, emptied)
        assert "hotnic-vmis" in refusal(lab, "tenant", "vmi", vmi["metadata"]["name"], {"spec": {"networks": None}})
        # A role of a node, with a token that names no node: an impersonated one names none.
        foreign = {"metadata": {"annotations": {"k8s.v1.cni.cncf.io/network-status": "[]"}}}
        assert "may change objects of its own node only" in refusal(lab, MULTUS, "pod", pod, foreign)


def refusal(lab: Lab, user: str, kind: str, name: str, change: dict[str, Any]) -> str:
    """Return the message that a user with all rights gets for a change."""
    command = ["kubectl", "patch", kind, name, "--type=merge", "--patch", json.dumps(change)]
    done = subprocess.run(
        [*command, f"--as={user}", "--as-group=system:masters"],
        env=lab.environment,
        capture_output=True,
        text=True,
        timeout=45,
        check=False,
    )
    assert done.returncode != 0, f"{user} has changed {kind} {name}"
    return done.stderr
