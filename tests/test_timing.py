"""Latencies: the models of a comparison take turns, and none always follows the same one."""

import pytest
import tiny

from stages.core.tasks import timing


def test_who_goes_first_alternates(monkeypatch):
    asked = []

    def once(model, prompt, new_tokens):
        asked.append(model)
        return len(asked) / 1000, 0.001

    monkeypatch.setattr(timing, "once", once)
    found = timing.compare({"one": "a", "two": "b"}, tiny.ids(1, 4), 2, warmup=1, repeats=4)
    assert asked == ["a", "b", "b", "a", "a", "b", "b", "a", "a", "b"]
    assert [found[name]["prefill_ms"] for name in ("one", "two")] == pytest.approx([(5 + 8) / 2, (6 + 7) / 2])
