"""Authentication of the aggregation layer, and the user that its headers name."""

import pytest
from multidict import CIMultiDict

from services.api.front_proxy import FrontProxy, UserIdentity, parse
from services.common.http.server import StatusError

PROXY = FrontProxy("ca", ("front-proxy-client",), ("X-Remote-User",), ("X-Remote-Group",))
GROUPS = ["system:authenticated", "admins"]


def headers(**more: str) -> CIMultiDict[str]:
    return CIMultiDict({"X-Remote-User": "jane"} | {key.replace("_", "-"): value for key, value in more.items()})


def test_user_is_read_from_the_headers() -> None:
    named = headers(X_Remote_Extra_Scopes="a", x_remote_extra_Acme_Com_2fProject="p")
    named = CIMultiDict([(key.replace("-2f", "%2F"), value) for key, value in named.items()])
    named.add("x-remote-extra-scopes", "b")
    assert PROXY.identify("front-proxy-client", named, GROUPS) == UserIdentity(
        "jane", tuple(GROUPS), {"scopes": ("a", "b"), "acme-com/project": ("p",)}
    )


@pytest.mark.parametrize(
    ("peer", "request_headers", "groups"),
    [
        (None, headers(), GROUPS),
        ("somebody", headers(), GROUPS),
        ("front-proxy-client", CIMultiDict[str](), GROUPS),
        ("front-proxy-client", headers(), []),
    ],
    ids=["no certificate", "another's certificate", "no user", "no group"],
)
def test_other_callers_are_refused(peer: str | None, request_headers: CIMultiDict[str], groups: list[str]) -> None:
    with pytest.raises(StatusError) as refused:
        PROXY.identify(peer, request_headers, groups)
    assert refused.value.code == 401


def test_uid_is_read_from_the_headers_that_the_aggregation_layer_sets() -> None:
    """An older aggregation layer names no such header, and passes on the client's."""
    named = {"requestheader-client-ca-file": "ca", "requestheader-uid-headers": '["X-Remote-Uid"]'}
    sent = headers(X_Remote_Uid="u-1")
    assert parse(named).identify("front-proxy-client", sent, GROUPS).uid == "u-1"
    assert parse(named).identify("front-proxy-client", headers(), GROUPS).uid == ""
    assert PROXY.identify("front-proxy-client", sent, GROUPS).uid == ""


def test_empty_list_of_names_allows_every_certificate() -> None:
    anyone = FrontProxy("ca", (), ("X-Remote-User",), ("X-Remote-Group",))
    assert anyone.identify("whoever", headers(), GROUPS).user == "jane"
