"""Baselines: what they store, that they survive the disk and training, and what their closed forms promise."""

from dataclasses import replace

import pytest
import tiny
import torch
from test_sharing import formula
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from stages.core.architecture import opening, shape, targets
from stages.core.architecture.depth import influence
from stages.core.calibration.moments import SITE, Moments
from stages.core.forms import counting
from stages.core.process.artifacts import read_tensors
from stages.core.process.errors import UserError
from stages.core.settings.surgeries import Drop, LowRank, Prune
from stages.core.settings.trainings import Schedule
from stages.core.settings.windows import Like
from stages.core.shrinking import baselines, lowrank
from stages.core.training import loop, recovery

TARGET = Like(size=3, rank=2)


def low_rank(fit="weighted", ranks="filled", correction=True, target=TARGET):
    return LowRank(method="low_rank", fit=fit, ranks=ranks, bias_correction=correction, target_parameters=target)


SPECS = {
    "drop": Drop(method="drop", target_parameters=TARGET),
    "svd": low_rank("svd", "equal", False),
    "weighted": low_rank(),
    "basis equal": LowRank(method="low_rank", fit="weighted", ranks="equal", basis=2, target_parameters=TARGET),
    "basis": LowRank(
        method="low_rank", fit="weighted", ranks="filled", basis=3, bias_correction=True, target_parameters=TARGET
    ),
    "pruned each": Prune(method="prune", scope="matrix", target_parameters=TARGET),
    "pruned all": Prune(method="prune", scope="all", target_parameters=TARGET),
    "pruned by input": Prune(method="prune", score="input", target_parameters=TARGET),
    "pruned rows": Prune(method="prune", score="input", scope="row", target_parameters=TARGET),
}
every_baseline = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)


def built(name, spec):
    model = tiny.model(name)
    return tiny.operate(model, [], tiny.calibration(model), spec)


@tiny.every_family
def test_a_target_like_a_window_is_what_the_window_stores(name):
    model = tiny.model(name)
    known = tiny.calibration(model)
    shared, _ = tiny.operate(model, [[0, 1, 2]], known, tiny.share(2))
    assert targets.target(shape.of_model(model), TARGET) == tiny.count(shared)["parameters"]


@every_baseline
@tiny.every_family
def test_a_baseline_meets_its_target_and_survives_the_disk(name, spec, tmp_path):
    model, sharing = built(name, spec)
    counts, target = tiny.count(model), targets.target(shape.of_model(tiny.model(name)), TARGET)
    # Whole layers are coarse: one layer fewer dropped would miss the target.
    step = 13000 if isinstance(spec, Drop) else 0.03 * target
    assert target - step < counts["parameters"] <= target
    tiny.save(model, sharing, tmp_path / "model")
    stored = read_tensors(tmp_path / "model/model.safetensors")
    # What is counted lies in the file, the bits of masks included.
    bits = sum(8 * t.numel() for name, t in stored.items() if name.endswith(".mask"))
    numbers = sum(t.numel() for name, t in stored.items() if not name.endswith(".mask"))
    assert counts["parameters"] - 4 * tiny.LAYERS <= numbers + bits / 32 <= counts["parameters"]
    loaded, found = tiny.load(tmp_path / "model")
    assert found == sharing and tiny.count(loaded) == counts
    assert tiny.same(tiny.state(loaded), tiny.state(model)) and tiny.gap(loaded, model) == 0
    dense = tiny.dense(loaded)
    assert sum(p.numel() for p in dense.parameters()) == counts["dense_parameters"]
    dense.save_pretrained(tmp_path / "dense")
    assert tiny.gap(AutoModelForCausalLM.from_pretrained(tmp_path / "dense"), model) <= 1e-4


@pytest.mark.parametrize("spec", ["svd", "weighted", "basis equal", "basis"])
@tiny.every_family
def test_factors_count_by_the_formula(name, spec):
    model, sharing = built(name, SPECS[spec])
    shapes, (total, _) = shape.of_model(model_of := tiny.model(name)).matrices, formula(name)
    factored = [role for ranks in sharing.ranks.values() for role in ranks]
    assert 0 < len(factored) <= tiny.LAYERS * len(shapes)
    whole = sum(shapes[role][0] * shapes[role][1] for role in factored)
    thin = sum(rank * sum(shapes[role]) for ranks in sharing.ranks.values() for role, rank in ranks.items())
    thin -= sum(
        sharing.ranks[str(layer)][role] * shapes[role][1]
        for group in sharing.bases
        for layer in group[1:]
        for role in sharing.ranks[str(layer)].keys() - {"out"}
    )
    assert sum(p.numel() for p in model_of.parameters()) == total
    assert tiny.count(model)["parameters"] == total - whole + thin


