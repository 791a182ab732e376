"""What holds on a CUDA device, as far as a machine without one can tell: torch's own answers are stood in for."""

import json
import runpy
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from closure import ROOT
from test_recovery import RECIPE, ROWS

from stages.commands import harness
from stages.core.architecture import attention
from stages.core.architecture.opening import open_snapshot
from stages.core.forms import structure
from stages.core.process import devices, memory
from stages.core.process.errors import UserError
from stages.core.settings import params
from stages.core.settings.profiles import Runtime
from stages.core.settings.recoveries import Recovery
from stages.core.settings.section import Section
from stages.core.tasks import notes, timing
from stages.core.tasks.language import Language
from stages.core.text.tokenizer import open_tokenizer
from stages.core.training import loop, recovery, resuming


@pytest.fixture
def cards(monkeypatch):
    """Two CUDA devices, as far as torch is asked; says which were made current."""
    current = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    return current


# Devices


@tiny.every_family
def test_deltas_are_made_where_the_weights_are(name):
    """The ablation scores what `share` made as it is, and trains it."""
    model = tiny.model(name).to("meta")
    structure.install(tiny.view(model), structure.Sharing(groups=tiny.GROUPS, rank=2, biases="own"))
    assert {p.device.type for p in model.parameters()} == {"meta"} and any(structure.deltas(model))


def test_a_numbered_device_becomes_the_current_one(cards):
    assert devices.start(Runtime(device="cuda:1", threads=None)) == torch.device("cuda:1")
    assert cards == [torch.device("cuda:1")]
    with pytest.raises(UserError, match="runtime.device = cuda:2, but torch sees 2 of them, cuda:0 to cuda:1"):
        devices.start(Runtime(device="cuda:2", threads=None))


@pytest.mark.parametrize("measure", ["latency", "seeds"])
def test_times_wait_for_the_device_that_works(measure, monkeypatch):
    """The prompt pretends to lie on cuda:1; the model on the CPU does not mind."""
    waited, model = [], tiny.model("gpt2")
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device=None: waited.append(device))

    class There(torch.Tensor):
        device = torch.device("cuda:1")

    prompt = tiny.ids(1, 4).as_subclass(There)
    if measure == "latency":
        list(timing.generation(lambda ids, **options: model(ids.as_subclass(torch.Tensor), **options), prompt, 2))
    else:
        monkeypatch.setattr(model, "generate", lambda *args, **options: None)
        notes.generation_ms(model, prompt, 6, 2)
    assert len(waited) >= 2 and set(waited) == {torch.device("cuda:1")}


