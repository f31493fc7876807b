"""What the roles of a lab on Kubernetes were forbidden, and which of their rights they have not used.

The lab's own API server has no RBAC, so that nothing here is for it.
"""

from collections.abc import Collection

from lab.layout import ROLES
from lab.supervisor.bootstrap import load
from lab.supervisor.credentials.certificates import NAMESPACE
from lab.supervisor.kubernetes.control_plane import audit_log
from tests.support.kube.audit_log import forbidden_requests, granted_rights, never_allowed, read_audit_log, used_rights
from tests.support.lab.running import Lab


def assert_rights_suffice(lab: Lab, roles: Collection[str] = ROLES) -> None:
    """Assert that nothing was forbidden to a role, and print which of its rights were not used."""
    rendered = load([lab.layout.config / "chart.yaml"])
    requests = read_audit_log(audit_log(lab.layout.apiserver))
    for role in roles:
        name = f"hotnic-{role}"
        own = [one for one in requests if one.user.username == f"system:serviceaccount:{NAMESPACE}:{name}"]
        assert own, f"the audit log has no request of {name}"
        forbidden = sorted(forbidden_requests(never_allowed(own)))
        assert not forbidden, f"forbidden to {name}: {', '.join(forbidden)}"
        account = {"kind": "ServiceAccount", "name": name, "namespace": NAMESPACE}
        unused = granted_rights(rendered, account) - used_rights(own)
        print(f"\n{name} has not used: {', '.join(' '.join(right) for right in sorted(unused)) or 'nothing'}")  # noqa: T201
