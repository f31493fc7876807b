"""May the caller use a network of another namespace? The Kubernetes API server knows: a SubjectAccessReview.

Whether they may plug at all was decided before the request was passed on. Next: :mod:`services.api.plan.checks`.
"""

from typing import Any

import msgspec

from schemas.kube import NADS
from services.api.front_proxy import Identity
from services.common.kube.client import Kube

REVIEWS = "/apis/authorization.k8s.io/v1/subjectaccessreviews"


class _Status(msgspec.Struct, frozen=True):
    allowed: bool = False
    denied: bool = False


class _Review(msgspec.Struct, frozen=True):
    status: _Status = _Status()


async def may_use(kube: Kube, caller: Identity, namespace: str, name: str) -> bool:
    """Whether the caller may read a NAD, which is what using it takes.

    :raises KubeError: the API server does not answer, or does not let the api ask.
    """
    attributes = {"verb": "get", "group": NADS.group, "version": NADS.version, "resource": NADS.plural}
    spec: dict[str, Any] = {
        "user": caller.user,
        "groups": list(caller.groups),
        "extra": {key: list(values) for key, values in caller.extra.items()},
        "resourceAttributes": {**attributes, "namespace": namespace, "name": name},
    }
    body = {"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": spec}
    answer = await kube.request("POST", REVIEWS, body=body, span="kube create subjectaccessreviews")
    status = msgspec.json.decode(answer.body, type=_Review).status
    return status.allowed and not status.denied
