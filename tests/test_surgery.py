"""Groups of layers, and what each operation does to a model."""

import copy
from dataclasses import replace

import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from stages.core.architecture import depth, ffn, windows
from stages.core.calibration.moments import Moments
from stages.core.forms import structure
from stages.core.settings.surgeries import Keep
from stages.core.shrinking import merging
from stages.core.shrinking.repair import least_squares

# Windows


@given(st.integers(2, 40).flatmap(lambda depth: st.tuples(st.just(depth), st.integers(2, depth))))
def test_windows_partition_or_slide(allowed):
    depth, size = allowed
    flat = [layer for group in windows.blocks(depth, size) for layer in group]
    assert flat == list(range(depth - (depth % size == 1)))
    assert all(2 <= len(group) <= size for group in windows.blocks(depth, size))
    sliding = windows.contiguous(depth, [size])
    assert [window[0] for window in sliding] == list(range(depth - size + 1)) and sliding[-1][-1] == depth - 1
    assert all(windows.layers(window) == list(range(window[0], window[0] + size)) for window in sliding)


def test_blocks_of_five_layers():
    assert windows.blocks(5, 3) == [[0, 1, 2], [3, 4]]
    assert windows.blocks(5, 2) == [[0, 1], [2, 3]]


# Sharing


@pytest.mark.parametrize("biases", ["own", "shared"])
@pytest.mark.parametrize("base", merging.BASES)
@pytest.mark.parametrize("alike", ["equal", "shuffled"])
@tiny.every_family
def test_sharing_twins_changes_nothing(name, alike, base, biases):
    twins = tiny.twins(name, alike)
    alignment = "pre_activation" if alike == "shuffled" else "identity"
    spec = tiny.share(base=base, biases=biases, alignment=alignment)
    shared, _ = tiny.operate(twins, tiny.GROUPS, tiny.calibration(twins), spec)
    for layer in range(tiny.LAYERS):
        found, expected = tiny.view(shared).read(layer), tiny.view(twins).read(0)
        assert all((found[key] - expected[key]).abs().max() <= 1e-6 for key in found)
    assert tiny.gap(twins, shared) <= (1e-6 if alike == "equal" else 1e-4)


@tiny.every_family
def test_shuffled_twins_shared_without_alignment_would_show(name):
    twins = tiny.twins(name, "shuffled")
    shared, _ = tiny.operate(twins, tiny.GROUPS, tiny.calibration(twins), tiny.share(alignment="identity"))
    assert tiny.gap(twins, shared) > 0.1


@pytest.mark.parametrize("base", ["first", "mean"])
@pytest.mark.parametrize("biases", ["own", "shared"])
@tiny.every_family
def test_base_and_biases_are_those_asked_for(name, base, biases):
    model = tiny.model(name)
    known = tiny.calibration(model)
    shared, _ = tiny.operate(model, tiny.GROUPS, known, tiny.share(base=base, biases=biases))
    for first, *others in tiny.GROUPS:
        members = [tiny.view(model).read(first)]
        members += [
            ffn.permute(tiny.view(model).read(layer), known.permutation("cost", "first", first, layer))
            for layer in others
        ]
        for member, layer in zip(members, [first, *others]):
            for key, found in tiny.view(shared).read(layer).items():
                mean = sum(m[key] for m in members) / len(members)
                if key.startswith("w_"):
                    merged = {"mean": mean, "first": members[0][key]}[base]
                else:
                    merged = mean
                own = key.startswith("b_") and biases == "own"
                torch.testing.assert_close(found, member[key] if own else merged, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("delta", "base"), [("svd", "first"), ("svd", "mean"), ("weighted", "mean"), ("joint", "regression")]
)
@tiny.every_family
def test_deltas_of_full_rank_give_the_original(name, delta, base):
    model = tiny.model(name)
    assert tiny.gap(model, tiny.shared(name, tiny.WIDTH, delta=delta, base=base)[0]) <= 1e-5
    assert tiny.gap(model, tiny.shared(name, 4)[0]) > 0.1


@tiny.every_family
def test_zero_deltas_start_where_plain_sharing_starts(name):
    plain, zero = tiny.shared(name)[0], tiny.shared(name, 4, delta="zero")[0]
    assert tiny.gap(plain, zero) == 0
    assert all(delta.B.any() for delta in structure.deltas(zero))


@pytest.mark.parametrize("spec", [tiny.share(), tiny.share(4), tiny.collapse()], ids=["share", "deltas", "collapse"])
@tiny.every_family
def test_a_window_of_one_gives_the_original(name, spec):
    model = tiny.model(name)
    for groups in ([[2]], [], [[layer] for layer in range(tiny.LAYERS)]):
        assert tiny.gap(model, tiny.operate(model, groups, tiny.calibration(model), spec)[0]) <= 1e-5


