"""Reviews: access reviews, token reviews, and self subject reviews.

Every authenticated user may do everything, so access is always allowed; the responses have upstream's form.
"""

from __future__ import annotations

from lab.apiserver.errors import FieldError, Object, invalid
from lab.apiserver.identity.auth import AUTHENTICATED, Authenticator, User
from lab.apiserver.registry.metadata import now
from lab.apiserver.registry.resources import ServedResource

_REASON = "every authenticated user may do everything here"


def review(resource: ServedResource, obj: Object, user: User, authenticator: Authenticator) -> Object:
    """Return the review with its status.

    :raises ApiError: 422 for an incomplete review.
    """
    obj["kind"], obj["apiVersion"] = resource.kind, resource.group_version
    obj.setdefault("metadata", {}).setdefault("creationTimestamp", None)
    spec = obj.get("spec")
    spec = spec if isinstance(spec, dict) else {}
    kind = resource.kind
    if kind == "SubjectAccessReview":
        _check_access(resource, spec, self_review=False)
        groups = spec.get("groups") or []
        known = AUTHENTICATED in groups or (bool(spec.get("user")) and spec["user"] != "system:anonymous")
        obj["status"] = {"allowed": known, **({"reason": _REASON} if known else {})}
    elif kind == "SelfSubjectAccessReview":
        _check_access(resource, spec, self_review=True)
        obj["status"] = {"allowed": True, "reason": _REASON}
    elif kind == "TokenReview":
        found = authenticator.by_token(spec.get("token") or "")
        obj["status"] = {"user": {}} if found is None else {"authenticated": True, "user": _user_info(found)}
    else:
        obj["metadata"]["creationTimestamp"] = now()
        obj["status"] = {"userInfo": _user_info(user)}
    return obj


def _user_info(user: User) -> Object:
    info: Object = {"username": user.name, "groups": [*user.groups]}
    if AUTHENTICATED not in user.groups:
        info["groups"].append(AUTHENTICATED)
    if user.uid:
        info["uid"] = user.uid
    return info


def _check_access(resource: ServedResource, spec: Object, *, self_review: bool) -> None:
    causes = []
    given = [name for name in ("resourceAttributes", "nonResourceAttributes") if spec.get(name) is not None]
    if len(given) != 1:
        message = "Invalid value: exactly one of nonResourceAttributes or resourceAttributes must be specified"
        causes.append(FieldError("FieldValueInvalid", message, "spec.resourceAttributes"))
    if not self_review and not spec.get("user") and not spec.get("groups"):
        message = 'Invalid value: "": at least one of user or group must be specified'
        causes.append(FieldError("FieldValueInvalid", message, "spec.user"))
    if causes:
        raise invalid(resource.group, resource.kind, "", causes)
