"""A checkpoint that shares weights is a model of transformers like any other, and stays shared all the while."""

import json
import sys
from pathlib import Path

import pytest
import tiny
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import CONFIG_MAPPING, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from stages.core.forms import modeling_shared_ffn
from stages.core.forms.modeling_shared_ffn import MaskedLinear
from stages.core.forms.structure import Sharing, install
from stages.core.process.artifacts import read_tensors

# Conv1D and tied embeddings, untied ones, norms after the FFN and layers that attend in two ways.
FAMILIES = ("gpt2", "mistral", "gemma3_text")
RANKS = {str(layer): {"in": 2, "out": 3} for layer in range(tiny.LAYERS)}
KINDS = {
    "tied": Sharing(groups=tiny.GROUPS, biases="own"),
    "deltas": Sharing(groups=tiny.GROUPS, rank=3, ranks={"1": {"in": 0, "out": 5}}, biases="shared"),
    "factored": Sharing(ranks=RANKS, factored=True),
    "one basis": Sharing(ranks=RANKS, factored=True, bases=[[0, 1], [2, 3, 4]]),
    "sparse": Sharing(kept={str(layer): {"in": 150 + layer, "out": 99} for layer in range(1, tiny.LAYERS)}),
}


def made(name: str, sharing: Sharing):
    """A model with this structure, all of whose parameters are drawn."""
    model = tiny.model(name)
    install(tiny.view(model), sharing)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if key.endswith((".A", ".B")):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
        for linear in sparse(model):
            matrix = torch.randn(linear.d_out, linear.d_in, generator=generator)
            least = matrix.abs().flatten().topk(linear.values.numel()).values[-1]
            linear.store(matrix * (matrix.abs() >= least))
    return model


def sparse(model) -> list[MaskedLinear]:
    return [module for module in model.modules() if isinstance(module, MaskedLinear)]


@pytest.fixture(scope="module", params=[(name, kind) for name in FAMILIES for kind in KINDS], ids="-".join)
def case(request, tmp_path_factory):
    """A model, its Sharing, and its checkpoint as the pipeline writes it."""
    name, kind = request.param
    model, folder = made(name, KINDS[kind]), tmp_path_factory.mktemp("checkpoint")
    tiny.save(model, KINDS[kind], folder / "model")
    return model, KINDS[kind], folder / "model"


def test_a_laid_out_matrix_is_that_of_the_weights_after_a_swap_that_torch_does_not_count():
    linear = MaskedLinear(6, 4, 3, None).eval()
    linear.store(torch.arange(12.0).view(3, 4) * (torch.arange(12) > 5).view(3, 4))
    with torch.no_grad():
        before = linear(torch.ones(1, 4))
        linear.values.data.mul_(0.5)  # as averages of weights are swapped in
        linear.eval()
        assert torch.equal(linear(torch.ones(1, 4)), before / 2)


def test_a_matrix_laid_out_in_inference_mode_serves_a_backward_pass():
    linear = MaskedLinear(6, 4, 3, None)
    linear.store(torch.eye(3, 4))
    linear.requires_grad_(False)
    with torch.inference_mode():
        linear(torch.ones(1, 4))
    x = torch.ones(1, 4, requires_grad=True)
    linear(x).sum().backward()
    assert x.grad.tolist() == [[1, 1, 1, 0]]


@pytest.fixture(scope="module", params=FAMILIES)
def deltas(request, tmp_path_factory):
    """A model with deltas and its checkpoint."""
    model, folder = made(request.param, KINDS["deltas"]), tmp_path_factory.mktemp("checkpoint") / "model"
    tiny.save(model, KINDS["deltas"], folder)
    return model, folder


def opened(folder, **options):
    """A checkpoint as a user of the module opens it; nothing may be missing or left over."""
    model, found = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    assert not any(found.values()), found
    return model


def ties(model) -> dict[str, str]:
    """Name -> first name of the same parameter."""
    first: dict[int, str] = {}
    return {key: first.setdefault(id(p), key) for key, p in model.named_parameters(remove_duplicate=False)}


def stored(folder: Path) -> dict[str, torch.Tensor]:
    parts = [read_tensors(file) for file in folder.glob("*.safetensors")]
    assert sum(map(len, parts)) == len({name for part in parts for name in part})
    return {name: tensor for part in parts for name, tensor in part.items()}