@pytest.mark.parametrize(
    "spec",
    [Keep(method="none"), tiny.share(), tiny.share(4), tiny.collapse()],
    ids=["none", "share", "deltas", "collapse"],
)
@tiny.every_family
def test_the_original_stays_as_it_is(name, spec):
    model = tiny.model(name)
    before = tiny.state(model)
    changed, _ = tiny.operate(model, tiny.GROUPS, tiny.calibration(model), spec)
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.zero_()
    assert tiny.same(tiny.state(model), before)
    assert len(list(model.parameters())) == len(list(tiny.model(name).parameters()))


# Collapse


@pytest.mark.parametrize("base", merging.BASES)
@pytest.mark.parametrize("alike", ["equal", "shuffled"])
@tiny.every_family
def test_collapsing_twins_keeps_their_ffn(name, alike, base):
    twins = tiny.twins(name, alike)
    alignment = "pre_activation" if alike == "shuffled" else "identity"
    spec = tiny.collapse(base=base, alignment=alignment)
    shallow, _ = tiny.operate(twins, tiny.GROUPS, tiny.calibration(twins), spec)
    for layer in range(2):
        found, expected = tiny.view(shallow).read(layer), tiny.view(twins).read(0)
        assert all((found[key] - expected[key]).abs().max() <= 1e-6 for key in found)


@tiny.every_family
def test_collapse_keeps_the_first_layer_of_a_group_and_all_outside(name):
    model = tiny.model(name)
    family = tiny.family(model)
    shallow, sharing = tiny.operate(model, [[1, 2, 3]], tiny.calibration(model), tiny.collapse())
    assert shallow.config.num_hidden_layers == len(tiny.view(shallow).blocks) == 3 and not sharing.groups
    ffns = [tiny.view(shallow).read(layer) for layer in range(3)]
    assert tiny.same(ffns[0], tiny.view(model).read(0)) and tiny.same(ffns[2], tiny.view(model).read(4))
    for layer, old in enumerate([0, 1, 4]):
        blocks = [tiny.state(tiny.view(m).blocks[i]) for m, i in ((shallow, layer), (model, old))]
        kept = [{k: v for k, v in block.items() if not k.startswith(family.ffn + ".")} for block in blocks]
        assert kept[0] and tiny.same(*kept)
    outside = [{k: v for k, v in tiny.state(m).items() if not k.startswith(family.layers)} for m in (shallow, model)]
    assert tiny.same(*outside)


def test_collapse_shortens_settings_with_one_entry_a_layer():
    kinds = ["full_attention", "sliding_attention", "full_attention", "full_attention", "sliding_attention"]
    model = tiny.model("qwen2", use_sliding_window=True, sliding_window=4, layer_types=kinds)
    shallow, _ = tiny.operate(model, [[0, 1, 2]], tiny.calibration(model), tiny.collapse())
    assert shallow.config.layer_types == ["full_attention", "full_attention", "sliding_attention"]
    assert model.config.layer_types == kinds


@pytest.mark.parametrize("spec", [tiny.share(), tiny.share(4), tiny.collapse()], ids=["share", "deltas", "collapse"])
@tiny.every_family
def test_generation_with_a_cache_equals_the_loop_without(name, spec):
    model = tiny.model(name)
    changed = tiny.operate(model, [[1, 2, 3]], tiny.calibration(model), spec)[0]
    ids = prompt = tiny.ids(1, 9)
    for _ in range(12):
        ids = torch.cat([ids, tiny.logits(changed, ids)[:, -1:].argmax(-1)], dim=1)
    written = changed.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=12)
    assert torch.equal(written, ids)


def test_operations_do_not_depend_on_the_global_seed():
    model, states = tiny.model("gpt2"), []
    for seed in range(2):
        torch.manual_seed(seed)
        spec = tiny.share(4, delta="zero")
        states.append(tiny.state(tiny.operate(copy.deepcopy(model), tiny.GROUPS, tiny.calibration(model), spec)[0]))
    assert tiny.same(*states)


# Repairs of a collapsed group


def idle(name):
    """A model whose layers 1 and 2 add nothing to the residual stream."""
    model = tiny.model(name)
    for layer in (1, 2):
        for key, parameter in tiny.view(model).blocks[layer].named_parameters():
            if key.split(".")[1] in ("c_proj", "o_proj", "down_proj"):
                torch.nn.init.zeros_(parameter)
    return model


def missed(model, shallow, known):
    """E|t - y|^2: how far the stream after the merged layer 0 is from the original's after layer 2."""
    error = 0.0
    with (
        depth.record_blocks(tiny.view(model), [2]) as wanted,
        depth.record_blocks(tiny.view(shallow), [0]) as found,
        torch.no_grad(),
    ):
        for batch in known.text():
            model.base_model(batch), shallow.base_model(batch)
            error += (wanted[2]["block"][1] - found[0]["block"][1]).double().square().sum().item()
    return error


