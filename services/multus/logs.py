"""The daemon's log as ``daemon-config.json`` wants it: its level, and a second copy in ``logFile``, rotated by size.

Not the shim's log: the same keys reach it through the runtime's configuration. Next: :mod:`services.multus.server`.
"""

import logging
import sys
from logging.handlers import RotatingFileHandler

from services.common import logs
from services.common.logs import Log
from services.multus.settings import Config, Settings

MEGABYTE = 1024 * 1024


def applied(config: Config, settings: Settings, log: Log) -> Log:
    """The log to use from here on.

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
        logging.getLogger().addHandler(handler)
    return log