def test_it_opens_as_a_subclass_of_the_stock_class(case):
    model, _, folder = case
    found = opened(folder)
    assert isinstance(found, type(model)) and isinstance(found.config, type(model.config)) and not found.training
    assert found.config.to_dict()["model_type"] == model.config.model_type
    assert torch.equal(tiny.logits(found), tiny.logits(model))
    assert ties(found) == ties(model) and tiny.same(tiny.state(found), tiny.state(model))
    assert tiny.count(found) == tiny.count(model)


@pytest.mark.parametrize("limit", ["1GB", "20KB"])
def test_saved_again_it_is_still_shared_and_each_tensor_is_stored_once(limit, case, tmp_path):
    model, sharing, folder = case
    found = opened(folder)
    found.save_pretrained(tmp_path / "again", max_shard_size=limit)
    assert (len(list((tmp_path / "again").glob("*.safetensors"))) == 1) == (limit == "1GB")
    words = sum(-(-tensor.nbytes // 4) for tensor in stored(tmp_path / "again").values())  # 32 bits of a mask are one
    assert words == tiny.count(model)["parameters"]
    assert {key: value.tolist() for key, value in stored(tmp_path / "again").items()} == {
        key: value.tolist() for key, value in stored(folder).items()
    }
    again = opened(tmp_path / "again")
    assert ties(again) == ties(model) and torch.equal(tiny.logits(again), tiny.logits(model))
    assert (tmp_path / "again/config.json").read_bytes() == (folder / "config.json").read_bytes()
    # The pipeline reads what a user has saved.
    loaded, structure = tiny.load(tmp_path / "again")
    assert structure == sharing and torch.equal(tiny.logits(loaded), tiny.logits(model))


@pytest.mark.parametrize("name", [*FAMILIES, "phi3"])  # and a family whose stock projection is fused
def test_the_module_beside_the_weights_opens_them_too(name, tmp_path, monkeypatch):
    """As where nothing of this project is installed: the module is not registered and comes from the folder."""
    model = made(name, KINDS["deltas"])
    tiny.save(model, KINDS["deltas"], tmp_path / "model")
    opened(tmp_path / "model").save_pretrained(tmp_path / name)
    module = tmp_path / name / "modeling_shared_ffn.py"
    assert module.read_bytes() == Path(modeling_shared_ffn.__file__).read_bytes() and "stages" not in module.read_text()
    monkeypatch.delitem(CONFIG_MAPPING._extra_content, modeling_shared_ffn.MODEL_TYPE)
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    found = opened(tmp_path / name, trust_remote_code=True)
    assert type(found).__module__.startswith("transformers_modules.") and isinstance(found, type(model))
    assert torch.equal(tiny.logits(found), tiny.logits(model)) and ties(found) == ties(model)
    found.save_pretrained(tmp_path / "again")
    again = opened(tmp_path / "again", trust_remote_code=True)
    assert torch.equal(tiny.logits(again), tiny.logits(model)) and ties(again) == ties(model)
    with pytest.raises(ValueError, match="trust_remote_code"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=False)


def test_it_writes_with_a_cache_what_it_writes_without(deltas):
    model, folder = deltas
    found, prompt = opened(folder), tiny.ids(2, 7)
    written = [
        each.generate(prompt, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=cache)
        for each in (found, model)
        for cache in (True, False)
    ]
    assert written[0].shape == (2, 15) and all(torch.equal(written[0], other) for other in written[1:])


def test_training_changes_what_is_shared_for_all(deltas, tmp_path):
    model, folder = deltas
    found, before = opened(folder).train(), ties(model)
    optimizer = torch.optim.AdamW(found.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        loss = found(tiny.ids(), labels=tiny.ids()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] and ties(found) == before
    found.eval().save_pretrained(tmp_path)
    assert torch.equal(tiny.logits(opened(tmp_path)), tiny.logits(found)) and tiny.gap(found, model) > 0.01


def test_training_fills_no_zero_of_a_sparse_model(tmp_path):
    model = made("gpt2", KINDS["sparse"])
    tiny.save(model, KINDS["sparse"], tmp_path)
    found = opened(tmp_path).train()
    optimizer = torch.optim.AdamW(found.parameters(), lr=1e-2)
    found(tiny.ids(), labels=tiny.ids()).loss.backward()
    optimizer.step()
    for old, new in zip(sparse(model), sparse(found), strict=True):
        assert torch.equal(new.matrix() == 0, old.matrix() == 0) and not torch.equal(new.matrix(), old.matrix())


def test_checkpointed_gradients_are_the_same(deltas):
    _, folder = deltas
    gradients = []
    for checkpointing in (False, True):
        found = opened(folder).train()
        if checkpointing:
            found.gradient_checkpointing_enable()
        torch.manual_seed(0)  # of dropout
        found(tiny.ids(), labels=tiny.ids()).loss.backward()
        gradients.append({key: p.grad for key, p in found.named_parameters()})
    assert gradients[0].keys() == gradients[1].keys()
    for key, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][key], gradient, rtol=1e-5, atol=1e-6)


def test_adapters_learn_beside_what_is_shared(deltas, tmp_path):
    peft = pytest.importorskip("peft")
    model, folder = deltas
    # Attention, and the bases that layers share.
    targets = ["c_attn" if model.config.model_type == "gpt2" else "q_proj", "base"]
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=targets)
    adapted = peft.get_peft_model(opened(folder), config)
    before = tiny.state(adapted.base_model.model)
    optimizer = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        adapted(input_ids=tiny.ids(), labels=tiny.ids()).loss.backward()
        optimizer.step()
    after = tiny.state(adapted.base_model.model)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {key for key in before if "lora_" in key}
    adapted.save_pretrained(tmp_path)
    again = peft.PeftModel.from_pretrained(opened(folder), tmp_path).eval()
    adapted.eval()
    assert torch.equal(tiny.logits(again), tiny.logits(adapted)) and tiny.gap(adapted, model) > 0.01


