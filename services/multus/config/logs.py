"""The daemon's log as ``daemon-config.json`` configures it: the level, and a copy in ``logFile`` rotated by size.

The shim has its own log; the daemon writes the same keys to a file beside it.
Next: :mod:`services.multus.server`.
"""

import logging
import sys
from logging.handlers import RotatingFileHandler

from services.common.telemetry import logs
from services.common.telemetry.logs import Log
from services.multus.config.settings import Config, Settings

MEGABYTE = 1024 * 1024
"""Bytes of a megabyte in ``logOptions.maxSize``."""


def configure_logs(config: Config, settings: Settings, log: Log) -> Log:
    """Configure the log by the merged configuration.

    :param config: the merged configuration.
    :param settings: the role's environment variables.
    :param log: the log so far.
    :returns: the log to use from now on.
    :raises OSError: ``logFile`` cannot be written.
    """
    if config.log_level:
        log = logs.configure("multus", level=config.log_level, form=settings.log_format)
    if config.log_file:
        options = config.log_options
        handler = RotatingFileHandler(
            config.log_file, maxBytes=options.max_size * MEGABYTE, backupCount=options.max_backups, encoding="utf-8"
        )
        handler.setFormatter(logs.formatter("json", sys.stderr))
        root = logging.getLogger()
        # That of an earlier start in the same process.
        for old in [one for one in root.handlers if isinstance(one, RotatingFileHandler)]:
            root.removeHandler(old)
            old.close()
        root.addHandler(handler)
    return log