@pytest.mark.parametrize("how", ["scale", "least_squares"])
@tiny.every_family
def test_a_group_whose_others_do_nothing_is_its_first_layer(name, how):
    model = idle(name)
    spec = tiny.collapse(base="first", repair=how)
    known = tiny.calibration(model)
    # More rows than neurons, so that the least squares are determined.
    known = replace(known, text=lambda: [tiny.ids(32, seed=seed) for seed in range(4)])
    shallow, _ = tiny.operate(model, [[0, 1, 2]], known, spec)
    assert tiny.gap(model, shallow) <= 1e-3 < tiny.gap(tiny.model(name), shallow)


@pytest.mark.parametrize("base", merging.BASES)
@tiny.every_family
def test_a_repair_never_hurts_on_its_own_objective_and_more_freedom_helps(name, base):
    model = tiny.model(name)
    known = tiny.calibration(model)
    errors = [
        missed(model, tiny.operate(model, [[0, 1, 2]], known, tiny.collapse(base=base, repair=how))[0], known)
        for how in ("none", "scale", "least_squares")
    ]
    assert errors[2] < errors[1] * (1 + 1e-6) and errors[1] < errors[0] * (1 + 1e-6)


def unlike(model, shared, known, layers):
    """What every FFN of `layers` answers in the model, and in the shared one to the same inputs: (tokens, d) each."""
    family, found = tiny.family(model), {layer: ([], []) for layer in layers}
    with depth.record_blocks(tiny.view(model), layers) as seen, torch.no_grad():
        for batch in known.text():
            model.base_model(batch)
            for layer, (wanted, answered) in found.items():
                read, answer = seen[layer]["ffn"]
                wanted.append(answer.double())
                answered.append(getattr(tiny.view(shared).blocks[layer], family.ffn)(read).double())
    return {layer: tuple(map(torch.cat, pair)) for layer, pair in found.items()}


@pytest.mark.parametrize("biases", ["own", "shared"])
@tiny.every_family
def test_a_repaired_share_answers_more_like_each_of_its_layers(name, biases):
    model = tiny.model(name)
    known = tiny.calibration(model)
    known = replace(known, text=lambda: [tiny.ids(32, seed=seed) for seed in range(4)])
    spec = tiny.share(base="regression", biases=biases)
    plain, _ = tiny.operate(model, tiny.GROUPS, known, spec)
    better, _ = tiny.operate(model, tiny.GROUPS, known, spec.model_copy(update={"repair": "least_squares"}))
    for group in tiny.GROUPS:
        pairs = [unlike(model, shared, known, group) for shared in (plain, better)]
        errors = [sum((y - z).square().sum() for y, z in found.values()) for found in pairs]
        assert errors[1] < 0.9 * errors[0]
        # A bias takes up the mean of what is left: each layer's own, or that of all.
        left = [(y - z).mean(0) for y, z in pairs[1].values()]
        if "b_out" in tiny.view(model).read(0):
            for rest in left if biases == "own" else [sum(left)]:
                assert rest.abs().max() < 1e-5
    assert tiny.count(better) == tiny.count(plain)


@tiny.every_family
def test_layers_that_are_alike_need_no_repair(name):
    model = tiny.twins(name, "shuffled")
    spec = tiny.share(alignment="cost", repair="least_squares")
    shared, _ = tiny.operate(model, tiny.GROUPS, tiny.calibration(model), spec)
    assert tiny.gap(model, shared) < 1e-4


@pytest.mark.parametrize("spec", [tiny.share(repair="least_squares"), tiny.collapse(repair="least_squares")])
@tiny.every_family
def test_one_window_after_the_other_is_repaired_as_alone_and_walks_through_the_first_layers_once(name, spec):
    model, passes, windows = tiny.model(name), [], [[0, 1], [1, 2], [1, 2, 3], [2, 3], [2, 3, 4], [3, 4], [0, 1, 2]]
    alone = [tiny.state(tiny.operate(model, [group], tiny.calibration(model), spec)[0]) for group in windows]
    known = tiny.calibration(model)
    part = next(tiny.view(model).blocks[0].children())  # a block that is passed over calls none of its parts
    part.register_forward_hook(lambda *_: passes.append(1))
    for group, wanted in zip(windows, alone):
        if group == windows[-1]:  # back to the start; until then layer 0 was passed on the way to 1 and for its own
            assert len(passes) <= 4 * len(known.text())
        assert tiny.same(tiny.state(tiny.operate(model, [group], known, spec)[0]), wanted)


