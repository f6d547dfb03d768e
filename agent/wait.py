"""`pilot-agent wait`: ask a URL until it answers 200. Pods run it to hold the application until the proxy is ready."""

import time

from agent import log
from agent.errors import AgentError, UsageError
from agent.flags import Parsed
from agent.http.blocking import Target, get, parse_url
from agent.http.exchange import HttpError
from agent.options import WaitOptions, wait_options

_log = log.scope()


def run(parsed: Parsed) -> int:
    options = wait_options(parsed)
    try:
        target = parse_url(options.url)
    except ValueError as error:
        raise UsageError(f"--url: {options.url[:256]!r}: {error}") from None
    wait_until_ready(options, target)
    return 0


def wait_until_ready(options: WaitOptions, target: Target) -> None:
    """Sleep one period, ask, and again, until the answer is exactly 200 with its body read.

    Raises AgentError with the last failure when the time is over.
    """
    _log.info(f"Waiting for the proxy to be ready at {options.url} (timeout {options.timeout_s:g}s)")
    end = time.monotonic() + options.timeout_s
    last = ""
    while True:
        left = end - time.monotonic()
        if left <= options.period_s:
            time.sleep(max(0.0, left))
            asked = f"timed out after {options.timeout_s:g}s waiting for {options.url} to answer 200"
            raise AgentError(f"{asked}; last error: {last or 'not asked yet'}")
        time.sleep(options.period_s)
        now = time.monotonic()
        # The real program reads 0 as "no limit" for one request; the limit of the whole wait holds in any case.
        limit = now + options.request_timeout_s if options.request_timeout_s else end
        try:
            status = get(target, min(limit, end))
        except HttpError as error:
            # What our own end cut short says less than the answer before it.
            if not last or time.monotonic() < end:
                last = str(error)
        else:
            if status == 200:
                _log.info("The proxy is ready")
                return
            last = f"status {status}"
        _log.debug(f"Not ready: {last}")
