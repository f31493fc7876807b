"""Whom the api takes for the aggregation layer, and what it is told of the user."""

import pytest
from multidict import CIMultiDict

from services.api.front_proxy import FrontProxy, Identity
from services.common.http.server import StatusError

PROXY = FrontProxy("ca", ("front-proxy-client",), ("X-Remote-User",), ("X-Remote-Group",))
GROUPS = ["system:authenticated", "admins"]


def headers(**more: str) -> CIMultiDict[str]:
    return CIMultiDict({"X-Remote-User": "jane"} | {key.replace("_", "-"): value for key, value in more.items()})


def test_the_user_is_who_the_headers_name() -> None:
    told = headers(X_Remote_Extra_Scopes="a", x_remote_extra_Acme_Com_2fProject="p")
    told = CIMultiDict([(key.replace("-2f", "%2F"), value) for key, value in told.items()])
    told.add("x-remote-extra-scopes", "b")
    assert PROXY.identify("front-proxy-client", told, GROUPS) == Identity(
        "jane", tuple(GROUPS), {"scopes": ("a", "b"), "acme-com/project": ("p",)}
    )


@pytest.mark.parametrize(
    ("peer", "named", "groups"),
    [
        (None, headers(), GROUPS),
        ("somebody", headers(), GROUPS),
        ("front-proxy-client", CIMultiDict[str](), GROUPS),
        ("front-proxy-client", headers(), []),
    ],
    ids=["no certificate", "another's certificate", "no user", "no group"],
)
def test_nobody_else_is_believed(peer: str | None, named: CIMultiDict[str], groups: list[str]) -> None:
    with pytest.raises(StatusError) as refused:
        PROXY.identify(peer, named, groups)
    assert refused.value.code == 401


def test_where_the_cluster_allows_every_name_the_certificate_alone_counts() -> None:
    anyone = FrontProxy("ca", (), ("X-Remote-User",), ("X-Remote-Group",))
    assert anyone.identify("whoever", headers(), GROUPS).user == "jane"
