#!/usr/bin/env python3
"""Find words that hotnic's glossary replaces, in names, comments, messages and documents.

One name for one thing: whoever knows Kubernetes, KubeVirt and Linux networking reads hotnic without a dictionary of
its own. Identifiers are split into their words, so ``card_xml`` and ``CardMissing`` are found too.
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
"""Each word that is not used, and what is said in its place."""

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
EXCEPTED = {"scripts/check_words.py"}
"""Files that may use such a word: this one."""

_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


def replaced_words(line: str) -> list[str]:
    """Return the replaced words of a line, in its order, plurals included."""
    found = (word.lower() for word in _WORDS.findall(line))
    return [word for word in found if word in REPLACED or _singular(word) in REPLACED]


def _singular(word: str) -> str:
    return word.removesuffix("es") if word == "wishes" else word.removesuffix("s")


def main() -> int:
    """Print each finding as ``file:line: word: what to say``; return 1 when there are any, otherwise 0."""
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
                print(f"{name}:{number}: {word}: say {REPLACED.get(word) or REPLACED[_singular(word)]}")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
