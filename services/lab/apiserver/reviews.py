"""Questions about rights and identity: access reviews, token reviews, who am I.

Everyone who is authenticated may do everything, so the answers are simple; their shapes are upstream's.
"""

from __future__ import annotations

from services.lab.apiserver.auth import AUTHENTICATED, Authenticator, User
from services.lab.apiserver.errors import Cause, Object, invalid
from services.lab.apiserver.metadata import now
from services.lab.apiserver.resources import Resource

_REASON = "every authenticated user may do everything here"


def answer(resource: Resource, obj: Object, user: User, authenticator: Authenticator) -> Object:
    """The review with its status filled in. Raises `ApiError` 422 for an incomplete question."""
    obj["kind"], obj["apiVersion"] = resource.kind, resource.group_version
    obj.setdefault("metadata", {}).setdefault("creationTimestamp", None)
    spec = obj.get("spec")
    spec = spec if isinstance(spec, dict) else {}
    kind = resource.kind
    if kind in ("SubjectAccessReview", "LocalSubjectAccessReview"):
        _check_access(resource, spec, self_review=False)
        groups = spec.get("groups") or []
        known = AUTHENTICATED in groups or (bool(spec.get("user")) and spec["user"] != "system:anonymous")
        obj["status"] = {"allowed": known, **({"reason": _REASON} if known else {})}
    elif kind == "SelfSubjectAccessReview":
        _check_access(resource, spec, self_review=True)
        obj["status"] = {"allowed": True, "reason": _REASON}
    elif kind == "SelfSubjectRulesReview":
        obj["status"] = {
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            "incomplete": False,
        }
    elif kind == "TokenReview":
        found = authenticator.by_token(spec.get("token") or "")
        obj["status"] = {"user": {}} if found is None else {"authenticated": True, "user": _told(found)}
    else:
        obj["metadata"]["creationTimestamp"] = now()
        obj["status"] = {"userInfo": _told(user)}
    return obj


def _told(user: User) -> Object:
    told: Object = {"username": user.name, "groups": [*user.groups]}
    if AUTHENTICATED not in user.groups:
        told["groups"].append(AUTHENTICATED)
    if user.uid:
        told["uid"] = user.uid
    return told


def _check_access(resource: Resource, spec: Object, *, self_review: bool) -> None:
    causes = []
    asked = [name for name in ("resourceAttributes", "nonResourceAttributes") if spec.get(name) is not None]
    if len(asked) != 1:
        message = "Invalid value: exactly one of nonResourceAttributes or resourceAttributes must be specified"
        causes.append(Cause("FieldValueInvalid", message, "spec.resourceAttributes"))
    if not self_review and not spec.get("user") and not spec.get("groups"):
        message = 'Invalid value: "": at least one of user or group must be specified'
        causes.append(Cause("FieldValueInvalid", message, "spec.user"))
    if causes:
        raise invalid(resource.group, resource.kind, "", causes)
