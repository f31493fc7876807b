"""The partial import: what it leaves out, and that the whole library can still be imported."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[3]


def run(code: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_generated_models_are_not_imported() -> None:
    measured = run(
        "import json, resource, sys\n"
        "import aiohttp\n"
        "def mib(): return int(open('/proc/self/statm').read().split()[1]) * resource.getpagesize() / 2**20\n"
        "before, modules = mib(), len(sys.modules)\n"
        "from services.common.kube.session.lean import load\n"
        "lean = load()\n"
        "names = [n for n in sys.modules if n.startswith('kubernetes_asyncio')]\n"
        "print(json.dumps([names, mib() - before, len(sys.modules) - modules]))\n"
    )
    names, mib, modules = measured
    assert names == [], "no partly imported module remains"
    assert mib < 12, "the whole library costs about 70 MiB"
    assert modules < 150, "the whole library is more than 1,000 modules"


def test_the_client_does_not_import_the_generated_models() -> None:
    names = run(
        "import json, sys\n"
        "import services.common.kube.client, services.common.kube.cache.reflector\n"
        "import services.common.kube.event_recorder\n"
        "from services.common.kube.session.auth import ClusterAccess\n"
        "ClusterAccess(None)\n"
        "print(json.dumps([n for n in sys.modules if n.startswith('kubernetes_asyncio.client.models')]))\n"
    )
    assert names == []


def test_the_whole_library_can_be_imported_afterwards() -> None:
    kind = run(
        "import json\n"
        "from services.common.kube.session.lean import load\n"
        "lean = load()\n"
        "import kubernetes_asyncio\n"
        "pod = kubernetes_asyncio.client.V1Pod(kind='Pod')\n"
        "assert load().configuration is kubernetes_asyncio.client.Configuration\n"
        "print(json.dumps(pod.to_dict()['kind']))\n"
    )
    assert kind == "Pod"
