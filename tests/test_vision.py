"""The invariants of the language families on every row of vision families, and what only models with stages have."""

from contextlib import nullcontext
from types import SimpleNamespace

import methods
import numpy as np
import pytest
import tiny_vision
import torch
from transformers import ViTImageProcessor

from stages.core.architecture import depth, ffn, opening, rules, shape, targets, vision_families, windows
from stages.core.architecture.view import ModelView
from stages.core.calibration import activations
from stages.core.forms import checkpoint, counting
from stages.core.forms.dense import to_dense
from stages.core.images import sources, table
from stages.core.process.errors import UserError
from stages.core.settings.surgeries import Drop
from stages.core.shrinking import operations
from stages.core.tasks.images import ImageClassification
from stages.core.training import recovery


def test_every_row_has_a_tiny_model():
    rows = {name for family in vision_families.FAMILIES for name in family.model_types}
    assert rows == {name.split()[0] for name in tiny_vision.CONFIGS}


@tiny_vision.every_family
def test_a_permutation_of_neurons_leaves_the_logits(name):
    view = tiny_vision.view(name)
    changed, broken = view.copy(), view.copy()
    for layer in range(view.depth):
        order = torch.randperm(view.neurons(layer), generator=torch.Generator().manual_seed(layer))
        changed.write(layer, ffn.permute(view.read(layer), order))
        broken.write(layer, ffn.permute(view.read(layer), order) | {"b_in": view.read(layer)["b_in"]})
    assert tiny_vision.gap(view.model, changed.model) < 1e-5
    assert tiny_vision.gap(view.model, broken.model) > 0.1


@tiny_vision.every_family
def test_the_canonical_ffn_is_the_module_and_its_scale_is_its_block_s(name):
    view = tiny_vision.view(name)
    with depth.record_blocks(view, range(view.depth)) as records, torch.no_grad():
        view.run(tiny_vision.pixels())
    for layer, record in records.items():
        found, (x, y) = view.read(layer), record["ffn"]
        inner = torch.nn.functional.linear(x, found["w_in"], found["b_in"])
        act = getattr(view.ffn(layer), view.family.activation)
        torch.testing.assert_close(act(inner) @ found["w_out"].T + found["b_out"], y, atol=1e-5, rtol=1e-5)
        # Without an FFN, the block gives what it gave less the scaled output.
        silent, scale = view.copy(), view.scale(layer)
        silent.write(layer, {key: torch.zeros_like(value) for key, value in found.items()})
        with depth.record_blocks(silent, [layer]) as others, torch.no_grad():
            silent.run(tiny_vision.pixels())
        less = record["block"][1] - others[layer]["block"][1]
        torch.testing.assert_close(less, y if scale is None else scale * y, atol=1e-4, rtol=1e-4)


@tiny_vision.every_family
def test_a_shape_is_the_model_s(name):
    view = tiny_vision.view(name)
    found = view.shape
    assert found.parameters == sum(parameter.numel() for parameter in view.model.parameters())
    assert found.layers == view.depth and found.borders == view.borders
    for layer in range(view.depth):
        assert found.matrices_of(layer) == {role: view.matrix_shape(layer, role) for role in view.roles}
        assert found.stage_of(layer).block == sum(p.numel() for p in view.blocks[layer].parameters())
    (seen,) = activations.stream(view, ("input",), [tiny_vision.pixels(1)])
    with depth.record_blocks(view, range(view.depth)) as records, torch.no_grad():
        view.run(tiny_vision.pixels(1))
    tokens = [len(record["ffn"][0]) for record in records.values()]
    assert max(tokens) == found.positions and {len(rows) for rows in seen["input"]} == {min(tokens)}


