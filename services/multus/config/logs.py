"""The daemon's log as ``daemon-config.json`` configures it: the level, and a copy in ``logFile`` rotated by size.

Both are about the lines of the daemon and of its HTTP server. Those of other libraries, and of other roles in the same
process, stay as they are. The shim has its own log; the daemon writes the same keys to a file beside it.
Next: :mod:`services.multus.server`.
"""

import logging
import sys
from logging.handlers import RotatingFileHandler

from services.common.telemetry import logs
from services.common.telemetry.logs import Log
from services.multus.config.settings import Config

LOGGERS = ("hotnic.multus", "hotnic.http")
"""The daemon's own one, and that of its HTTP server, which logs what fails before a call is handled."""
MEGABYTE = 1024 * 1024
"""Bytes of a megabyte in ``logOptions.maxSize``."""


def configure_logs(config: Config, log: Log) -> Log:
    """Configure the daemon's log by the merged configuration.

    :param config: the merged configuration.
    :param log: the log so far.
    :returns: the log to use from now on.
    :raises OSError: ``logFile`` cannot be written.
    """
    for name in LOGGERS:
        own = logging.getLogger(name)
        # Those of an earlier start in the same process.
        for old in own.handlers[:]:
            own.removeHandler(old)
            old.close()
        own.setLevel(config.log_level.upper() if config.log_level else logging.NOTSET)
    if config.log_level:
        log = logs.logger("multus", config.log_level, role="multus")
    if config.log_file:
        options = config.log_options
        handler = RotatingFileHandler(
            config.log_file, maxBytes=options.max_size * MEGABYTE, backupCount=options.max_backups, encoding="utf-8"
        )
        handler.setFormatter(logs.formatter("json", sys.stderr))
        for name in LOGGERS:
            logging.getLogger(name).addHandler(handler)
    return log