@tiny.every_family
def test_full_rank_gives_the_original(name):
    model = tiny.model(name)
    ranks = {str(layer): dict.fromkeys(shape.of_model(model).matrices, tiny.WIDTH) for layer in range(tiny.LAYERS)}
    for fit in ("svd", "weighted"):
        thin, _ = baselines.low_rank(tiny.view(model), tiny.calibration(model), low_rank(fit), ranks)
        assert tiny.gap(model, thin.model) <= 1e-4


@tiny.every_family
def test_a_basis_is_one_tensor_and_more_layers_allow_more_rank(name):
    model = tiny.model(name)
    shared, sharing = tiny.operate(model, [], tiny.calibration(model), SPECS["basis equal"])
    alone, _ = tiny.operate(model, [], tiny.calibration(model), low_rank(ranks="equal"))
    assert sharing.bases == [[0, 1], [2, 3]]
    for role in tiny.view(model).roles:
        one, two, last = (tiny.view(shared).linears(layer)[role] for layer in (0, 1, 4))
        assert (one.B is two.B) == (role != "out") and one.B is not last.B and one.A is not two.A
        assert (len(one.B) > len(tiny.view(alone).linears(0)[role].B)) == (role != "out")


def test_a_shared_basis_is_the_optimum_and_alone_the_weighted_fit():
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(7, 5, generator=generator, dtype=torch.float64) for _ in range(3)]
    rows = [torch.randn(40, 5, generator=generator, dtype=torch.float64) * torch.arange(1.0, 6.0) for _ in range(3)]
    moments = [Moments(torch.zeros(5, dtype=torch.float64), x.T @ x / 40) for x in rows]
    whole = lowrank.summed(moments)

    def error(products):
        return sum(((w - a @ b) @ whole.root).square().sum().item() for w, (a, b) in zip(weights, products))

    for rank in (1, 2, 4, 5):
        each, basis = lowrank.shared_basis(weights, rank, moments)
        found = error([(a, basis) for a in each])
        # Eckart and Young: what is left is the tail of the stacked matrix.
        tail = torch.linalg.svdvals(torch.cat(weights) @ whole.root)[rank:].square().sum().item()
        assert found == pytest.approx(tail, rel=1e-8, abs=1e-12 * error([(0 * w[:, :1], basis[:1]) for w in weights]))
        torch.testing.assert_close(torch.cat(each).norm(dim=0), basis.norm(dim=1))
        (one,), b = lowrank.shared_basis(weights[:1], rank, moments[:1])
        a, other = lowrank.weighted(weights[0], rank, moments[0])
        torch.testing.assert_close(one @ b, a @ other)


@tiny.every_family
def test_the_weighted_fit_wins_on_its_own_objective_and_rank_never_hurts(name):
    model = tiny.model(name)
    known = tiny.calibration(model)
    errors = {}
    for fit in ("svd", "weighted"):
        for rank in (2, 6, 12):
            ranks = {str(layer): dict.fromkeys(shape.of_model(model).matrices, rank) for layer in range(tiny.LAYERS)}
            thin, _ = baselines.low_rank(tiny.view(model), known, low_rank(fit, correction=False), ranks)
            errors[fit, rank] = [
                ((tiny.view(model).read(layer)[f"w_{role}"] - linear.delta()).double() @ moments[SITE[role]].root)
                .square()
                .sum()
                for layer in range(tiny.LAYERS)
                for moments in [known.moments(layer)]
                for role, linear in thin.linears(layer).items()
            ]
    for rank in (2, 6, 12):
        assert all(w <= s * (1 + 1e-6) for w, s in zip(errors["weighted", rank], errors["svd", rank]))
    for few, many in ((2, 6), (6, 12)):
        assert all(b <= a for a, b in zip(errors["weighted", few], errors["weighted", many]))


@tiny.every_family
def test_pruning_by_input_keeps_what_makes_most_output(name):
    model = tiny.model(name)
    known = tiny.calibration(model)
    sparse, _ = baselines.prune(tiny.view(model), known, SPECS["pruned by input"])
    kept, gone = [], []
    for layer in range(tiny.LAYERS):
        for role, linear in sparse.linears(layer).items():
            sizes = known.moments(layer)[SITE[role]].second.diagonal().sqrt()
            scores = tiny.view(model).read_double(layer)[f"w_{role}"].abs() * sizes
            stays = linear.matrix() != 0
            kept.append(scores[stays].min())
            gone.append(scores[~stays].max() if (~stays).any() else 0.0)
    assert max(gone) <= min(kept) * (1 + 1e-5)
    # Inputs that are all of one size leave the order of the magnitudes.
    alike = {"input": known.moments(0)["input"], "hidden": known.moments(0)["hidden"]}
    alike = {site: type(m)(m.mean, torch.eye(len(m.mean), dtype=torch.float64)) for site, m in alike.items()}
    same, _ = baselines.prune(tiny.view(model), replace(known, moments=lambda layer: alike), SPECS["pruned by input"])
    plain, _ = baselines.prune(tiny.view(model), known, SPECS["pruned all"])
    assert tiny.same(tiny.state(same.model), tiny.state(plain.model))


