"""Latencies: the models of a comparison take turns, and none always follows the same one."""

import tiny

from stages.core.evaluation import timing


def test_who_goes_first_alternates(monkeypatch):
    asked = []

    def once(model, prompt, new_tokens):
        asked.append(model)
        return len(asked) / 1000, 0.001

    monkeypatch.setattr(timing, "once", once)
    found = timing.compare({"one": "a", "two": "b"}, tiny.ids(1, 4), 2, warmup=1, repeats=4)
    assert asked == ["a", "b", "b", "a", "a", "b", "b", "a", "a", "b"]
    assert found["one"]["prefill_ms"] == (4 + 5 + 8 + 9) / 4 and found["two"]["prefill_ms"] == (3 + 6 + 7 + 10) / 4
