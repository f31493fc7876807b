"""`python -m services.lab.apiserver`: settings from the command line, one line of JSON when ready, an orderly end."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import signal
import sys
from pathlib import Path

from services.lab.apiserver.app import Running, Settings, running


def parse_settings(arguments: list[str]) -> Settings:
    parser = argparse.ArgumentParser(prog="python -m services.lab.apiserver", description=__doc__)
    parser.add_argument("--dir", required=True, type=Path, help="where objects, certificates and kubeconfig are kept")
    parser.add_argument(
        "--listen", action="append", default=[], metavar="HOST:PORT", help="may be repeated; port 0 picks one"
    )
    parser.add_argument(
        "--listen-fd", action="append", default=[], type=int, metavar="FD", help="an inherited listening socket"
    )
    parser.add_argument("--advertise", default="", metavar="HOST:PORT", help="what the kubeconfig names")
    parser.add_argument("--token-auth-file", type=Path, metavar="CSV", help='lines of token,user,uid,"group1,group2"')
    parser.add_argument("--event-log", type=int, default=10_000, help="events remembered per resource for watches")
    parser.add_argument("--bookmark-after", type=float, default=5.0, help="seconds of silence before a bookmark")
    parser.add_argument("--request-timeout", type=float, default=60.0, help="seconds an aggregated server may take")
    given = parser.parse_args(arguments)
    return Settings(
        directory=given.dir,
        listen=tuple(given.listen),
        listen_fds=tuple(given.listen_fd),
        advertise=given.advertise,
        tokens=given.token_auth_file,
        event_log=given.event_log,
        bookmark_after=given.bookmark_after,
        request_timeout=given.request_timeout,
    )


def ready_line(server: Running) -> str:
    """What the process says on stdout as soon as it answers."""
    told = {
        "ready": True,
        "server": server.url,
        "kubeconfig": str(server.kubeconfig),
        "listen": list(server.listening),
    }
    return json.dumps(told)


async def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT; raises when a background task broke."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with running(settings) as server:
        print(ready_line(server), flush=True)  # noqa: T201
        ended = asyncio.create_task(stop.wait(), name="stop")
        await asyncio.wait([ended, *server.tasks], return_when=asyncio.FIRST_COMPLETED)
        ended.cancel()
        for task in server.tasks:
            if task.done():
                task.result()


def main() -> None:
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    asyncio.run(serve(parse_settings(sys.argv[1:])))


if __name__ == "__main__":
    main()