@tiny.every_family
def test_every_row_keeps_as_many_entries(name):
    sparse, _ = built(name, SPECS["pruned rows"])
    for linear in tiny.view(sparse).linears(1).values():
        kept = (linear.matrix() != 0).sum(1)
        assert 0 < kept.min() == kept.max() < linear.d_in


@tiny.every_family
def test_a_matrix_that_pruning_leaves_whole_has_no_mask_and_others_have_its_room(name):
    view = tiny.view(tiny.model(name))
    for linear in view.linears(1).values():
        linear.weight.data.mul_(100)
    spec = Prune(method="prune", target_parameters=0.9)
    sparse, sharing = baselines.prune(view, tiny.calibration(view.model), spec)
    assert "1" not in sharing.kept and sharing.kept.keys() == {str(n) for n in range(view.depth)} - {"1"}
    stored, target = counting.count(sparse)["parameters"], targets.target(view.shape, 0.9)
    assert target - len(view.roles) * view.depth <= stored <= target  # masks are whole parameters
    for role, linear in view.linears(1).items():
        assert torch.equal(sparse.linears(1)[role].weight, linear.weight)


@tiny.every_family
def test_zeros_stay_zero_in_training(name, tmp_path):
    tiny.save(*built(name, SPECS["pruned all"]), tmp_path / "model")
    model, sharing = tiny.load(tmp_path / "model")
    before, count = {name: tensor.clone() for name, tensor in model.state_dict().items()}, tiny.count(model)
    rows = tiny.ids(8)
    recipe = Schedule(epochs=2, batch_size=4, warmup=0.0, weight_decay=0.1, clip=1.0)
    objective = recovery.end_to_end(tiny.TASK, model, rows, None, None, None)
    loop.train(model, 8, objective, [(list(model.parameters()), 1e-2)], recipe, 0)
    for linear in (m for layer in range(tiny.LAYERS) for m in tiny.view(model).linears(layer).values()):
        key = next(key for key, p in model.named_parameters() if p is linear.values)
        mask = key.replace("values", "mask")
        assert torch.equal(linear.mask, before[mask]) and not torch.equal(linear.values, before[key])
        assert (
            (linear.matrix() != 0).sum() == linear.values.numel()
        ) and linear.values.numel() < linear.d_in * linear.d_out
    assert tiny.count(model) == count


@tiny.every_family
def test_a_block_that_does_nothing_is_dropped_first_and_not_missed(name):
    model = tiny.model(name)
    with torch.no_grad():
        for key, parameter in tiny.view(model).blocks[2].named_parameters():
            if key.split(".")[1] in ("c_proj", "o_proj", "down_proj"):
                parameter.zero_()
    known = tiny.calibration(model)
    found = influence(tiny.view(model), known.text())
    assert found.argmin() == 2 and found[2].abs() < 1e-6 < found[[0, 1, 3, 4]].min()
    shallow, _ = tiny.operate(model, [], known, Drop(method="drop", layers=1))
    assert shallow.config.num_hidden_layers == 4 and tiny.gap(model, shallow) <= 1e-5


class Words:
    """The tokens of the model under study."""

    def get_vocab(self):
        return {"a": 0}


def test_another_checkpoint_must_have_the_same_vocabulary(tmp_path):
    tiny.model("llama").save_pretrained(tmp_path / "rival")
    rival = opening.open_external(str(tmp_path / "rival"), None, Words(), tiny.VOCABULARY)
    assert tiny.gap(rival, tiny.model("llama")) == 0
    with pytest.raises(UserError, match="another vocabulary"):
        opening.open_external(str(tmp_path / "rival"), None, Words(), 98)
    pieces = Tokenizer(WordLevel({"b": 0}, unk_token="b"))
    PreTrainedTokenizerFast(tokenizer_object=pieces).save_pretrained(tmp_path / "rival")
    with pytest.raises(UserError, match="another vocabulary"):
        opening.open_external(str(tmp_path / "rival"), None, Words(), tiny.VOCABULARY)
