"""The load of the machine in an MLflow run, which MLflow samples in a thread of its own."""

from __future__ import annotations

import logging
import threading
from importlib.util import find_spec
from typing import Any, Final

log = logging.getLogger(__name__)

THREAD: Final = "SystemMetricsMonitor"
"""Name of MLflow's thread."""


class MachineLoad:
    """Load of CPU, memory, disk, network and GPUs."""

    def __init__(self) -> None:
        self.monitor: Any = None

    def watch(self, uri: str, run_id: str, device: str, *, resumed: bool) -> None:
        """Start to sample, unless that goes on: it ends when the store does not answer.

        Args:
            uri: of the store.
            run_id: of the MLflow run.
            device: the setting of the run.
            resumed: whether the MLflow run has samples already.
        """
        if any(thread.name == THREAD for thread in threading.enumerate()):
            return
        from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor

        again = self.monitor is not None
        self.monitor = SystemMetricsMonitor(
            run_id, resume_logging=again or resumed, tracking_uri=uri
        )
        self.monitor.start()
        sampled = {type(monitor).__name__ for monitor in self.monitor.monitors}
        if not again and not sampled & {"GPUMonitor", "ROCMMonitor"}:
            _say_no_gpu_load(device)

    def finish(self) -> None:
        if self.monitor is not None:
            self.monitor.finish()


def _say_no_gpu_load(device: str) -> None:
    """Say that the load of a GPU is not recorded, if the run uses one."""
    import torch

    if device in ("cpu", "mps") or not torch.cuda.is_available():
        return
    is_amd = torch.version.hip is not None
    package, module = ("pyrsmi", "pyrsmi") if is_amd else ("nvidia-ml-py", "pynvml")
    what = "the driver does not answer" if find_spec(module) else f"pip install {package}"
    log.warning("MLflow: the load of the GPU is not recorded; %s", what)
