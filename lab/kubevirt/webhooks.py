"""The admission of the played KubeVirt on Kubernetes itself: webhooks over TLS, and the configurations that name them.

They decide as `admission.py` does. While the player does not run, the API server refuses every change of VMs and VMIs,
as it does while virt-api is down. Next: `installation.py`.
"""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from aiohttp import web

from lab.kubevirt.admission import VM_VALIDATOR, VMI_VALIDATOR, RefusedChange, admitted
from lab.kubevirt.versions import Behaviour, behaviour_of
from schemas.kubernetes.objects import Resource
from services.common.http.server import make_app, serve
from services.common.kube.client import Kube
from services.common.kube.errors import AlreadyExists
from services.common.telemetry import configure

Object = dict[str, Any]

VMI_MUTATOR: Final = "virtualmachineinstances-mutator.kubevirt.io"
MAX_BODY: Final = 8 * 1024 * 1024
"""Bytes of a review: two objects of at most 1.5 MiB each, encoded."""

_GROUP: Final = "admissionregistration.k8s.io"
CONFIGURATIONS: Final = {
    kind: Resource(_GROUP, "v1", f"{kind.lower()}s", kind, dict[str, Any], namespaced=False)
    for kind in ("ValidatingWebhookConfiguration", "MutatingWebhookConfiguration")
}


@dataclass(frozen=True, slots=True)
class WebhookServer:
    """Where the webhooks are served, and with which certificate.

    :ivar listen: `host:port`, as the API server reaches it.
    :ivar certificate: path of certificate and key without the suffixes `.crt` and `.key`.
    :ivar ca: PEM file that verifies the certificate.
    """

    listen: str
    certificate: Path
    ca: Path


def configurations(url: str, ca_bundle: bytes) -> list[Object]:
    """Return the configurations: one that refuses changes of VMs and VMIs, and one that undoes changes of VMIs."""

    def hook(name: str, plural: str, *operations: str) -> Object:
        rule = {"apiGroups": ["kubevirt.io"], "apiVersions": ["*"], "resources": [plural], "operations": operations}
        path = "mutate" if name == VMI_MUTATOR else "validate"
        return {
            "name": name,
            "rules": [rule],
            "clientConfig": {"url": f"{url}/{path}", "caBundle": base64.b64encode(ca_bundle).decode()},
            "admissionReviewVersions": ["v1"],
            "sideEffects": "None",
            "failurePolicy": "Fail",
        }

    vmis = "virtualmachineinstances"
    webhooks = {
        "ValidatingWebhookConfiguration": [
            hook(VM_VALIDATOR, "virtualmachines", "CREATE", "UPDATE"),
            hook(VMI_VALIDATOR, vmis, "UPDATE"),
        ],
        "MutatingWebhookConfiguration": [hook(VMI_MUTATOR, vmis, "UPDATE")],
    }
    names = {"ValidatingWebhookConfiguration": "virt-api-validator", "MutatingWebhookConfiguration": "virt-api-mutator"}
    return [
        {"apiVersion": f"{_GROUP}/v1", "kind": kind, "metadata": {"name": names[kind]}, "webhooks": found}
        for kind, found in webhooks.items()
    ]


def review(request: Object, behaviour: Behaviour, *, mutate: bool) -> Object:
    """Return the response to the request of an AdmissionReview.

    :param mutate: whether changes are undone and none is refused, or the other way round.
    """
    response: Object = {"uid": request["uid"], "allowed": True}
    new, old = request["object"], request.get("oldObject")
    try:
        stored = admitted(request["userInfo"].get("username", ""), request["resource"]["resource"], new, old, behaviour)
    except RefusedChange as refusal:
        if mutate:
            return response
        return {**response, "allowed": False, "status": {"code": 422, "reason": "Invalid", "message": str(refusal)}}
    if mutate and stored != new:
        patch = base64.b64encode(json.dumps(_difference(new, stored)).encode()).decode()
        response |= {"patchType": "JSONPatch", "patch": patch}
    return response


def _difference(before: Object, after: Object) -> list[Object]:
    """Return the JSON patch between two objects that differ in whole top-level fields."""
    removed = [{"op": "remove", "path": f"/{key}"} for key in before if key not in after]
    changed = {key: value for key, value in after.items() if before.get(key) != value}
    return removed + [{"op": "add", "path": f"/{key}", "value": value} for key, value in changed.items()]


@asynccontextmanager
async def serving_webhooks(kubeconfig: Path, version: str, server: WebhookServer) -> AsyncIterator[None]:
    """Serve the webhooks of a version while the block runs, and register them unless they are.

    :param kubeconfig: of an administrator.
    :raises KubeError: the API server rejected a request or did not answer.
    """
    telemetry, behaviour = configure("kubevirt", environ={}), behaviour_of(version)
    app = make_app(telemetry=telemetry, max_body=MAX_BODY, traced=False)

    async def answer(request: web.Request) -> web.StreamResponse:
        body: Object = json.loads(await request.read())
        response = review(body["request"], behaviour, mutate=request.path == "/mutate")
        return web.json_response({"apiVersion": body["apiVersion"], "kind": body["kind"], "response": response})

    app.router.add_post("/validate", answer)
    app.router.add_post("/mutate", answer)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(server.certificate.with_suffix(".crt"), server.certificate.with_suffix(".key"))
    kube = await Kube.connect(kubeconfig=str(kubeconfig), telemetry=telemetry, user_agent="hotnic-lab-kubevirt")
    try:
        async with serve(app, server.listen, ssl=context) as address:
            for found in configurations(f"https://{address}", server.ca.read_bytes()):
                try:
                    await kube.create(CONFIGURATIONS[found["kind"]], None, found)
                except AlreadyExists:
                    continue
            yield
    finally:
        await kube.close()
        telemetry.shutdown()