@tiny_vision.every_family
def test_fewer_layers_compute_what_they_did(name):
    """Of swin, only where a block keeps its place in its stage: a stock Swin shifts every second block's windows."""
    view, last = tiny_vision.view(name), [0, 1, 2, 3]
    shallow = depth.keep_layers(view, last)
    full, part = (depth.Walk(found, [tiny_vision.pixels()]) for found in (view, shallow))
    for layer in last:
        before, after = full.advance(0, layer)["block"], part.advance(0, layer)["block"]
        torch.testing.assert_close(before[1], after[1], atol=1e-5, rtol=1e-5)
    assert shallow.depth == 4 and shallow.shape.layers == 4
    buffers = dict(view.model.named_buffers())
    assert all(torch.equal(buffers[key], value) for key, value in shallow.model.named_buffers() if key in buffers)


@pytest.mark.parametrize("method", ["share cost centre own", "collapse regression least_squares", "low_rank svd filled",
                                    "drop target", "prune all"])  # fmt: skip
@tiny_vision.every_family
def test_every_method_saves_loads_and_goes_back_to_dense(name, method, tmp_path):
    view = tiny_vision.view(name)
    changed, sharing = operations.operate(
        view, tiny_vision.GROUPS, tiny_vision.calibration(view), methods.METHODS[method]
    )
    checkpoint.save(changed, sharing, tmp_path / "made")
    loaded, structure = checkpoint.load(tmp_path / "made")
    assert structure == sharing and tiny_vision.gap(changed.model, loaded.model) == 0
    dense = to_dense(changed)
    assert type(dense) is type(view.model) and tiny_vision.gap(changed.model, dense) < 1e-4
    counts = counting.count(changed), counting.count(view)
    assert counts[0]["parameters"] < counts[1]["parameters"]
    if "target" in method or "prune" in method or "low_rank" in method:
        assert counts[0]["parameters"] <= targets.target(view.shape, methods.METHODS[method].target_parameters)


@pytest.mark.parametrize(
    "name", tiny_vision.parameters("vit", "deit with teacher", "beit", "swin", "clip", "timm_wrapper")
)
def test_an_export_opens_in_the_stock_class_with_its_image_processor(name, tmp_path, monkeypatch):
    import numpy as np
    from PIL import Image
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    from stages.commands import export

    monkeypatch.chdir(tmp_path)
    view = tiny_vision.view(name)
    spec = methods.METHODS["share cost centre own"]
    shared, sharing = operations.operate(view, tiny_vision.GROUPS, tiny_vision.calibration(view), spec)
    checkpoint.save(shared, sharing, tmp_path / "artifacts/finetuned/mine")
    opening.save_processor(tiny_vision.processor(name), tmp_path / "artifacts/tokenizer")
    export.main("mine", tmp_path / "exported")
    found = AutoModelForImageClassification.from_pretrained(tmp_path / "exported", dtype="float32").eval()
    assert type(found) is type(view.model) and tiny_vision.gap(found, shared.model) < 1e-4
    picture = Image.fromarray(np.arange(300, dtype=np.uint8).reshape(10, 10, 3))
    made = [maker(picture, return_tensors="pt")["pixel_values"] for maker in (
        AutoImageProcessor.from_pretrained(tmp_path / "exported"), tiny_vision.processor(name)
    )]  # fmt: skip
    assert torch.equal(*made) and made[0].shape == (1, 3, tiny_vision.SIDE, tiny_vision.SIDE)


