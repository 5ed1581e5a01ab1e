from __future__ import annotations

import pytest

from research.tracking import mlflow


@pytest.fixture(autouse=True)
def _deliveries_are_awaited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it would depend on the machine what a store has when."""
    monkeypatch.setattr(mlflow, "SECONDS_FOR_DELIVERY", 60.0)