def test_a_narrower_type_is_what_is_asked_for(deltas, tmp_path):
    model, folder = deltas
    found = opened(folder, dtype=torch.bfloat16)
    assert {p.dtype for p in found.parameters()} == {torch.bfloat16} and ties(found) == ties(model)
    torch.testing.assert_close(tiny.logits(found).float(), tiny.logits(model), rtol=0.2, atol=0.3)
    found.save_pretrained(tmp_path)
    assert {tensor.dtype for tensor in stored(tmp_path).values()} == {torch.bfloat16}
    assert {p.dtype for p in opened(tmp_path).parameters()} == {torch.bfloat16}


def test_it_compiles_as_one_graph(tmp_path):
    model, sharing = tiny.model("gpt2", n_layer=3), Sharing([[0, 1]], 2, "own", kept={"2": {"in": 99}})
    install(tiny.view(model), sharing)
    tiny.save(model, sharing, tmp_path / "model")
    compiled = torch.compile(opened(tmp_path / "model"), fullgraph=True, backend="eager")
    assert torch.equal(tiny.logits(compiled), tiny.logits(model))


@pytest.mark.parametrize("where", ["auto", {"": "cpu"}])
def test_a_device_map_keeps_it_shared(where, deltas):
    model, folder = deltas
    found = opened(folder, device_map=where)
    assert ties(found) == ties(model) and torch.equal(tiny.logits(found), tiny.logits(model))


def test_embeddings_that_grow_leave_the_rest(deltas):
    model, folder = deltas
    found = opened(folder)
    found.resize_token_embeddings(tiny.VOCABULARY + 7)
    assert tiny.logits(found).shape[-1] == tiny.VOCABULARY + 7
    torch.testing.assert_close(tiny.logits(found)[..., : tiny.VOCABULARY], tiny.logits(model), rtol=1e-5, atol=1e-5)
    assert ties(found) == ties(model)


def test_the_config_names_the_stock_class_and_the_module(deltas):
    model, folder = deltas
    config = json.loads((folder / "config.json").read_text())
    assert config["dense"]["architectures"] == [type(model).__name__]
    assert config["dense_type"] == model.config.model_type
    assert MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[model.config.model_type]] is type(model)
    assert config["auto_map"] == {
        "AutoConfig": "modeling_shared_ffn.SharedFfnConfig",
        "AutoModelForCausalLM": "modeling_shared_ffn.SharedFfnModel",
    }
    with pytest.raises(StrictDataclassFieldValidationError, match="vocab_size"):  # not opened with FFNs drawn at random
        type(model).from_pretrained(folder)