@pytest.mark.parametrize("name", tiny_vision.parameters("timm_wrapper"))
def test_what_timm_opens_is_what_was_exported(name, tmp_path, monkeypatch):
    import timm
    from transformers import AutoModelForImageClassification, TimmWrapperImageProcessor

    from stages.commands import export

    monkeypatch.chdir(tmp_path)
    view = tiny_vision.view(name)
    for method in ("share cost centre own", "collapse regression least_squares"):
        changed, sharing = operations.operate(
            view, tiny_vision.GROUPS, tiny_vision.calibration(view), methods.METHODS[method]
        )
        checkpoint.save(changed, sharing, tmp_path / "artifacts/finetuned/mine")
        opening.save_processor(tiny_vision.processor(name), tmp_path / "artifacts/tokenizer")
        export.main("mine", tmp_path / "dense")
        theirs = timm.create_model(f"local-dir:{tmp_path / 'dense'}", pretrained=True).eval()
        with torch.no_grad():
            torch.testing.assert_close(theirs(tiny_vision.pixels()), tiny_vision.logits(changed.model))
        assert theirs.depths == changed.model.timm_model.depths
        assert [len(stage.blocks) for stage in theirs.stages] == changed.depths(range(changed.depth))
        export.main("mine", tmp_path / "shared", form="shared")
        ours = AutoModelForImageClassification.from_pretrained(tmp_path / "shared", trust_remote_code=True)
        assert tiny_vision.gap(ours.eval(), changed.model) == 0
        reader = TimmWrapperImageProcessor.from_pretrained(
            tmp_path / "shared", image_processor_filename="preprocessor_config.json"
        )
        assert reader.data_config == tiny_vision.processor(name).data_config


@tiny_vision.every_family
def test_a_repair_by_least_squares_lowers_what_is_missing_of_the_stream(name):
    """With a layer scale it is fitted to what the output matrix emits; the scale itself stays as it was."""
    view = tiny_vision.view(name)
    calibration, errors = tiny_vision.calibration(view), {}
    for repair in ("none", "least_squares"):
        spec = methods.COLLAPSES["collapse first none"].model_copy(update={"repair": repair, "alignment": "identity"})
        shallow, _ = operations.operate(view, [[2, 3, 4]], calibration, spec)
        ours, theirs = (depth.Walk(found, calibration.text()) for found in (view, shallow))
        pairs = [(ours.advance(n, 4)["block"][1], theirs.advance(n, 2)["block"][1]) for n in range(2)]
        errors[repair] = sum((a - b).square().mean().item() for a, b in pairs)
        if view.scale(2) is not None:
            assert torch.equal(view.scale(2), shallow.scale(2))
    assert errors["least_squares"] < errors["none"]


@tiny_vision.every_family
def test_merging_equal_layers_changes_nothing(name):
    view = tiny_vision.view(name)
    for group in tiny_vision.GROUPS:
        for layer in group:
            view.write(layer, view.read(group[0]))
    calibration = tiny_vision.calibration(view)
    for biases, base in (("own", "mean"), ("shared", "first")):
        spec = methods.SHARES["share identity first shared"].model_copy(
            update={"biases": biases, "base": base, "delta": "none", "rank": 0, "bias_correction": False}
        )
        shared, _ = operations.operate(view, tiny_vision.GROUPS, calibration, spec)
        assert tiny_vision.gap(view.model, shared.model) < 1e-5


@tiny_vision.every_family
def test_the_last_axis_of_hidden_states_is_the_width(name):
    from stages.core.images.table import Batch

    view, batch = tiny_vision.view(name), Batch(tiny_vision.pixels(2), torch.arange(2))
    with torch.no_grad():
        states = ImageClassification().outputs(view.model, batch, hidden_states=True).hidden_states[1:]
    assert {state.shape[-1] for state in states} <= {view.width(layer) for layer in range(view.depth)}


@pytest.mark.parametrize("name", tiny_vision.parameters("vit", "swin", "timm_wrapper"))
def test_a_distilled_step_counts_labels_states_and_teacher(name):
    from stages.core.images.table import Batch
    from stages.core.settings.recoveries import Distill

    class Rows:
        def __len__(self):
            return 6

        def __getitem__(self, chosen):
            return Batch(tiny_vision.pixels(6)[chosen], torch.arange(6)[chosen])

    task, model, teacher = ImageClassification(2), tiny_vision.model(name), tiny_vision.model(name, seed=1)
    distill = Distill(logits=0.5, temperature=2.0, hidden=1.0)
    batch = torch.tensor([4, 1, 3])
    loss, minimised = recovery.end_to_end(task, model, Rows(), teacher, distill, None)(batch)
    wanted = torch.nn.functional.cross_entropy(model(tiny_vision.pixels(6)[batch]).logits, batch)
    torch.testing.assert_close(loss, wanted)
    same, only = recovery.end_to_end(task, model, Rows(), model, distill, None)(batch)
    torch.testing.assert_close(only, 0.5 * same, atol=1e-5, rtol=1e-5)
    assert minimised > 0.5 * loss
    view, other = ModelView(model), ModelView(teacher)
    error, _ = recovery.layer_by_layer(task, view, Rows(), other, [1, 2])(batch)
    assert error > 0 and recovery.layer_by_layer(task, view, Rows(), view, [1, 2])(batch)[0] == 0


