"""Run the API server as a process: `python -m lab.apiserver`.

The command line gives the settings. When the server is ready, the process prints one line of JSON; SIGTERM and SIGINT
shut it down.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
from pathlib import Path

from lab.apiserver.app import RunningServer, Settings, serving


def parse_settings(arguments: list[str]) -> Settings:
    """Return the settings in the command line."""
    parser = argparse.ArgumentParser(prog="python -m lab.apiserver", description=__doc__)
    parser.add_argument("--dir", required=True, type=Path, help="folder of objects, certificates and kubeconfig")
    parser.add_argument(
        "--listen", action="append", default=[], metavar="HOST:PORT", help="repeatable; port 0 picks a free one"
    )
    parser.add_argument(
        "--listen-fd", action="append", default=[], type=int, metavar="FD", help="an inherited listening socket"
    )
    parser.add_argument("--advertise", default="", metavar="HOST:PORT", help="address in the kubeconfig")
    parser.add_argument("--token-auth-file", type=Path, metavar="CSV", help='lines of token,user,uid,"group1,group2"')
    parser.add_argument("--event-log", type=int, default=10_000, help="watch events kept per resource")
    parser.add_argument("--bookmark-after", type=float, default=5.0, help="seconds without an event until a bookmark")
    parser.add_argument("--request-timeout", type=float, default=60.0, help="seconds to wait for an aggregated server")
    parser.add_argument("--kubevirt", default="", metavar="VERSION", help="admit as the webhooks of this KubeVirt do")
    given = parser.parse_args(arguments)
    admission = None
    if given.kubevirt:
        # Imported here because it would delay the start of every API server.
        from lab.kubevirt.admission import admission_of

        admission = admission_of(given.kubevirt)
    return Settings(
        directory=given.dir,
        listen=tuple(given.listen),
        listen_fds=tuple(given.listen_fd),
        advertise=given.advertise,
        tokens=given.token_auth_file,
        event_log=given.event_log,
        bookmark_after=given.bookmark_after,
        request_timeout=given.request_timeout,
        admission=admission,
    )


def ready_line(server: RunningServer) -> str:
    """Return the line that the process prints to stdout when it is ready."""
    return json.dumps(
        {
            "ready": True,
            "server": server.url,
            "kubeconfig": str(server.kubeconfig),
            "listen": list(server.listening),
        }
    )


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; raise the exception of a background task that failed."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with serving(settings) as server:
        print(ready_line(server), flush=True)  # noqa: T201
        ended = asyncio.create_task(stop.wait(), name="stop")
        # The background tasks never end in normal operation, so the end of one is a failure that must end the process.
        await asyncio.wait([ended, *server.tasks], return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        for task in server.tasks:
            if task.done():
                task.result()


def main() -> None:
    """Run the API server until a signal or a failed background task ends it."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(serve(parse_settings(sys.argv[1:])))


if __name__ == "__main__":
    main()
