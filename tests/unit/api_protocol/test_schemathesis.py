"""schemathesis sends requests from the generated documents, valid and invalid: every answer is one that they have.

Every refusal is a ``Status``, and nothing is a 5xx. The api runs in a thread of its own, because schemathesis waits for
its answers. A part of the requests names the VM that exists.
"""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from services.api.discovery import GROUPS, HOTNIC_GROUP
from services.api.openapi.documents import openapi_documents
from tests.support.kube.served_api import ServedApi, serve_api
from tests.support.observed import objects

VMS, VMIS = "virtualmachines", "virtualmachineinstances"
CHECKS = [
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
EXAMPLES = 15 if settings().max_examples <= 100 else settings().max_examples // 10
DOCUMENTS = {
    path: json.loads(document.body)
    for path, document in openapi_documents(tuple(GROUPS)).items()
    if path != "/openapi/v3"
}
OPERATIONS = [
    (document, path, method)
    for document, described in DOCUMENTS.items()
    for path, methods in described["paths"].items()
    for method in methods
    # The document of version 2 has the operations of all others.
    if document != "/openapi/v2" or HOTNIC_GROUP in path
]


WITH_INVALID = [
    (document, path, method)
    for document, path, method in OPERATIONS
    if any(one["in"] != "path" for one in DOCUMENTS[document]["paths"][path][method]["parameters"])
]
"""The operations of which a request can be invalid: any text may be a namespace."""
FLAGS = {
    one["name"]
    for document, path, method in OPERATIONS
    for one in DOCUMENTS[document]["paths"][path][method]["parameters"]
    if "boolean" in (one.get("type"), one.get("schema", {}).get("type"))
}
SAMPLES = [
    *((*operation, GenerationMode.POSITIVE) for operation in OPERATIONS),
    *((*operation, GenerationMode.NEGATIVE) for operation in WITH_INVALID),
]


class RunningApi:
    """The api in a thread.

    :ivar url: of the server.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loop = asyncio.new_event_loop()
        self._started: Future[ServedApi] = Future()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=[self._serve()])

    def __enter__(self) -> "RunningApi":
        self._thread.start()
        self._served = self._started.result(50)
        self.url = f"http://{self._served.address}"
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(50)
        self._loop.close()

    async def _serve(self) -> None:
        async with serve_api(self._folder) as served:
            self._started.set_result(served)
            await self._stop.wait()

    def reset(self) -> None:
        """Have one running VM, without what earlier requests changed."""
        done = threading.Event()

        def put() -> None:
            self._served.put(VMS, objects.vm())
            self._served.put(VMIS, objects.vmi(owned=True))
            done.set()

        self._loop.call_soon_threadsafe(put)
        assert done.wait(50)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningApi]:
    with RunningApi(tmp_path_factory.mktemp("api")) as running:
        yield running


def cases(document: str, path: str, method: str, mode: GenerationMode) -> st.SearchStrategy[schemathesis.Case]:
    """Return requests of one operation; most of them name the VM that exists."""
    schema = schemathesis.openapi.from_dict(DOCUMENTS[document])
    found: st.SearchStrategy[schemathesis.Case] = schema[path][method.upper()].as_strategy(generation_mode=mode)

    def aim(drawn: tuple[schemathesis.Case, int]) -> schemathesis.Case:
        case, aimed = drawn
        if aimed:
            case.path_parameters = {**case.path_parameters, "namespace": "default"}
            if "name" in case.path_parameters:
                case.path_parameters["name"] = "vm1"
        # A stream has no schema, and would last as long as it says. A flag without a value is true, as in Kubernetes,
        # although it is no boolean.
        case.query = {
            key: value
            for key, value in (case.query or {}).items()
            if not (key == "watch" and is_true(value)) and not (key in FLAGS and value == "")
        }
        return case

    return st.tuples(found, st.integers(0, 3)).map(aim)


def is_true(value: object) -> bool:
    return str(value).lower() in ("", "1", "t", "true")


def check_answer(document: str, path: str, method: str, answer: Any) -> None:
    assert answer.status_code < 500, answer.text
    assert str(answer.status_code) in DOCUMENTS[document]["paths"][path][method]["responses"]
    if answer.status_code >= 400:
        status = answer.json()
        assert (status["kind"], status["status"], status["code"]) == ("Status", "Failure", answer.status_code)
        assert status["reason"]
        assert status["message"]


@pytest.mark.parametrize(("document", "path", "method", "mode"), SAMPLES)
def test_every_answer_is_in_the_document(
    api: RunningApi, document: str, path: str, method: str, mode: GenerationMode
) -> None:
    checks: list[Callable[..., Any]] = [*CHECKS]
    if mode is GenerationMode.NEGATIVE:
        checks.append(negative_data_rejection)

    @settings(max_examples=EXAMPLES, suppress_health_check=list(HealthCheck))
    @given(case=cases(document, path, method, mode))
    def run(case: schemathesis.Case) -> None:
        api.reset()
        answer = case.call(base_url=api.url)
        check_answer(document, path, method, answer)
        case.validate_response(answer, checks=checks)

    run()


ROUTES = sorted(
    {(path, tuple(methods)) for described in DOCUMENTS.values() for path, methods in described["paths"].items()}
)


@pytest.mark.parametrize(("path", "served"), ROUTES)
def test_other_methods_are_refused_and_the_served_ones_named(
    api: RunningApi, path: str, served: tuple[str, ...]
) -> None:
    url = api.url + path.replace("{namespace}", "default").replace("{name}", "vm1")
    for method in {"GET", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "QUERY"} - {one.upper() for one in served}:
        answer = requests.request(method, url, json={"name": "a"}, timeout=50)
        assert (answer.status_code, answer.json()["reason"]) == (405, "MethodNotAllowed")
        assert {one.upper() for one in served} <= set(answer.headers["Allow"].split(","))
