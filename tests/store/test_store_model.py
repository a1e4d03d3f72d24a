"""The store against a dict: any sequence of changes and crashes."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

from deltastore.testing.model import StoreModel

TestStore = StoreModel.TestCase
TestStore.settings = settings(
    max_examples=10,
    stateful_step_count=15,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
