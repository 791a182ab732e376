"""Whatever params.yaml says, its mistakes are told in this project's words, never in pydantic's."""

import copy
import math
import re

import pytest
from closure import ROOT
from pydantic import ValidationError
from ruamel.yaml import YAML

from stages.core.settings import messages
from stages.core.settings.params import Params

DOCUMENT = YAML(typ="safe").load((ROOT / "params.yaml").read_text())
# Words of pydantic's sentences that are none of the file's.
FOREIGN = re.compile(
    r"\b(inputs?|valid|extra|permitted|instance|dictionary|string|field|items?|tag|discriminator|pattern|match|integer|"
    r"boolean|literal|object|attributes?|[Vv]alue error|Section|Like)\b",
    re.IGNORECASE,
)
ODD = [None, True, 0, -1, 1e9, math.nan, 10**400, "", "odd", [], {}, {3: 4}]


def documents():
    """Small files that together have every kind of section: each member of each union, and what is null by default."""
    whole = {key: DOCUMENT[key] for key in ("profile", "pretrain", "pretrain_digits")}
    profiles, variants = DOCUMENT["profiles"], DOCUMENT["variants"]
    rival = {"windows": {"choose": "none"}, "surgery": {"method": "external", "model": "a/b"}, "finetune": {}}
    merged = variants["merged_4"] | {"finetune": {"distill": {"logits": 0.5}}}
    gpt2 = profiles["gpt2"] | {"finetune": {"learning_rate": {"all": 0.1}, "validation": {"times": 3}}}
    kinds = {name: variants[name] for name in ("softshare", "softshare_seed", "compressed_4", "dropped", "svd", "mix")}
    for name, profile in {"small": profiles["small"], "gpt2": gpt2, "digits": profiles["digits"]}.items():
        yield whole | {"profile": name, "profiles": {name: profile}, "variants": {"original": variants["original"]}}
    for name, variant in (kinds | {"merged_4": merged, "pruned": variants["pruned"], "rival": rival}).items():
        profile = {"gpt2": profiles["gpt2"]}
        yield {"profile": "gpt2", "profiles": profile, "variants": {"original": variants["original"], name: variant}}


def paths(part, above=()):
    """The path of every value, mappings and entries of lists included."""
    keys = part if isinstance(part, dict) else range(min(1, len(part))) if isinstance(part, list) else ()
    return [path for key in keys for path in [(*above, key), *paths(part[key], (*above, key))]]


def mistakes(document):
    """What pydantic finds in a file: types of mistakes, and the lines."""
    try:
        Params.model_validate(document)
    except ValidationError as error:
        return {mistake["type"] for mistake in error.errors()}, messages.lines(error, Params)
    return set(), []


def changed(document):
    """The document, changed in place, with every value replaced by odd ones, left out, or given a key too much."""
    for path in paths(document):
        part = document
        for step in path[:-1]:
            part = part[step]
        value = part[path[-1]]
        for odd in [*ODD, *([value | {"odd": 1}] if isinstance(value, dict) else [])]:
            part[path[-1]] = odd
            yield path
        if isinstance(part, dict):
            del part[path[-1]]
            yield path
        part[path[-1]] = value


def test_no_word_of_pydantic_reaches_the_reader():
    """Every value of the file replaced by odd ones, left out, and given a key too much."""
    types, told, known = set(), [], set()
    for document in map(copy.deepcopy, documents()):
        for path in changed(document):
            if path not in known:
                found, lines = mistakes(document)
                assert bool(found) == bool(lines), path
                types |= found
                told += lines
        known |= set(paths(document))
    assert types == set(messages.SENTENCES) | {messages.SILENT}
    for line in told:
        assert "\n" not in line and len(line) < 600
        assert not FOREIGN.search(re.sub(r"'[^']*'|\[[^]]*\]", "", line)), line


@pytest.mark.parametrize(
    "path, value, line",
    [
        ("variants.svd.surgery.target_parameters", "x", f" = 'x': {messages.TARGETS}"),
        ("variants.svd.surgery.target_parameters", 1.5, f" = 1.5: {messages.TARGETS}"),
        ("variants.svd.surgery.target_parameters", {"size": 1, "rank": 8}, ".size = 1: at least 2 is needed"),
        (
            "profiles.small.search.contxt",
            64,
            " = 64: unknown key (is context meant?); there are max_tokens, context, batch_size",
        ),
        ("profiles.digits.prepare.source.x", 3, " = 3: unknown key; there are kind, file"),
        ("profiles.small.runtime.device", "tpu", " = 'tpu': auto, cpu, cuda or one GPU, as cuda:1, is needed"),
        ("profiles.small.summarize.training", 3, " = 3: keys with values are needed, as {key: value}"),
        ("profiles.digits.reviews", "x", " = 'x': only null is allowed"),
        ("variants.mix.surgery.target_parameters", {"size": 4, "rank": 8}, ": unknown key; there are method"),
        ("variants.mix.surgery.target_parameters", 0.9, " = 0.9: unknown key; there are method"),
        (
            "profiles.small.correlate",
            None,
            " = null: keys with values are needed, as {key: value}; {} leaves it at its defaults",
        ),
    ],
)
def test_a_line_names_key_value_and_what_is_allowed(path, value, line):
    document = copy.deepcopy(DOCUMENT)
    *above, last = path.split(".")
    part = document
    for step in above:
        part = part[step]
    part[last] = value
    assert mistakes(document)[1] == [path + line]
