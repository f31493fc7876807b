"""A plug completes, and every role is ready again, when etcd or a certificate of Kubernetes changes in the middle.

The lab's own API server has neither etcd nor certificates that it reads again.
"""

import asyncio
import ssl

import pytest

from lab.apiserver.identity import pki
from lab.supervisor.kubernetes.control_plane import ETCD_PORT, audit_log
from tests.support.kube.audit_log import read_audit_log
from tests.support.lab.plug_check import plugging_around, plugging_without_handler
from tests.support.lab.processes import wait_until
from tests.support.lab.rig import Rig
from tests.support.lab.running import Lab

# Longer than the rig's timeout, so that the rig reports what it was waiting for.
pytestmark = pytest.mark.timeout(150)

SILENCE = 12.0
"""Seconds: longer than a request waits for its answer, and than a leader continues without renewing its lease."""
HANDLER = "system:serviceaccount:hotnic:hotnic-handler"


async def test_plug_completes_when_etcd_does_not_answer_for_a_while(rig: Rig) -> None:
    async with plugging_around(rig, "etcd", "SIGSTOP"):
        try:
            await asyncio.sleep(SILENCE)
        finally:
            await rig.send_signal("etcd", "SIGCONT")


async def test_plug_completes_when_the_version_of_a_watch_is_compacted(rig: Rig) -> None:
    """The handler watches again from a version that neither etcd nor the API server knows any more: 410."""
    async with plugging_without_handler(rig):
        listed = lists_of_handler(rig.lab)
        assert (await rig.ask_inspector(compact=ETCD_PORT))["revision"] > 0
        # The API server of before has the latest changes in its cache.
        await rig.kill("apiserver")
        await rig.start("apiserver")
        assert lists_of_handler(rig.lab) == listed
    assert lists_of_handler(rig.lab) > listed


async def test_plug_completes_when_the_certificate_of_the_api_server_is_rotated(rig: Rig) -> None:
    async with plugging_without_handler(rig):
        files = pki.issue_server(
            rig.lab.layout.apiserver, "kube-apiserver", ["localhost"], ["127.0.0.1"], file_name="apiserver"
        )
        new = ssl.PEM_cert_to_DER_cert(files.cert.read_text())
        await wait_until(lambda: served_certificate(rig.lab) == new, 40.0, lambda: "the old certificate is served")
        # A role with connections from before continues; this one verifies the new certificate.
        await rig.kill("networks")
        await rig.start("networks")


def lists_of_handler(lab: Lab) -> int:
    """Return how many times the handler has listed all VMIs."""
    requests = read_audit_log(audit_log(lab.layout.apiserver))
    return sum(
        (one.user.username, one.verb) == (HANDLER, "list")
        and one.object_ref is not None
        and one.object_ref.resource == "virtualmachineinstances"
        for one in requests
    )


def served_certificate(lab: Lab) -> bytes:
    """Return the certificate that the API server presents to new clients."""
    identity = lab.layout.identity()
    assert identity is not None
    return ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", identity.apiserver_port), timeout=40.0))