def test_stochastic_depth_is_a_dropout(tmp_path):
    model = tiny_vision.model("beit", drop_path_rate=0.5)
    recovery.set_dropout(model, 0.0)
    torch.testing.assert_close(model.train()(tiny_vision.pixels()).logits, tiny_vision.logits(model.eval()))


# ------------------------------------------------------------------------------------------------------------ stages


def test_blocks_and_windows_end_where_a_stage_ends():
    """Depths 2, 2, 6 and 2, as Swin-T and TinyViT have them."""
    borders = [2, 4, 10]
    assert windows.blocks(12, 4, borders) == [[4, 5, 6, 7], [8, 9]]
    assert windows.blocks(12, 6, borders) == [[4, 5, 6, 7, 8, 9]] and windows.blocks(12, 8, borders) == []
    assert windows.blocks(12, 2, borders) == [[first, first + 1] for first in range(0, 12, 2)]
    assert windows.contiguous(12, [2, 6], [], borders) == [
        (0, 1),
        (2, 3),
        *((n, n + 1) for n in range(4, 9)),
        (10, 11),
        (4, 9),
    ]


def test_what_cannot_exist_is_said_at_the_door(tmp_path):
    from ruamel.yaml import YAML
    from test_vision_stages import settings

    from stages.core.settings import params

    values = settings()
    values["profiles"]["tiny"]["correlate"]["reach"] = 10
    values["variants"]["merged_2"]["windows"]["size"] = 4
    values["variants"]["dropped"] = values["variants"]["original"] | {"surgery": {"method": "drop", "layers": 4}}
    with (tmp_path / "params.yaml").open("w") as file:
        YAML(typ="safe").dump(values, file)
    found = params.load(tmp_path / "params.yaml")
    lines = rules.mistakes(found, "tiny", tiny_vision.view("swin").shape)
    assert sorted(lines) == [
        "variants.dropped.surgery.layers = 4: the stages of this model have 2, 3 layers, so 1 to 3 are allowed",
        "variants.merged_2.windows.size = 4: the stages of this model have 2, 3 layers, so 2 to 3 are allowed",
    ]


def test_a_profile_of_another_task_is_refused(tmp_path):
    from closure import ROOT

    from stages.core.settings import params

    found = params.load(ROOT / "params.yaml")
    (line,) = rules.mistakes(found, found.profile, tiny_vision.view("vit").shape)
    assert line == f"profiles.{found.profile}.task = language: the task of a model of type vit is image_classification"


def test_no_stage_loses_its_last_layer():
    view = tiny_vision.view("swin")
    shallow, _ = operations.operate(view, [], tiny_vision.calibration(view), Drop(method="drop", layers=3))
    assert [depth for _, depth in shallow.stacks] == [1, 1]
    assert tiny_vision.logits(shallow.model).isfinite().all()


def test_a_config_that_makes_no_model_is_named():
    with pytest.raises(UserError, match="config.json"):
        shape.of_config({"model_type": "vit", "hidden_size": "wide"}, "config.json")


