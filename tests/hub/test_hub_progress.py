"""The bars that huggingface_hub is given."""

from __future__ import annotations

import pytest

from deltastore.checkpoint.hub import Unwatched
from deltastore.checkpoint.hub.downloads import Reporter


class Watcher(Unwatched):
    def __init__(self) -> None:
        self.done: list[int] = []

    def advance_download(self, done_bytes: int) -> None:
        self.done.append(done_bytes)


def test_bars_count_and_draw_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    watcher = Watcher()
    reporter = Reporter(watcher)
    with reporter.bar_class()(total=100, desc="x", unit="B", initial=0) as bar:
        bar.update(40)
        bar.update_transfer(30)
        bar.set_postfix_str("fast", refresh=False)
        bar.set_transfer_postfix_str("fast", refresh=False)
    assert watcher.done == [40]
    reporter.bar_class()(total=100).update(100)
    assert watcher.done == [40, -40, 100]
    assert capsys.readouterr() == ("", "")
