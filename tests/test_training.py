"""Training: what it moves, what it leaves, and that the same seed gives the same bits."""

import pytest
import tiny
import torch

from stages.core.forms import structure
from stages.core.process.errors import UserError
from stages.core.settings.trainings import Schedule
from stages.core.training import loop, recovery

# Eight rows of one endless cycle: a text that can be learnt by heart.
ROWS = (torch.arange(12)[None] * 7 + torch.arange(8)[:, None] * 3) % 31
USUAL = dict(epochs=3, batch_size=3, learning_rate=3e-3, warmup=0.1, weight_decay=0.01, clip=1.0, seed=0)


def train(model, rows, parameters, *, learning_rate, seed, penalty=None, watch=iter, **recipe):
    """The curve of a training on the next-token loss alone, or with a penalty."""
    objective = recovery.end_to_end(tiny.TASK, model, rows, None, None, penalty)
    rates = [(parameters, learning_rate)]
    return loop.train(model, len(rows), objective, rates, Schedule(**recipe), seed, watch=watch).curve


def factors(model):
    return [parameter for delta in structure.deltas(model) for parameter in (delta.A, delta.B)]


def penalty(model, strength):
    return lambda: strength * sum(delta.squared_norm() for delta in structure.deltas(model))


def trained(name, rank, parameters=lambda model: list(model.parameters()), strength=0.0, **changes):
    model, sharing = tiny.shared(name, rank)
    pull = penalty(model, strength) if strength else None
    return model, sharing, train(model, ROWS, parameters(model), penalty=pull, **{**USUAL, **changes})


@pytest.mark.parametrize("rank", [0, 3])
@tiny.every_family
def test_a_text_is_learnt_and_members_stay_one_tensor(name, rank, tmp_path):
    fresh = tiny.shared(name, rank)[0]
    model, sharing, curve = trained(name, rank, epochs=15)
    assert sum(row["loss"] for row in curve[-3:]) < 0.5 * sum(row["loss"] for row in curve[:3])
    assert [row["step"] for row in curve] == list(range(1, 46)) and curve[-1]["examples"] == 15 * len(ROWS)
    assert not model.training
    family = tiny.family(model)
    for group in tiny.GROUPS:
        for role in family.matrices:
            linears = [tiny.view(model).linears(layer)[role] for layer in group]
            weights = [getattr(linear, "base", linear).weight for linear in linears]
            assert all(weight is weights[0] for weight in weights)
    assert tiny.count(model) == tiny.count(fresh)
    assert not any(torch.equal(new, old) for new, old in zip(model.parameters(), fresh.parameters()))
    tiny.save(model, sharing, tmp_path / "model")
    assert torch.equal(tiny.logits(tiny.load(tmp_path / "model")[0]), tiny.logits(model))


@pytest.mark.parametrize("delta", ["svd", "zero"])
@tiny.every_family
def test_only_deltas_move_where_only_deltas_train(name, delta):
    model, _ = tiny.shared(name, 3, delta=delta)
    before = tiny.state(model)
    train(model, ROWS, factors(model), **USUAL)
    for key, value in tiny.state(model).items():
        assert torch.equal(value, before[key]) != key.endswith((".A", ".B")), key


@pytest.mark.parametrize("rank", [0, 3])
@tiny.every_family
def test_the_same_seed_gives_the_same_bits(name, rank):
    runs = [trained(name, rank, seed=seed) for seed in (4, 4, 5)]
    states, curves = [tiny.state(model) for model, _, _ in runs], [curve for _, _, curve in runs]
    assert tiny.same(states[0], states[1]) and curves[0] == curves[1]
    assert not tiny.same(states[0], states[2]) and curves[0] != curves[2]


def test_batches_of_like_length_pad_little_and_see_every_row_once():
    lengths = torch.randint(1, 513, (1003,), generator=torch.Generator().manual_seed(0))

    def padded(batches):
        return sum(len(batch) * int(lengths[batch].max()) for batch in batches) / float(lengths.sum())

    found, plain = list(loop._order(1003, 2, 8, 0, lengths)), list(loop._order(1003, 2, 8, 0))
    assert len(found) == len(plain) == 252
    epochs = torch.cat(found[:126]), torch.cat(found[126:])
    assert all(torch.equal(epoch.sort().values, torch.arange(1003)) for epoch in epochs)
    assert not torch.equal(*epochs)
    assert padded(found) / 2 < 1.05 < 1.5 < padded(plain) / 2
    # Long rows come at any time of an epoch, and other rows meet in the next.
    first = [float(lengths[batch].float().mean()) for batch in found[:126]]
    assert first != sorted(first)
    assert {frozenset(batch.tolist()) for batch in found[:126]}.isdisjoint(
        frozenset(batch.tolist()) for batch in found[126:]
    )
    again = loop._order(1003, 2, 8, 0, lengths)
    assert all(torch.equal(one, other) for one, other in zip(found, again, strict=True))


def test_an_epoch_sees_every_row_once_in_an_order_of_its_own():
    seen = []
    trained("gpt2", 0, epochs=2, watch=lambda batches: seen.extend(batches) or batches)
    epochs = [torch.cat(seen[:3]).tolist(), torch.cat(seen[3:]).tolist()]
    assert [len(batch) for batch in seen] == [3, 3, 2] * 2
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(len(ROWS))) and epochs[0] != epochs[1]


@tiny.every_family
def test_the_penalty_pulls_deltas_down_and_is_no_part_of_the_curve(name):
    norms, curves = [], []
    for strength in (0.0, 10.0):
        model, _, curve = trained(name, 3, factors, strength, epochs=10, weight_decay=0.0, learning_rate=1e-2)
        norms.append(sum(delta.squared_norm().item() for delta in structure.deltas(model)))
        curves.append(curve)
    assert norms[1] < 0.7 * norms[0]
    assert curves[0][0] == curves[1][0]


def test_weight_decay_moves_matrices_alone_and_none_that_is_frozen():
    # Parameters whose gradient is zero: nothing but decay can move them.
    model, _ = tiny.shared("gpt2")
    before = tiny.state(model)
    matrix, vector = (torch.nn.Parameter(torch.ones(shape)) for shape in ((3, 3), (3,)))
    model.matrix, model.vector = matrix, vector
    train(model, ROWS, [matrix, vector], penalty=lambda: 0 * (matrix.sum() + vector.sum()), **USUAL)
    assert (matrix < 1).all() and (vector == 1).all()
    assert all(torch.equal(tiny.state(model)[key], value) for key, value in before.items())


def test_a_loss_that_is_not_finite_stops_with_the_step():
    model, _ = tiny.shared("gpt2")
    with torch.no_grad():
        model.transformer.ln_f.weight[0] = torch.nan
    with pytest.raises(UserError, match=r"step 1 of 9 \(loss nan\)"):
        train(model, ROWS, list(model.parameters()), **USUAL)


@tiny.every_family
def test_divergence_stops_with_the_step_and_the_rate(name):
    with pytest.raises(UserError, match=r"diverged at step [2-4] of 9 .* 1e\+30"):
        trained(name, 0, learning_rate=1e30, warmup=0.0)
