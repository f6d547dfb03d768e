"""A statistical profiler for processes that know nothing of it.

`python -m bench --profile` puts this directory on PYTHONPATH; Python imports a module of this name at start. SIGPROF
(at most every millisecond of processor time, on most kernels every tick of 4 ms) adds the Python stack to a count, in
this process and in each child that it forks. Counts are written to PYSIDECAR_BENCH_PROFILE/<pid>.json after every
WRITE_EVERY samples, because a worker may end without running exit handlers.
"""

import atexit
import json
import os
import signal
import sys
from collections import Counter
from types import CodeType, FrameType

INTERVAL_SECONDS = 0.001
WRITE_EVERY = 100
DIRECTORY = os.environ.get("PYSIDECAR_BENCH_PROFILE", "")

_own: Counter[tuple[CodeType, bool]] = Counter()
_total: Counter[CodeType] = Counter()
_samples = 0


def sample(_number: int, frame: FrameType | None) -> None:
    """Count the running function for itself, and every function on the stack once."""
    global _samples
    if frame is None:
        return
    code = frame.f_code
    # A signal that arrives inside the event loop's C code is handled when the next Python function begins.
    _own[code, frame.f_lineno == code.co_firstlineno] += 1
    codes = set()
    while frame is not None:
        codes.add(frame.f_code)
        frame = frame.f_back
    _total.update(codes)
    _samples += 1
    if _samples % WRITE_EVERY == 0:
        write()


def write() -> None:
    own = [[*place(code), at_entry, count] for (code, at_entry), count in _own.items()]
    total = [[*place(code), count] for code, count in _total.items()]
    path = os.path.join(DIRECTORY, f"{os.getpid()}.json")
    with open(path + ".part", "w", encoding="utf-8") as file:
        json.dump({"pid": os.getpid(), "samples": _samples, "own": own, "total": total}, file)
    os.replace(path + ".part", path)


def place(code: CodeType) -> tuple[str, int, str]:
    return code.co_filename, code.co_firstlineno, code.co_qualname


def start() -> None:
    """Begin in this process; also called in every forked child, which inherits the counts but not the timer."""
    global _samples
    _own.clear()
    _total.clear()
    _samples = 0
    signal.signal(signal.SIGPROF, sample)
    signal.setitimer(signal.ITIMER_PROF, INTERVAL_SECONDS, INTERVAL_SECONDS)


def stop() -> None:
    """The timer must not outlive the handler, which the interpreter takes away when it ends."""
    signal.setitimer(signal.ITIMER_PROF, 0)


if DIRECTORY and "proxy" in sys.orig_argv:
    os.register_at_fork(after_in_child=start)
    atexit.register(stop)
    start()
