"""Layers to leave out: the search ends at the target, and influence alone is never better."""

import pytest
import tiny

from stages.core.architecture import targets
from stages.core.architecture.depth import keep_layers
from stages.core.settings.surgeries import Drop
from stages.core.settings.variants import Variant
from stages.core.settings.windows import Layers
from stages.core.shrinking import baselines, layer_search, operations


def without(view, gone):
    return keep_layers(view, [layer for layer in range(view.depth) if layer not in gone])


@pytest.mark.parametrize("name", ["gpt2", "gemma2"])
def test_the_search_is_greedy_and_no_worse_than_influence(name):
    model = tiny.model(name)
    view, known = tiny.view(model), tiny.calibration(model)
    spec = Layers(choose="layers", shortlist=view.depth, target_parameters=view.shape.parameters - 2 * view.shape.block)

    def score(shallow):
        return 1.0 + tiny.gap(model, shallow.model)

    chosen, *others = layer_search.search(view, known, spec, score)
    assert tiny.count(without(view, chosen.layers).model)["parameters"] <= targets.target(
        view.shape, spec.target_parameters
    )
    firsts = {one.layers[0]: one.perplexity for one in [chosen, *others] if len(one.layers) == 1}
    assert firsts == {layer: pytest.approx(score(without(view, [layer]))) for layer in range(view.depth)}
    best = min(firsts, key=firsts.get)
    assert all(best in one.layers for one in others[1 + view.depth :])
    by_influence, _ = baselines.drop(view, known, Drop(method="drop", layers=2))
    assert chosen.perplexity <= score(by_influence) + 1e-9
    found, _ = operations.operate(view, [], known, Drop(method="drop"), dropped=chosen.layers)
    assert score(found) == pytest.approx(chosen.perplexity)


def test_where_layers_alone_do_not_reach_the_target_all_go_that_may():
    view = tiny.view(tiny.model("gpt2"))
    spec = Layers(choose="layers", target_parameters=1)
    steps = layer_search.steps(view, tiny.calibration(view.model), spec, lambda shallow: shallow.depth)
    assert [len(step[0].layers) for step in steps] == list(range(1, view.depth))


@pytest.mark.parametrize(
    "windows, surgery, said",
    [
        ({"choose": "layers", "target_parameters": 0.9}, {"layers": 2}, "windows.choose = layers has the target"),
        ({"choose": "none"}, {}, "either layers or target_parameters"),
    ],
)
def test_the_target_stands_in_one_place(windows, surgery, said):
    with pytest.raises(ValueError, match=said):
        Variant(windows=windows, surgery={"method": "drop", **surgery}, finetune={})
