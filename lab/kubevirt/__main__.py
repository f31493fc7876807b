"""Play a version of KubeVirt on the cluster of a kubeconfig until SIGTERM: `python -m lab.kubevirt --version 1.9`.

The process prints one line of JSON when the CRDs are served. It is for a cluster without KubeVirt, such as a lab's, or
a Kubernetes API server alone. Launcher pods are played on nodes that do not exist, unless `--real-pods` leaves them to
a scheduler.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import signal
import sys
from pathlib import Path

from lab.kubevirt.pace import Pace
from lab.kubevirt.player import PlayOptions, playing
from lab.kubevirt.versions import LATEST_PATCH, UnknownVersionError, behaviour_of
from lab.kubevirt.webhooks import WebhookServer, serving_webhooks
from services.common.telemetry import logs


def parse(arguments: list[str]) -> tuple[Path, PlayOptions, Pace, WebhookServer | None]:
    """Return the kubeconfig, the options, the pace and the server of webhooks of a command line."""
    parser = argparse.ArgumentParser(prog="python -m lab.kubevirt", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, default=os.environ.get("KUBECONFIG"))
    parser.add_argument("--version", default="1.9", help=f"one of {', '.join(LATEST_PATCH)}, or a release of them")
    parser.add_argument("--method", action="append", default=[], choices=["LiveMigrate", "Evict"], help="repeatable")
    parser.add_argument("--gate", action="append", default=[], help="a feature gate that is on; repeatable")
    parser.add_argument("--delay", type=float, default=0.05, metavar="SECONDS", help="at most so long before each step")
    parser.add_argument("--real-pods", action="store_true", help="leave launcher pods to scheduler, kubelet and Multus")
    parser.add_argument(
        "--webhooks", nargs=3, metavar=("HOST:PORT", "CERTIFICATE", "CA"), help="serve the admission on Kubernetes"
    )
    given = parser.parse_args(arguments)
    if not given.kubeconfig:
        parser.error("no cluster: set KUBECONFIG or give --kubeconfig FILE")
    try:
        behaviour_of(given.version)
    except UnknownVersionError as error:
        parser.error(str(error))
    nodes = () if given.real_pods else PlayOptions().nodes
    options = PlayOptions(given.version, methods=given.method, gates=given.gate, nodes=nodes)
    webhooks = None
    if given.webhooks:
        listen, certificate, ca = given.webhooks
        webhooks = WebhookServer(listen, Path(certificate), Path(ca))
    return Path(given.kubeconfig), options, Pace.spread(given.delay, random.Random()), webhooks


async def serve(kubeconfig: Path, options: PlayOptions, pace: Pace, webhooks: WebhookServer | None) -> None:
    """Play until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        if webhooks is not None:
            await stack.enter_async_context(serving_webhooks(kubeconfig, options.version, webhooks))
        await stack.enter_async_context(playing(kubeconfig, options, pace))
        print(json.dumps({"ready": True, "kubevirt": behaviour_of(options.version).release}), flush=True)  # noqa: T201
        await stop.wait()


def main() -> int:
    """Run the command."""
    logs.configure("kubevirt")
    asyncio.run(serve(*parse(sys.argv[1:])))
    return 0


if __name__ == "__main__":
    sys.exit(main())
