"""An exported variant is a stock checkpoint that writes as the original is meant to."""

import json
from pathlib import Path

import pytest
import tiny
import torch
from closure import ROOT
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from stages import base
from stages.commands import export, finished
from stages.core.architecture import opening
from stages.core.architecture.depth import keep_layers
from stages.core.forms.modeling_shared_ffn import MaskedLinear
from stages.core.forms.structure import Sharing, deltas, install
from stages.core.process.artifacts import write_json
from stages.core.process.errors import UserError
from stages.core.reporting import card
from stages.core.settings.profiles import Base
from stages.core.settings.surgeries import Prune
from stages.core.shrinking import operations
from stages.core.text.tokenizer import open_tokenizer


@pytest.mark.parametrize("says", [True, False], ids=["generation config", "none"])
def test_an_export_writes_as_the_original_is_meant_to(says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    original = tiny.model("llama", vocab_size=2048, eos_token_id=3)
    original.save_pretrained("source")
    open_tokenizer(ROOT / "data" / "model").save_pretrained("source")
    path = tmp_path / "source/generation_config.json"
    path.write_text(json.dumps({"eos_token_id": [7, 3], "do_sample": True, "temperature": 0.6}))
    if not says:
        path.unlink()
    model, tokenizer = opening.open_source("source", None, None)
    model.save_pretrained("artifacts/model")
    tokenizer.save_pretrained("artifacts/tokenizer")
    snapshot = opening.open_snapshot(tmp_path / "artifacts/model")
    tiny.save(snapshot, Sharing(), tmp_path / "artifacts/finetuned/mine")
    export.main("mine", tmp_path / "exported")
    found = AutoModelForCausalLM.from_pretrained(tmp_path / "exported", dtype="float32").eval()
    assert tiny.gap(found, snapshot) == 0
    ends = [3, 7] if says else 3
    written = GenerationConfig.from_pretrained(tmp_path / "exported")
    assert found.config.eos_token_id == written.eos_token_id == ends
    assert (written.temperature, bool(written.do_sample)) == ((0.6, True) if says else (written.temperature, False))
    assert AutoTokenizer.from_pretrained(tmp_path / "exported").get_vocab() == tokenizer.get_vocab()


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A folder with what `make export` reads of a finished study: a bfloat16 source, and variants of it."""
    monkeypatch.chdir(tmp_path)
    source = tiny.model("llama", vocab_size=2048, eos_token_id=3).to(torch.bfloat16)
    source.save_pretrained("source")
    tokenizer = open_tokenizer(ROOT / "data" / "model")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    tokenizer.save_pretrained("source")
    Path("source/README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model")
    monkeypatch.setattr(base.params, "section", lambda *_: Base(model=f"{tmp_path}/source"))
    monkeypatch.setattr(base.rules, "validate_shape", lambda *_: None)
    base.main("tiny", *map(Path, ("artifacts/model", "artifacts/tokenizer", "artifacts/provenance.json")))
    write_json(Path("artifacts/calibration.json"), {"sha256": "c0ffee"})
    for name, value in (("deltas", 7.25), ("original", 6.5)):
        write_json(Path(f"metrics/variants/{name}.json"), {"perplexity": {"after": value}, "latency": {"ms": 1.5}})
    original = opening.open_snapshot(Path("artifacts/model"))
    tiny.save(original, Sharing(), Path("artifacts/finetuned/original"))
    sharing = Sharing(groups=tiny.GROUPS, rank=3, biases="own")
    install(tiny.view(original), sharing)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for delta in deltas(original):
            for factor in (delta.A, delta.B):
                factor.normal_(0, 0.2, generator=generator)
    tiny.save(original, sharing, Path("artifacts/finetuned/deltas"))
    return original


@pytest.mark.parametrize("form", ["dense", "shared"])
@pytest.mark.parametrize("dtype", ["", "float32", "float16"])
def test_an_export_is_of_the_sources_type_unless_asked(form, dtype, study, capsys):
    export.main("deltas", Path("out"), form, dtype)
    found = AutoModelForCausalLM.from_pretrained("out")
    assert {str(p.dtype) for p in found.parameters()} == {f"torch.{dtype or 'bfloat16'}"}
    opened = found.float()
    assert tiny.gap(opened, study) <= {"": 0.5, "float16": 0.05, "float32": 1e-4}[dtype]
    record = json.loads(Path("out/export.json").read_text())
    assert record["form"] == form and record["dtype"] == (dtype or "bfloat16")
    assert f"largest logit difference {record['largest_logit_difference']:.1e}" in capsys.readouterr().out
    assert {file.stat().st_mode for file in Path("out").glob("*.safetensors")} == {
        Path("out/config.json").stat().st_mode
    }


@pytest.mark.parametrize("form", ["dense", "shared"])
def test_licence_files_travel_with_an_export(form, study):
    kept = {"LICENSE": "terms", "NOTICE.txt": "by whom", "USE_POLICY.md": "what for"}
    for name, text in {
        **kept,
        "notes.txt": "none of them",
        "other.gguf": "",
        "other.gguf.LICENSE": "another's",
    }.items():
        Path("source", name).write_text(text)
    export.main("deltas", Path("out"), form)
    found = {path.name: path.read_text() for path in Path("out").glob("*") if path.name in kept}
    assert found == kept and not list(Path("out").glob("other*")) and not Path("out/notes.txt").exists()
    assert "license: apache-2.0" in Path("out/README.md").read_text()


@pytest.mark.parametrize("form", ["dense", "shared"])
def test_an_export_is_complete_and_in_parts(form, study, monkeypatch):
    monkeypatch.setattr(export, "SHARD", "60KB")
    export.main("deltas", Path("out"), form, "float32")
    assert len(list(Path("out").glob("model-*.safetensors"))) > 2 and not Path("out/model.safetensors").exists()
    found = AutoModelForCausalLM.from_pretrained("out")
    assert tiny.gap(found, study) <= (1e-4 if form == "dense" else 0)
    stored = sum(tensor.numel() for file in Path("out").glob("*.safetensors") for tensor in load_file(file).values())
    assert stored == tiny.count(study)["dense_parameters" if form == "dense" else "parameters"]
    assert Path("out/modeling_shared_ffn.py").is_file() == (form == "shared")
    kept = {path.name: path.read_bytes() for path in Path("artifacts/tokenizer").iterdir()}
    assert {name: Path("out", name).read_bytes() for name in kept} == kept and "chat_template.jinja" in kept
    assert json.loads(Path("out/generation_config.json").read_text())["eos_token_id"] == 3
    text = Path("out/README.md").read_text()
    for said in (
        "license: apache-2.0", "Layers 0, 1, 2 (from 0) share one FFN", "rank 3", "| perplexity after | 7.25 | 6.5 |",
        "sha256 `c0ffee`", json.loads(Path("artifacts/provenance.json").read_text())["sha256"], "## Limits",
    ):  # fmt: skip
        assert said in text
    assert ("trust_remote_code=True" in text) == (form == "shared") and "latency" not in text


def test_the_card_of_what_is_sparse_says_so_and_nothing_of_sharing(study):
    view = tiny.view(opening.open_snapshot(Path("artifacts/model")).float())
    spec = Prune(method="prune", target_parameters=0.8)
    sparse, sharing = operations.operate(view, [], tiny.calibration(view.model), spec)
    tiny.save(sparse.model, sharing, Path("artifacts/finetuned/sparse"))
    export.export("sparse", Path("out"), "shared", "float32", "me/sparse")
    said, record = Path("out/README.md").read_text(), json.loads(Path("out/export.json").read_text())
    linears = [linear for layer in range(view.depth) for linear in sparse.linears(layer).values()]
    matrices = torch.cat([linear.matrix().flatten() for linear in linears if isinstance(linear, MaskedLinear)])
    assert f"FFN matrices are sparse: {(matrices == 0).double().mean():.0%} of their entries are zero." in said
    assert "This form stores sparse matrices as masks and values:" in said and "Sharing saves" not in said
    assert "merge_and_unload" not in said and "save file size alone" in said
    assert f"{record['weights_bytes']:,} bytes of weights" in said
    assert record["weights_bytes"] == Path("out/model.safetensors").stat().st_size
    # It is opened by the name that it will have, not by that of this folder.
    assert "# me/sparse\n" in said and '.from_pretrained("me/sparse", trust_remote_code=True)' in said
    assert '"out"' not in said


def test_a_card_says_how_many_layers_are_gone_and_all_that_is_stored_otherwise(study):
    view = tiny.view(opening.open_snapshot(Path("artifacts/model")))
    tiny.save(keep_layers(view, [0, 2, 3]).model, Sharing(), Path("artifacts/finetuned/thin"))
    export.main("thin", Path("out"))
    gone = json.loads(Path("artifacts/provenance.json").read_text())["layers"] - 3
    assert f"{gone} of the source's layers {'is' if gone == 1 else 'are'} gone." in Path("out/README.md").read_text()
    every = {"groups": [[0, 1]], "bases": [], "factored": True, "kept": {"2": {"in": 3}}}
    assert card.stores(every) == (
        "what layers share once, products of matrices as their factors and sparse matrices as masks and values"
    )


def test_the_shared_form_of_what_shares_nothing_is_a_stock_one(study):
    export.main("original", Path("out"), "shared", "")
    assert json.loads(Path("out/config.json").read_text())["model_type"] == "llama"
    assert (
        not Path("out/modeling_shared_ffn.py").exists() and "No two layers share" in Path("out/README.md").read_text()
    )


@pytest.mark.parametrize(("form", "dtype"), [("sparse", ""), ("dense", "int8"), ("", "float32")])
def test_a_form_or_type_that_there_is_not_is_one_line(form, dtype, study):
    with pytest.raises(UserError, match="^(FORM|DTYPE) = (sparse|int8|): "):
        export.main("deltas", Path("out"), form, dtype)
    assert not Path("out").exists()


def test_an_export_that_shares_is_no_source(study):
    export.main("deltas", Path("out"), "shared", "")
    with pytest.raises(UserError, match="'out': its layers share or factor weights: give its dense form"):
        opening.open_external("out", None, open_tokenizer(Path("out")), 2048)


@pytest.mark.parametrize(("stated", "wanted"), [("float16", "float16"), (None, "bfloat16")])
def test_the_type_of_a_source_is_that_of_its_config_or_of_its_tensors(stated, wanted, tmp_path):
    tiny.model("gpt2").to(torch.bfloat16).save_pretrained(tmp_path, max_shard_size="60KB")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"dtype": stated}))
    assert opening.dtype(str(tmp_path), None, None) == wanted
    assert opening.dtype(str(tmp_path), None, "a.gguf") == "float32"


@pytest.mark.parametrize(
    ("files", "gguf", "wanted"),
    [
        ({"LICENSE": ""}, None, {"file": "LICENSE"}),
        ({"a.gguf.LICENSE": "", "b.gguf.TERMS.html": ""}, "b.gguf", {"file": "b.gguf.TERMS.html"}),
        ({"README.md": "# license: none"}, None, {}),
    ],
)
def test_a_licence_is_named_where_the_source_has_one(files, gguf, wanted, tmp_path):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = export.licence_of({"model": str(tmp_path), "gguf_file": gguf})
    assert found == {key: f"{tmp_path}/{name}" for key, name in wanted.items()}


@pytest.mark.parametrize("name", ["", ".", "..", "keep", "keep/notes.txt", "keep/notes.txt/new"])
def test_an_export_replaces_nothing_but_an_export(name, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    Path("keep").mkdir()
    Path("keep/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="^TO = .*: a new folder or an earlier export is needed"):
        export.refuse_to_replace(Path(name))
    for free in ("new", "empty", "earlier"):
        Path(free).mkdir(exist_ok=free != "new")
    Path("earlier", export.RECORD).write_text(json.dumps({"files": [export.RECORD]}))
    for free in ("not/there", "empty", "earlier"):
        export.refuse_to_replace(Path(free))


def test_an_export_takes_nothing_away_that_it_did_not_write(study):
    export.main("deltas", Path("out/deltas"))
    export.main("deltas", Path("out/deltas"), "shared")
    record = json.loads(Path("out/deltas/export.json").read_text())
    assert record["files"] == sorted(path.name for path in Path("out/deltas").iterdir())
    with pytest.raises(UserError, match="^TO = out/deltas/more: it lies in the export .*/out/deltas, which the next"):
        export.main("deltas", Path("out/deltas/more"))
    Path("out/deltas/notes.txt").write_text("mine")
    with pytest.raises(UserError, match="^TO = out/deltas: out/deltas/notes.txt is of no export and would be lost"):
        export.main("deltas", Path("out/deltas"))
    Path("other").mkdir()
    Path("other/export.json").write_text("{}")  # another's
    with pytest.raises(UserError, match="other/export.json is of no export"):
        export.main("deltas", Path("other"))


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="no folder here takes no file from anybody")
def test_where_nothing_can_be_written_is_one_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="^TO = artifacts/finetuned/mine/x: artifacts holds files of the study: a new"):
        export.refuse_to_replace(Path("artifacts/finetuned/mine/x"))
    Path("link").symlink_to("out")
    with pytest.raises(UserError, match="^TO = link: it is a link, and would be replaced: name the folder itself"):
        export.refuse_to_replace(Path("link"))
    with pytest.raises(UserError, match="^TO = /proc/there/out: cannot write in /proc: "):
        export.refuse_to_replace(Path("/proc/there/out"))


def test_a_card_without_figures_is_told(study, capsys):
    Path("metrics/variants/deltas.json").unlink()
    export.main("deltas", Path("out"))
    assert "The card has no figures: metrics/variants/deltas.json is not there" in capsys.readouterr().out
    assert "## Figures" not in Path("out/README.md").read_text()


def test_a_variant_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(finished, "FINISHED", tmp_path)
    with pytest.raises(UserError, match="^VARIANT = nope: params.yaml has original, softshare, "):
        export.main("nope", tmp_path / "exported")
    with pytest.raises(UserError, match="^VARIANT = softshare: .* is not there yet; `make repro` makes it$"):
        finished.checkpoint_of("softshare")
