"""The processes that read batches for a loader: how they start, and what ends them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from threading import Thread, current_thread, main_thread

import torch

from research.utils.allocator import keep_freed_memory
from research.utils.errors import UserError

LONGEST_SOCKET = 107
"""Characters in the path of a Unix socket, through which workers send batches."""

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
"""Signals that end a run, see ``research.engine.interrupts``."""


def check_temporary_folder() -> None:
    """Refuse a path with which a worker would fail in a thread, and the run wait for ever."""
    folder = tempfile.gettempdir()
    most = LONGEST_SOCKET - len("/pymp-12345678/listener-12345678")
    if (length := len(os.fsencode(folder))) > most:
        raise UserError(
            "TMPDIR",
            f"{folder}: {length} bytes, workers of the loader can use at most {most}",
            "set TMPDIR=/tmp, or workers=0",
        )


def start_worker(worker: int) -> None:
    """Called in each process when it starts."""
    # The workers run in parallel: threads within each would compete for the cores.
    torch.set_num_threads(1)
    keep_freed_memory()
    main = multiprocessing.parent_process()
    assert main is not None
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        # Before any thread: a signal goes to a thread that does not block it.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        Thread(target=_obey, args=(main,), daemon=True).start()
    Thread(target=_end_with, args=(main,), daemon=True).start()


@contextmanager
def signals_blocked() -> Iterator[None]:
    """Keep ``SIGNALS`` pending: a child that is started here cannot be ended by them."""
    if not hasattr(signal, "sigwaitinfo"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def report_dead_workers_here() -> None:
    """Let the loader find out, within 5 s, that a worker was killed.

    PyTorch also has a handler that raises an exception wherever the main process is when it
    happens, and again whenever another process ends: also while the end of the run is recorded.
    """
    if hasattr(signal, "SIGCHLD") and current_thread() is main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def _end_with(main: BaseProcess) -> None:
    """End when the main process is killed, and with it release the lock of the run folder."""
    main.join()
    os._exit(0)


def _obey(main: BaseProcess) -> None:
    """Ignore signals, except SIGTERM from the main process.

    A scheduler signals all processes of a job, but the main process needs its workers to finish
    the step. It terminates them when it ends.
    """
    while True:
        info = signal.sigwaitinfo(SIGNALS)
        if info.si_signo == signal.SIGTERM and info.si_pid == main.pid:
            os._exit(0)
