"""Keeps the garbage collector off while pytest starts and collects; loaded before any other plugin (pyproject.toml).

pytest parses every plugin and test file, and Python before 3.11.8 may take a collection in the middle of
``ast.parse`` for a fault ("AST constructor recursion depth mismatch", python/cpython#106905).
"""

import gc
from collections.abc import Iterator

import pytest

gc.disable()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Collect tests, then garbage again."""
    try:
        return (yield)
    finally:
        gc.enable()
