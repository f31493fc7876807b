"""Pytest plugin that disables garbage collection while tests are collected; loaded first (pyproject.toml).

During collection pytest parses every plugin and test file. Before 3.11.8, Python may report a garbage collection in the
middle of ``ast.parse`` as the error "AST constructor recursion depth mismatch" (python/cpython#106905).
"""

import gc
from collections.abc import Iterator

import pytest

gc.disable()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect the tests, then enable garbage collection."""
    try:
        return (yield)
    finally:
        gc.enable()