@pytest.mark.parametrize("ridge", [1e-9, 1e-2])
@pytest.mark.parametrize("biased", [True, False])
def test_least_squares_leave_no_gradient(biased, ridge):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(200, 12, dtype=torch.float64, generator=generator) + 0.5
    old = {"w_out": torch.randn(4, 8, dtype=torch.float64, generator=generator), "b_out": torch.ones(4).double()}
    if not biased:
        del old["b_out"]
    joint = Moments(rows.mean(0), rows.T @ rows / len(rows))
    found = least_squares(old, joint, ridge)
    left = rows[:, 8:] - rows[:, :8] @ found["w_out"].T - found.get("b_out", 0.0)
    scale = (joint.centred() if biased else joint).second.diagonal()[:8].mean()
    gradient = left.T @ rows[:, :8] / len(rows) - ridge * scale * (found["w_out"] - old["w_out"])
    assert gradient.abs().max() < 1e-10
    assert not biased or left.mean(0).abs().max() < 1e-10


@tiny.every_family
def test_differences_add_up(name):
    model = tiny.model(name)
    spec = tiny.collapse(alignment="identity", base="first", repair="differences")
    shallow, _ = tiny.operate(model, [[0, 1, 2]], tiny.calibration(model), spec)
    ffns = [tiny.view(model).read(layer) for layer in range(3)]
    for key, found in tiny.view(shallow).read(0).items():
        torch.testing.assert_close(found, ffns[1][key] + ffns[2][key] - ffns[0][key], atol=1e-5, rtol=0)


@tiny.every_family
def test_a_walk_sees_what_one_pass_sees_and_leaves_no_trace(name):
    model, text = tiny.model(name), [tiny.ids(3), tiny.ids(2, seed=1)]
    before = tiny.logits(model)
    walk = depth.Walk(tiny.view(model), text)
    for layer in (0, 2, 2, 4):
        for number, ids in enumerate(text):
            with depth.record_blocks(tiny.view(model), [layer]) as seen:
                model.base_model(ids, use_cache=False)
            found = walk.advance(number, layer)
            assert found.keys() == seen[layer].keys()
            assert all(torch.equal(a, b) for part in found for a, b in zip(found[part], seen[layer][part]))
    assert torch.equal(tiny.logits(model), before)
    assert not any("forward" in vars(block) for block in tiny.view(model).blocks)


@tiny.every_family
def test_a_repair_with_deltas_answers_more_like_each_layer(name):
    """At the same ranks and size; deltas of full rank leave nothing to repair."""
    model = tiny.model(name)
    known = replace(tiny.calibration(model), text=lambda: [tiny.ids(32, seed=seed) for seed in range(4)])
    spec = tiny.share(4, base="regression", delta="joint", bias_correction=True)
    plain, better = (
        tiny.operate(model, tiny.GROUPS, known, spec.model_copy(update={"repair": how}))[0]
        for how in ("none", "least_squares")
    )
    for group in tiny.GROUPS:
        pairs = [unlike(model, shared, known, group) for shared in (plain, better)]
        errors = [sum((y - z).square().sum() for y, z in found.values()) for found in pairs]
        assert errors[1] < 0.9 * errors[0]
        if "b_out" in tiny.view(model).read(0):
            assert all((y - z).mean(0).abs().max() < 1e-5 for y, z in pairs[1].values())
    assert tiny.count(better) == tiny.count(plain)
    whole = spec.model_copy(update={"rank": tiny.WIDTH, "repair": "least_squares"})
    assert tiny.gap(model, tiny.operate(model, tiny.GROUPS, known, whole)[0]) < 1e-3


@tiny.every_family
def test_other_layers_are_refitted_in_the_model_s_own_stream(name):
    model, group = tiny.model(name), [1, 2]
    known = replace(tiny.calibration(model), text=lambda: [tiny.ids(32, seed=seed) for seed in range(4)])
    spec = tiny.share(2, base="regression", delta="joint")
    plain, better = (
        tiny.operate(model, [group], known, spec.model_copy(update={"refit_others": on}))[0] for on in (False, True)
    )
    changed = {
        layer: {key for key, value in tiny.view(plain).read(layer).items() if not torch.equal(value, after[key])}
        for layer in (0, 3, 4)
        for after in [tiny.view(better).read(layer)]
    }
    assert not changed[0] and all(changed[layer] <= {"w_out", "b_out"} and changed[layer] for layer in (3, 4))
    streams = [[] for _ in range(3)]
    for found, built in zip(streams, (model, plain, better)):
        with depth.record_blocks(tiny.view(built), [4]) as seen, torch.no_grad():
            for batch in known.text():
                built.base_model(batch)
                found.append(seen[4]["block"][1].double())
    wanted, before, after = map(torch.cat, streams)
    assert (after - wanted).square().sum() < (before - wanted).square().sum()
    assert tiny.count(better) == tiny.count(plain)