def test_a_model_of_timm_without_timm_or_of_another_kind_is_one_line(monkeypatch):
    import sys

    config = {"architecture": "tiny_vit_5m_224", "num_classes": 7, "pretrained_cfg": {"input_size": [3, 224, 224]}}
    with pytest.raises(UserError, match="^config.json: architecture 'resnet50' is not supported; .* 'tiny_vit'$"):
        shape.of_config({**config, "architecture": "resnet50"}, "config.json")
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="^config.json: such models need timm and torchvision, and timm cannot be"):
        shape.of_config(config, "config.json")


@pytest.mark.parametrize(
    ("size", "widths"), [("5m", [128, 160, 320]), ("11m", [128, 256, 448]), ("21m", [192, 384, 576])]
)
@pytest.mark.parametrize("name", tiny_vision.parameters("timm_wrapper"))
def test_the_tinyvits_of_timm_fit_their_profile(name, size, widths):
    """By a config.json as timm writes it: no model type, no depths, 1,000 classes."""
    from closure import ROOT

    from stages.core.settings import params

    said = {
        "architecture": f"tiny_vit_{size}_224",
        "num_classes": 1000,
        "pretrained_cfg": {"input_size": [3, 224, 224]},
    }
    known = shape.of_config(said, "config.json")
    assert [(stage.first, stage.depth, stage.width, stage.hidden) for stage in known.stages] == [
        (first, layers, width, 4 * width) for first, layers, width in zip((0, 2, 8), (2, 6, 2), widths)
    ]
    assert known.positions == 28 * 28 and known.vocabulary == 1000 and known.layers == 10
    found = params.load(ROOT / "params.yaml")
    assert rules.mistakes(found, "tinyvit", known) == []
    asked = rules.variant_mistakes("variants.merged_8", found.variants["merged_8"], known)
    assert list(asked) == [
        "variants.merged_8.windows.size = 8: the stages of this model have 2, 6, 2 layers, so 2 to 6 are allowed"
    ]


@pytest.mark.parametrize("name", ["vit", "deit", "swin"])
def test_a_profile_for_images_fits_its_model(name):
    """The defaults of these configs are the sizes of the models that the profiles name."""
    from closure import ROOT
    from transformers import CONFIG_MAPPING

    from stages.core.settings import params

    kind = {"vit": "ViT", "deit": "DeiT", "swin": "Swin"}[name]
    config = CONFIG_MAPPING[name](num_labels=1000, architectures=[f"{kind}ForImageClassification"]).to_dict()
    assert rules.mistakes(params.load(ROOT / "params.yaml"), name, shape.of_config(config, "config.json")) == []


@pytest.mark.parametrize("name", tiny_vision.parameters("timm_wrapper"))
def test_what_batch_norm_counts_is_trained_kept_and_restored(name):
    """The best state holds the statistics of its moment: a later worse step leaves none of its own behind."""
    from stages.core.training import loop

    model = tiny_vision.model(name)
    counted = [tensor for key, tensor in model.named_buffers() if "running" in key]
    before = [tensor.clone() for tensor in counted]
    best = loop._BestState(model, [*model.parameters(), *loop._statistics(model)], iter([1.0, 2.0]).__next__)
    best.evaluate(0, 0)
    model.train()(tiny_vision.pixels())
    assert not any(torch.equal(*pair) for pair in zip(before, counted))
    best.evaluate(1, 3)
    best.restore()
    assert len(counted) > 10 and all(torch.equal(*pair) for pair in zip(before, counted))


@pytest.mark.parametrize("name", tiny_vision.parameters("vit", "swin", "timm_wrapper"))
def test_work_is_estimated_by_the_tokens_that_a_stage_sees(name):
    """Beside what torch counts. With all tokens in every stage, Swin's would be over tenfold."""
    from torch.utils.flop_counter import FlopCounterMode

    from stages.core.running import quantities

    deep = {
        "vit": {},
        "swin": {"depths": [2, 2, 6, 2], "num_heads": [2, 2, 4, 4], "image_size": 64, "embed_dim": 32},
        "timm_wrapper": {"pretrained_cfg": {"input_size": [3, 64, 64]}},
    }[name]
    built = tiny_vision.model(name, **deep)
    known = shape.of_config(built.config.to_dict(), "config.json")
    size = deep.get("image_size", 64 if deep else tiny_vision.SIDE)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        built(torch.randn(1, 3, size, size))
    assert 0.6 < quantities.forward(known, known.positions) / counter.get_total_flops() < 1.7


