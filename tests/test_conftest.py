from __future__ import annotations

import os

import torch


def test_torch_keeps_to_the_threads_that_test_processes_are_given() -> None:
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])
