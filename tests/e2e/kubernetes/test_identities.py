"""The users of the roles on Kubernetes itself: those of a role of a node name the node, as in a pod of the chart."""

import json

import pytest

from lab.layout import NODE_NAME, NODE_ROLES, ROLES
from tests.support.lab.running import Lab

NODE_OF_USER = "authentication.kubernetes.io/node-name"


@pytest.mark.parametrize("role", ROLES)
def test_the_user_of_a_role_names_the_node_of_a_node_role(doubles: Lab, role: str) -> None:
    kubeconfig = str(doubles.layout.role_kubeconfig(role))
    answer = json.loads(doubles.kubectl("auth", "whoami", "--kubeconfig", kubeconfig, "-o", "json"))
    user = answer["status"]["userInfo"]
    assert user["username"] == f"system:serviceaccount:hotnic:hotnic-{role}"
    assert user.get("extra", {}).get(NODE_OF_USER) == ([NODE_NAME] if role in NODE_ROLES else None)
