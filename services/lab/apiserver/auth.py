"""Who is asking: client certificates and static bearer tokens. Everyone who is known may do everything.

A certificate's common name is the user, its organizations are the groups (upstream's X509 authenticator).
Reviews of rights are answered in `reviews.py`.
"""

from __future__ import annotations

import csv
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multidict import CIMultiDictProxy

from services.lab.apiserver.errors import unauthorized

ANONYMOUS_PATHS = frozenset({"/version", "/version/", "/healthz", "/readyz", "/livez"})
AUTHENTICATED = "system:authenticated"


@dataclass(frozen=True, slots=True)
class User:
    """An authenticated caller."""

    name: str
    groups: tuple[str, ...] = ()
    uid: str = ""
    extra: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def read_tokens(path: Path | None) -> dict[str, User]:
    """Static tokens, one a line: `token,user,uid,"group1,group2"` (upstream's `--token-auth-file`)."""
    if path is None:
        return {}
    with path.open(newline="") as lines:
        rows = [row for row in csv.reader(lines) if row]
    return {
        row[0]: User(row[1], tuple(group for group in row[3].split(",") if group) if len(row) > 3 else (), row[2])
        for row in rows
    }


class Authenticator:
    """Finds the user of a request."""

    def __init__(self, tokens: Mapping[str, User]) -> None:
        self._tokens = tokens

    def user_of(self, peercert: Mapping[str, Any] | None, headers: CIMultiDictProxy[str]) -> User:
        """The caller, by certificate, else by token. Raises `ApiError` 401 when there is neither."""
        user = _from_certificate(peercert) if peercert else None
        if user is None:
            user = self._from_token(headers.get("Authorization", ""))
        if user is None:
            raise unauthorized()
        name = headers.get("Impersonate-User")
        if name is not None:
            user = User(name, tuple(headers.getall("Impersonate-Group", ())), headers.get("Impersonate-Uid", ""))
        if AUTHENTICATED not in user.groups:
            user = User(user.name, (*user.groups, AUTHENTICATED), user.uid, user.extra)
        return user

    def _from_token(self, authorization: str) -> User | None:
        scheme, _, token = authorization.partition(" ")
        return self.by_token(token.strip()) if scheme.lower() == "bearer" else None

    def by_token(self, token: str) -> User | None:
        """The user of a static token."""
        for known, user in self._tokens.items():
            if hmac.compare_digest(known.encode(), token.encode()):
                return user
        return None


def _from_certificate(peercert: Mapping[str, Any]) -> User | None:
    name, groups = "", []
    for entry in peercert.get("subject", ()):
        for kind, value in entry:
            if kind == "commonName":
                name = value
            elif kind == "organizationName":
                groups.append(value)
    return User(name, tuple(groups)) if name else None
