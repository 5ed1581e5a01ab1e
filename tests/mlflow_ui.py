"""MLflow's own server, for tests and pictures of it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

PATIENCE = 180.0  # seconds


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def mlflow_ui(uri: str, log: Path, folder: Path | None = None) -> Iterator[str]:
    """A real ``mlflow ui``; gives its address. All its processes end with the block.

    It works in ``folder``, where it also puts artifacts; by default that of the log.
    """
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with log.open("w") as output:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri),
                *("--workers", "1", "--port", str(port)),
            ],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=folder or log.parent,
        )
    try:
        give_up = time.monotonic() + PATIENCE
        while True:
            try:
                urllib.request.urlopen(f"{address}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < give_up, log.read_text()
                time.sleep(0.1)
        yield address
    finally:
        for number in (signal.SIGTERM, signal.SIGKILL):
            # The group is killed even when its leader is gone: workers may be left.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