@pytest.fixture
def rival(tmp_path):
    """A classifier of the same labels on disk, the original's image processor, and what asks for the rival."""
    own, other = (tiny_vision.model("vit", seed) for seed in (0, 1))
    (tmp_path / "own").mkdir()
    opening.save_processor(tiny_vision.processor(), tmp_path / "own")

    def ask(**labels):
        own.config.id2label = labels.get("own", dict(enumerate(NAMED)))
        other.config.id2label = labels.get("other", own.config.id2label)
        other.save_pretrained(tmp_path / "rival")
        return ImageClassification.external(str(tmp_path / "rival"), None, ModelView(own), tmp_path / "own")

    return ask, tmp_path / "rival"


NAMED = [f"class {number}" for number in range(tiny_vision.LABELS)]


def test_a_rival_that_reads_and_names_alike_is_taken(rival):
    ask, folder = rival
    ask()  # without an image processor of its own
    tiny_vision.processor().save_pretrained(folder)
    ask(other={number: name.upper() for number, name in enumerate(NAMED)})
    ask(other={number: f"LABEL_{number}" for number in range(len(NAMED))})


def test_names_of_two_labels_tell_nothing(rival):
    """ImageNet has cranes twice, birds and machines."""
    ask, _ = rival
    twice = dict(enumerate(NAMED)) | {0: "crane", len(NAMED) - 1: "Crane"}
    ask(own=twice, other=twice)
    moved = twice | {1: NAMED[2], 2: NAMED[1]}
    with pytest.raises(UserError, match=f"{NAMED[1]!r} as label 2, the model under study as 1"):
        ask(own=twice, other=moved)


def test_images_whose_labels_have_other_numbers_than_the_models_are_refused(tmp_path):
    view = ModelView(tiny_vision.model("vit"))
    view.model.config.id2label = dict(enumerate(NAMED))
    pixels = np.random.default_rng(0).integers(0, 256, (tiny_vision.SIDE, tiny_vision.SIDE, 3)).astype(np.uint8)
    rows = [(sources.encoded(pixels), 0)] * 4
    section = SimpleNamespace(max_tokens=8, moment_tokens=8, batch_size=2)
    for names, right in ((NAMED, True), ([], True), (["a", "b"], True), ([NAMED[1], NAMED[0]], False)):
        table.write(tmp_path / "images.parquet", rows, tiny_vision.processor().to_dict(), names)
        with (
            nullcontext() if right else pytest.raises(UserError, match="^prepare.source has 'class 0' as label 1, the")
        ):
            ImageClassification.calibration(view, tmp_path / "images.parquet", section)


@pytest.mark.parametrize(
    "changed", [{"image_mean": [0.1] * 3}, {"do_rescale": False}, {"size": {"height": 7, "width": 7}}]
)
def test_a_rival_that_reads_images_otherwise_is_refused(changed, rival):
    ask, folder = rival
    ViTImageProcessor(**{**tiny_vision.processor().to_dict(), **changed}).save_pretrained(folder)
    with pytest.raises(UserError, match="reads images in another size, range or normalisation"):
        ask()


def test_a_rival_with_labels_in_another_order_or_of_other_things_is_refused(rival):
    ask, _ = rival
    with pytest.raises(UserError, match="has 'class 0' as label 1, the model under study as 0"):
        ask(other=dict(enumerate([NAMED[1], NAMED[0], *NAMED[2:]])))
    with pytest.raises(UserError, match="has no label 'class 0' nor any other of the model under study"):
        ask(other={number: f"thing {number}" for number in range(len(NAMED))})
