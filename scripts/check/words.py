#!/usr/bin/env python3
"""Find words that hotnic's glossary replaces, in names, comments, messages and documents.

The code uses one name for one thing, and that is the name in Kubernetes, KubeVirt and Linux networking. Identifiers are
split into their words, so that ``card_xml`` and ``CardMissing`` are found, too.
"""

import re
import subprocess
import sys
from pathlib import Path

REPLACED = {
    "card": "guest NIC, device",
    "rung": "stage",
    "ladder": "hot-plug status",
    "wish": "desired state",
    "cable": "link state",
    "stranger": "foreign",
    "namesake": "hash collision",
    "keeper": "dummy interface",
    "unwire": "tear down the pod network",
    "unwired": "torn down",
    "stir": "requeue, trigger",
    "complaint": "error, warning event",
    "overheard": "observed",
    "hearsay": "reported state",
}
"""Each replaced word, and what to write instead."""

PATHS = (
    "*.py",
    "*.md",
    "*.toml",
    "*.sh",
    "*.yaml",
    "*.yml",
    "*.json",
    "Makefile",
    ".ci/run",
    "scripts/*",
    ".importlinter",
)
EXCEPTED = {"scripts/check/words.py", "CHANGELOG.md"}
"""Files that may contain replaced words: this one, and the changelog, whose tables name what was renamed."""

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def replaced_words(line: str) -> list[str]:
    """Return the replaced words in a line, including plurals."""
    found = (word.lower() for word in _WORDS.findall(line))
    return [word for word in found if word in REPLACED or _singular(word) in REPLACED]


def _singular(word: str) -> str:
    return word.removesuffix("es") if word == "wishes" else word.removesuffix("s")


def main() -> int:
    """Print each finding as ``file:line: word: replacement``; return 1 if there are any, otherwise 0."""
    only = sys.argv[1:]
    listed = subprocess.run(["git", "ls-files", "-z", *(only or PATHS)], check=True, capture_output=True, text=True)
    findings = 0
    for name in filter(None, listed.stdout.split("\0")):
        path = Path(name)
        if name in EXCEPTED or "_pb2" in name or not path.is_file():
            continue
        for number, line in enumerate(path.read_text().splitlines(), 1):
            for word in replaced_words(line):
                findings += 1
                print(f"{name}:{number}: {word}: write {REPLACED.get(word) or REPLACED[_singular(word)]}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
