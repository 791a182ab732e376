"""Latencies: the models of a comparison take turns, and none always follows the same one."""

import pytest
import tiny
import torch

from stages.core.tasks import timing


def test_who_goes_first_alternates(monkeypatch):
    asked = []

    def generation(model, prompt, new_tokens):
        for _ in range(1 + len(timing.blocks(new_tokens))):
            asked.append(model)
            yield len(asked) / 1000

    monkeypatch.setattr(timing, "generation", generation)
    rows = timing.turns({"one": "a", "two": "b"}, tiny.ids(1, 4), 2, warmup=1, repeats=4)
    found = {name: timing.summary(turns) for name, turns in rows.items()}
    # Each turn is a prompt and one block.
    assert asked == [*"abba", *"baab", *"abba", *"baab", *"abba"]
    # The prompts of turns that count: the first of four figures, or the second.
    assert [found[name]["prefill_ms"] for name in ("one", "two")] == pytest.approx([(6 + 9 + 14 + 17) / 4, 11.5])
    assert [found[name]["prefill_iqr_ms"] for name in ("one", "two")] == pytest.approx([14.75 - 8.25, 14.25 - 8.75])


def test_a_slow_phase_does_not_change_the_speed_up(monkeypatch):
    """Whenever it begins, both models are in it; a ratio of medians would take it for a difference."""
    calls = []

    def generation(model, prompt, new_tokens):
        for size in [1, *timing.blocks(new_tokens)]:
            calls.append(model)
            yield size * model * (9.0 if len(calls) > 70 else 1.0)

    monkeypatch.setattr(timing, "generation", generation)
    rows = timing.turns({"original": 3.0, "variant": 2.0}, tiny.ids(1, 4), 20, warmup=1, repeats=12)
    assert timing.speedup(rows["original"], rows["variant"], 20) == pytest.approx(1.5)
    assert {len(times) for times in rows.values()} == {12}


def test_who_passes_first_alternates_and_a_slow_phase_does_not_change_the_ratio(monkeypatch):
    asked, clock = [], [0.0]

    def model(name, seconds):
        def run(batch):
            asked.append(name)
            clock[0] += seconds * (9.0 if len(asked) > 6 else 1.0)

        return run

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    rows = timing.passes({"one": model("a", 3.0), "two": model("b", 2.0)}, tiny.ids(1, 4), warmup=1, repeats=4)
    assert asked == [*"ab", *"ba", *"ab", *"ba", *"ab"]
    assert rows["one"] == pytest.approx([3, 3, 27, 27]) and rows["two"] == pytest.approx([2, 2, 18, 18])
    assert timing.ratio(rows["one"], rows["two"]) == pytest.approx(1.5)
    assert timing.spread_ms(rows["two"]) == pytest.approx((10_000, 16_000))


@pytest.mark.parametrize("new_tokens", [1, 8, 11])
def test_a_generation_is_greedy_and_of_its_length(new_tokens):
    model, prompt, read = tiny.model("gpt2"), tiny.ids(1, 5), []
    model.register_forward_pre_hook(lambda _, inputs, named: read.append(inputs[0]), with_kwargs=True)
    seconds = list(timing.generation(model, prompt, new_tokens))
    assert len(seconds) == 1 + len(timing.blocks(new_tokens)) and sum(timing.blocks(new_tokens)) == new_tokens
    assert [ids.shape[1] for ids in read] == [5, *[1] * new_tokens]
    whole = torch.cat(read, 1)
    expected = tiny.logits(model, whole[:, :-1])[:, 4:].argmax(-1)
    assert torch.equal(whole[:, 5:], expected)
