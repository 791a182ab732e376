"""What `make check` shows of params.yaml: the same meaning, every default beside it."""

import copy
import io

import pytest
from closure import ROOT
from ruamel.yaml import YAML

from stages.core.running import resolved
from stages.core.settings import params

DOCUMENT = YAML(typ="safe").load((ROOT / "params.yaml").read_text())


def load(folder, document):
    text = io.StringIO()
    YAML(typ="safe").dump(document, text)
    (folder / "params.yaml").write_text(text.getvalue())
    return params.load(folder / "params.yaml")


@pytest.mark.parametrize("width", [40, 80, 120])
@pytest.mark.parametrize("name", DOCUMENT["profiles"])
def test_without_its_comments_it_means_the_same(name, width, tmp_path):
    reach = params.load(ROOT / "params.yaml").profiles[name].correlate.reach
    variants = {key: value for key, value in DOCUMENT["variants"].items() if value["windows"].get("size", 0) <= reach}
    found = load(tmp_path, DOCUMENT | {"profile": name, "variants": variants})
    shown = YAML(typ="safe").load(resolved.text(found, width))
    again = load(tmp_path, shown | {name: DOCUMENT[name] for name in ("pretrain", "pretrain_digits")})
    run = {key: each.model_copy(update={"skip": []}) for key, each in found.variants.items() if name not in each.skip}
    assert again.profiles[name] == found.profiles[name] and again.variants == run


def put_together(said, rest):
    """Two mappings that share no value as one."""
    whole = copy.deepcopy(said)
    for key, value in rest.items():
        if key in whole:
            assert isinstance(whole[key], dict) and isinstance(value, dict), key
            whole[key] = put_together(whole[key], value)
        else:
            whole[key] = value
    return whole


def test_every_value_is_either_said_or_a_default():
    found = params.load(ROOT / "params.yaml")
    for section in [*found.profiles.values(), *found.variants.values()]:
        said, rest = resolved.split(section)
        assert put_together(said, rest) == section.model_dump()
        assert type(section).model_validate(said) == section


def test_what_differs_is_what_the_file_need_say(tmp_path):
    document = copy.deepcopy(DOCUMENT)
    document["variants"]["merged_4"]["surgery"] |= {"base": "mean", "biases": "shared", "bias_correction": False}
    document["variants"]["merged_6"]["finetune"] = {"distill": None}
    found = load(tmp_path, document).variants
    assert resolved.split(found["merged_4"])[0]["surgery"] == {"method": "share", "base": "mean"}
    assert resolved.split(found["merged_6"])[0]["finetune"] == {"distill": None}
    assert resolved.split(found["merged_6"])[1]["finetune"]["teacher"] == "original"
    for name, profile in params.load(ROOT / "params.yaml").profiles.items():
        assert resolved.split(profile)[0] == DOCUMENT["profiles"][name], name


def test_it_is_two_screens_and_names_every_variant_and_default():
    found = params.load(ROOT / "params.yaml")
    lines = resolved.text(found).splitlines()
    assert len(lines) <= 110 and max(map(len, lines)) <= 120
    assert all(any(line.startswith(f"  {name}: ") for line in lines) for name in found.variants)
    assert "    correlate: {}  # reach: 10" in lines
    merged = next(number for number, line in enumerate(lines) if line.startswith("  merged_6: "))
    assert "\n".join(lines[merged : merged + 2]).endswith("# the rest as merged_4")


@pytest.mark.parametrize(
    "value, written",
    [
        (2e-05, "2.0e-05"),
        (0.5, "0.5"),
        (1.0, "1.0"),
        (None, "null"),
        (True, "true"),
        (3, "3"),
        ("head", "head"),
        ("3.0.0", '"3.0.0"'),
        ("null", '"null"'),
        ("a: b\n#", '"a: b\\n#"'),
        ({"a": [1, "ä"]}, '{a: [1, "ä"]}'),
    ],
)
def test_a_value_is_read_as_it_was(value, written):
    shown = resolved.flow(value).replace(resolved.GLUE, " ")
    assert shown == written and YAML(typ="safe", pure=True).load(shown) == value
