"""kubernetes-asyncio: its generated clients and its Watch."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes_asyncio import client, config, watch

from tests.cluster.tools import DEADLINE, Cluster, CustomKind, abort_transports


@pytest.fixture
async def connection(cluster: Cluster) -> AsyncIterator[Any]:
    settings = client.Configuration()
    await config.load_kube_config(str(Path(cluster.kubeconfig)), client_configuration=settings)
    async with client.ApiClient(settings) as found:
        yield found
    await abort_transports()


async def test_typed_objects_round_trip(connection: Any, namespace: str, unique: str) -> None:
    """The server's objects decode into the generated models; a patch of a dictionary is a strategic merge."""
    core = client.CoreV1Api(connection)
    wanted = client.V1ConfigMap(metadata=client.V1ObjectMeta(name=unique), data={"a": "1"})
    made = await core.create_namespaced_config_map(namespace, wanted)
    assert made.metadata.uid
    found = await core.read_namespaced_config_map(unique, namespace)
    assert found.data == {"a": "1"}
    found.data["b"] = "2"
    replaced = await core.replace_namespaced_config_map(unique, namespace, found)
    assert replaced.metadata.resource_version != made.metadata.resource_version
    patched = await core.patch_namespaced_config_map(unique, namespace, {"data": {"c": "3"}})
    assert patched.data == {"a": "1", "b": "2", "c": "3"}
    listed = await core.list_namespaced_config_map(namespace, field_selector=f"metadata.name={unique}")
    assert [item.metadata.name for item in listed.items] == [unique]
    gone = await core.delete_namespaced_config_map(unique, namespace)
    assert gone.status == "Success"


async def test_exceptions_carry_code_and_reason(connection: Any, namespace: str, unique: str) -> None:
    """ApiException: status 404 and 409, with the Status as body."""
    core = client.CoreV1Api(connection)
    with pytest.raises(client.ApiException) as missing:
        await core.read_namespaced_config_map(unique, namespace)
    assert missing.value.status == 404
    wanted = client.V1ConfigMap(metadata=client.V1ObjectMeta(name=unique))
    made = await core.create_namespaced_config_map(namespace, wanted)
    with pytest.raises(client.ApiException) as again:
        await core.create_namespaced_config_map(namespace, wanted)
    assert again.value.status == 409
    await core.patch_namespaced_config_map(unique, namespace, {"data": {"a": "b"}})
    with pytest.raises(client.ApiException) as stale:
        await core.replace_namespaced_config_map(unique, namespace, made)
    assert '"reason":"Conflict"' in stale.value.body.replace(" ", "")


async def test_custom_object_verbs_return_the_object(
    connection: Any, widgets: CustomKind, namespace: str, unique: str
) -> None:
    """CustomObjectsApi: create returns 201 with the object, patch and replace return 200."""
    custom = client.CustomObjectsApi(connection)
    place = (widgets.group, "v1", namespace, widgets.plural)
    made = await custom.create_namespaced_custom_object(*place, widgets.make(unique))
    assert made["metadata"]["name"] == unique
    made["spec"]["size"] = 2
    replaced = await custom.replace_namespaced_custom_object(*place, unique, made)
    assert replaced["spec"]["size"] == 2
    operations = [{"op": "test", "path": "/spec/size", "value": 2}, {"op": "replace", "path": "/spec/size", "value": 3}]
    patched = await custom.patch_namespaced_custom_object(
        *place, unique, operations, _content_type="application/json-patch+json"
    )
    assert patched["spec"]["size"] == 3
    listed = await custom.list_namespaced_custom_object(*place)
    assert unique in [item["metadata"]["name"] for item in listed["items"]]
    await custom.delete_namespaced_custom_object(*place, unique)


async def test_client_watch_continues_from_a_list(connection: Any, namespace: str, unique: str) -> None:
    """Watch.stream sends watch=True, follows resourceVersions and decodes every event into a model."""
    core = client.CoreV1Api(connection)
    listed = await core.list_namespaced_config_map(namespace)

    async def follow() -> list[tuple[str, str]]:
        found = []
        stream = watch.Watch()
        options = {"resource_version": listed.metadata.resource_version, "label_selector": f"case={unique}"}
        async with stream.stream(core.list_namespaced_config_map, namespace, **options) as changes:
            async for change in changes:
                found.append((change["type"], change["object"].metadata.name))
                if change["type"] == "DELETED":
                    return found
        return found

    following = asyncio.create_task(follow())
    metadata = client.V1ObjectMeta(name=unique, labels={"case": unique})
    await core.create_namespaced_config_map(namespace, client.V1ConfigMap(metadata=metadata))
    await core.patch_namespaced_config_map(unique, namespace, {"data": {"a": "1"}})
    await core.delete_namespaced_config_map(unique, namespace)
    async with asyncio.timeout(DEADLINE):
        assert await following == [("ADDED", unique), ("MODIFIED", unique), ("DELETED", unique)]


async def test_access_reviews_return_allowed(connection: Any) -> None:
    """SubjectAccessReview: the result is in status.allowed, with 201."""
    authorization = client.AuthorizationV1Api(connection)
    attributes = client.V1ResourceAttributes(verb="get", resource="configmaps", namespace="default")
    spec = client.V1SelfSubjectAccessReviewSpec(resource_attributes=attributes)
    mine = await authorization.create_self_subject_access_review(client.V1SelfSubjectAccessReview(spec=spec))
    assert mine.status.allowed
    other = client.V1SubjectAccessReviewSpec(resource_attributes=attributes, user="x", groups=["system:masters"])
    answer = await authorization.create_subject_access_review(client.V1SubjectAccessReview(spec=other))
    assert answer.status.allowed
