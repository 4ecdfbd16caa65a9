"""Logs: one JSON object a line on stderr (structlog), libraries included. No secrets go in: callers log identifiers and outcomes."""

from __future__ import annotations

import logging
import sys

import structlog


def configure(level: int = logging.INFO) -> None:
    """Sets up structlog for this process."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(ensure_ascii=False),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: structlog.PrintLogger(sys.stderr),  # the stderr of the moment: a caller may have exchanged it
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    if not any(isinstance(handler, Foreign) for handler in root.handlers):
        root.addHandler(Foreign())


class Foreign(logging.Handler):
    """What libraries log (aiohttp, asyncio), in our form.

    A client that speaks no HTTP, or goes while we read, made the mistake itself: one line, no traceback that it could fill disks with.
    """

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger(record.name)
        error = record.exc_info[1] if record.exc_info else None
        if isinstance(error, ConnectionError) or type(error).__module__ == "aiohttp.http_exceptions":
            text = str(getattr(error, "message", error)).partition("\n")[0][:100]
            log.info("http.broken", logger=record.name, error=type(error).__name__, text=text)
        else:
            log.log(record.levelno, record.getMessage(), logger=record.name, exc_info=record.exc_info)