@pytest.mark.parametrize(
    ("there", "hidden", "version", "said"),
    [
        (True, None, "13.0", "cannot use it"),
        (True, None, None, "built without CUDA"),
        (True, "", None, None),
        (False, None, None, None),
    ],
)
def test_auto_says_that_it_leaves_a_card_unused(there, hidden, version, said, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", version)
    (tmp_path / "nvidia0").touch()
    monkeypatch.setattr(devices, "CARDS", f"{tmp_path}/nvidia{0 if there else 1}".lstrip("/"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if hidden is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert devices.start(Runtime(device="auto", threads=None)).type == "cpu"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == bool(said) and all(said in line and "runtime.device = auto" in line for line in lines)


def test_a_cpu_record_says_nothing_of_cuda_and_a_cuda_record_all(cards, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Card")
    record = devices.environment(torch.device("cpu"))
    assert list(record) == ["device", "precision", "threads", "python", "torch", "transformers"]
    more = devices.environment(torch.device("cuda"))
    assert {key: more[key] for key in ("cuda", "devices", "tf32")} == {
        "cuda": torch.version.cuda, "devices": 2, "tf32": False,
    } and "driver" in more  # fmt: skip


def test_the_harness_runs_where_the_profile_says(tmp_path, monkeypatch):
    """The harness is handed a model, and asks that one for its device."""
    seen, here = {}, torch.device("meta")
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(ROOT / "data")
    Path("params.yaml").symlink_to(ROOT / "params.yaml")
    tiny.save(open_snapshot(ROOT / "data/model"), structure.Sharing(), Path("artifacts/finetuned/shared"))
    open_tokenizer(ROOT / "data/model").save_pretrained("artifacts/tokenizer")

    def hflm(pretrained, **options):
        seen["device"] = next(pretrained.parameters()).device

    for name, content in {
        "lm_eval": {"simple_evaluate": lambda *a, **k: {"results": {}}, "__version__": "0"},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": hflm},
        "lm_eval.tasks": {"TaskManager": lambda include_path: SimpleNamespace(all_tasks=["reviews"])},
    }.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(__path__=[], **content))
    monkeypatch.setattr(devices, "start", lambda runtime: here)
    harness.main("shared", "reviews", Path("found.json"))
    assert seen == {"device": here}


# Precision


def test_emulated_bfloat16_is_no_bfloat16(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert devices.precision(torch.device("cuda"), "bfloat16") == "float32"


def recover(model, shared, wanted, autocast=None, task=tiny.TASK, **options):
    view = tiny.view(model)
    return recovery.recover(
        view, shared, view, task, ROWS, ROWS.flatten(), RECIPE, wanted, 0, autocast=autocast or nullcontext(),
        watch=iter, **options,
    )  # fmt: skip


def test_validation_is_float32_whatever_training_computes_in():
    seen = []

    class Watched(Language):
        def score(self, *args):
            seen.append(torch.is_autocast_enabled("cpu"))
            return super().score(*args)

    autocast = torch.autocast("cpu", dtype=torch.bfloat16)
    recover(*tiny.shared("gpt2", 3), Recovery(train="deltas", frobenius=0.0), autocast, Watched(12, 12, 4))
    assert len(seen) == 2 and not any(seen)


@pytest.mark.parametrize("around", ["zero", "start"])
def test_the_penalty_is_float32_whatever_training_computes_in(around):
    model, _ = tiny.shared("gpt2", 3)
    penalty = recovery.frobenius(model, around)
    with torch.no_grad():
        for delta in structure.deltas(model):
            delta.A.add_(1e-3 * torch.randn(delta.A.shape, generator=torch.Generator().manual_seed(1)))
    plain = penalty()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(penalty(), plain)


# Resuming


def test_a_training_goes_on_where_fewer_devices_are_visible(tmp_path, monkeypatch):
    """The process that was killed saw four, this one sees none: they had no part in a training on the CPU."""
    states = [torch.zeros(16, dtype=torch.uint8) for _ in range(4)]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: states)
    monkeypatch.setattr(resuming.Unfinished, "due", lambda self: True)
    wanted = Recovery(train="deltas", frobenius=0.0)
    history = recover(*tiny.shared("gpt2", 3), wanted, unfinished=tmp_path)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device="cuda": [].__getitem__(device))
    assert recover(*tiny.shared("gpt2", 3), wanted, unfinished=tmp_path) == history


def test_of_cuda_only_the_device_that_works_has_its_random_state_kept(tmp_path, monkeypatch):
    asked, given = [], []
    state = torch.arange(16, dtype=torch.uint8)
    monkeypatch.setattr(torch.cuda, "get_rng_state", lambda device: asked.append(device) or state)
    monkeypatch.setattr(torch.cuda, "set_rng_state", lambda state, device: given.append((state.tolist(), device)))

    def best(index):
        there = SimpleNamespace(device=torch.device("cuda", index), copy_=lambda value: None)
        return SimpleNamespace(parameters=[there], kept=[], evaluations=[])

    kept = {}
    optimizer = SimpleNamespace(
        state_dict=lambda: {"state": {}, "param_groups": []}, load_state_dict=lambda state: None
    )
    unfinished = SimpleNamespace(
        keep=lambda step, tensors, progress: kept.update(tensors=tensors, progress=progress),
        newest=lambda: (kept["tensors"], kept["progress"]),
    )
    loop._save_state(unfinished, optimizer, best(3), [{"step": 1}])
    assert {key for key in kept["tensors"] if key.startswith("random.")} == {"random.cpu", "random.cuda"}
    assert loop._load_state(unfinished, optimizer, best(0)) == [{"step": 1}]
    assert asked == [torch.device("cuda:3")] and given == [(state.tolist(), torch.device("cuda:0"))]


# Attention


@pytest.mark.parametrize("name", ["llama", "mistral", "qwen2"])
def test_repeated_keys_give_the_same_attention(name, monkeypatch):
    """What CUDA would do in float32, done on the CPU."""
    model, seen = tiny.model(name), []

    def grouped(query, key, mask):
        seen.append((query.shape[1], key.shape[1], query.shape[2], mask))
        return mask is None and query.shape[2] > 1

    attention.register()
    plain = tiny.logits(model)
    monkeypatch.setattr(attention, "stores_scores", grouped)
    calls, known = [], torch.nn.functional.scaled_dot_product_attention

    def sdpa(query, key, value, **options):
        calls.append((query.shape[1], key.shape[1], options.get("enable_gqa", False)))
        return known(query, key, value, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", sdpa)
    torch.testing.assert_close(tiny.logits(model), plain, rtol=1e-5, atol=1e-5)
    assert len(seen) == tiny.LAYERS and set(calls) == {(4, 4, False)}


def test_keys_are_repeated_only_where_all_scores_would_be_stored(monkeypatch):
    def heads(device="cuda", dtype=torch.float32, count=4, length=8):
        there = SimpleNamespace(type=device)
        return SimpleNamespace(device=there, dtype=dtype, shape=(1, count, length, 8))

    few = heads(count=2)
    assert attention.stores_scores(heads(), few, None)
    assert not attention.stores_scores(heads(), heads(), None)
    assert not attention.stores_scores(heads(length=1), few, None)
    assert not attention.stores_scores(heads(), few, torch.ones(1))
    assert not attention.stores_scores(heads(dtype=torch.bfloat16), few, None)
    assert not attention.stores_scores(heads(device="cpu"), heads(device="cpu", count=2), None)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")  # its products are bfloat16
    assert not attention.stores_scores(heads(), few, None)


@tiny.every_family
def test_on_the_cpu_attention_is_the_library_s_to_the_bit(name, monkeypatch):
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    model = tiny.model(name)
    attention.register()
    found = tiny.logits(model)
    ALL_ATTENTION_FUNCTIONS.register("sdpa", sdpa_attention_forward)
    assert torch.equal(tiny.logits(model), found)
    attention.register()


# Memory

SCRIPT = """
import sys
from pathlib import Path
from stages.core.process import command
from stages.core.settings import params
def main(profile: str):
    params.section(profile, "summarize")
    {what}
command.entry(main)
"""
CUDA = "import torch; raise torch.cuda.OutOfMemoryError('CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has')"
KEYS = ("summarize.batch_size (= 16)", "summarize.training.batch_size (= 2)", "summarize.context (= 240)")


@pytest.mark.parametrize(
    "what", [CUDA, "raise MemoryError", "import torch; torch.empty(2**60)"], ids=["cuda", "python", "cpu"]
)
def test_out_of_memory_is_one_line_with_the_keys_to_lower(what, tmp_path, monkeypatch, capfd):
    script = tmp_path / "summarize.py"
    script.write_text(SCRIPT.format(what=what))
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [str(script), "--profile", "small"])
    monkeypatch.setattr(memory, "SIZES", {})
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    said = capfd.readouterr().err
    assert ended.value.code == 1 and said.count("\n") == 1, said
    assert said.startswith("error: stage summarize is out of memory (")
    assert all(key in said for key in KEYS)


def test_a_defect_is_no_shortage_of_memory(monkeypatch):
    assert not memory.is_shortage(RuntimeError("CUDA error: device-side assert triggered"))
    monkeypatch.delitem(sys.modules, "torch")
    assert not memory.is_shortage(RuntimeError("anything"))


def test_every_stage_that_works_in_batches_notes_their_size(monkeypatch):
    monkeypatch.setattr(memory, "SIZES", {})
    document = params.load(ROOT / "params.yaml")
    for name, value in document.profiles["gpt2"]:
        if isinstance(value, Section):  # not the name of the task
            memory.note(f"profiles.gpt2.{name}", value)
    for stage in ("extract", "search", "finetune", "sentiment", "perplexity", "summarize"):
        assert any(key.startswith(f"profiles.gpt2.{stage}.") for key in memory.SIZES), stage
    assert memory.SIZES["profiles.gpt2.finetune.sequence_length"] == 1024
    json.dumps(memory.SIZES, allow_nan=False)
