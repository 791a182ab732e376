"""Summaries: only their own tokens are learned, no batch changes what is written, and scores are the reference's."""

from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiny
import torch
from rouge_score.rouge_scorer import RougeScorer
from rouge_score.tokenizers import DefaultTokenizer

from stages.core.architecture.tokens import end_tokens
from stages.core.evaluation import rouge, summaries
from stages.core.process.errors import UserError
from stages.core.settings.texts import ArticleDataset
from stages.core.settings.trainings import Schedule
from stages.core.text.sources import pairs
from stages.core.training.loop import train

PROMPTS = [tiny.ids(1, length, seed=length)[0].tolist() for length in (5, 17, 9, 30)]
TARGETS = [tiny.ids(1, length, seed=50 + length)[0].tolist() for length in (3, 8, 1, 5)]


def spec(batch_size=2, beams=3, no_repeat_ngram=2):
    return SimpleNamespace(batch_size=batch_size, beams=beams, no_repeat_ngram=no_repeat_ngram)


@tiny.every_family
def test_the_loss_is_that_of_the_summary_tokens_alone(name):
    model, total = tiny.model(name), 0.0
    for prompt, target in zip(PROMPTS, TARGETS):
        ids = torch.tensor([prompt + target])
        chosen = tiny.logits(model, ids)[0, len(prompt) - 1 : -1].log_softmax(-1)
        total -= chosen.gather(1, torch.tensor(target)[:, None]).sum().item()
    with torch.no_grad():
        loss, _ = summaries.summary_loss(model, PROMPTS, TARGETS)(torch.arange(4))
    assert loss.item() == pytest.approx(total / sum(map(len, TARGETS)), rel=1e-5)


def test_summaries_of_any_length_add_up_to_the_mean_over_the_tokens_of_a_step():
    """Whatever a step is split into, each token counts once."""
    states, losses = [], []
    for size, accumulation in ((4, 1), (1, 4), (3, 2)):
        model = tiny.model("llama")
        recipe = Schedule(
            epochs=1, batch_size=size, accumulation=accumulation, warmup=0.0, weight_decay=0.0, clip=100.0
        )
        objective, rates = summaries.summary_loss(model, PROMPTS, TARGETS), [(list(model.parameters()), 1e-3)]
        found = train(model, 4, objective, rates, recipe, 0, weight=summaries.target_tokens(TARGETS))
        losses.append(found.curve[0]["loss"])
        states.append(tiny.state(model))
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-5)
    for state in states[1:]:
        for key, value in states[0].items():
            torch.testing.assert_close(value, state[key], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("granite", {"logits_scaling": 8.0}),
        ("cohere", {"logit_scale": 0.25}),
        ("gemma2", {"final_logit_softcapping": 0.05}),
    ],
)
def test_what_a_family_does_to_its_logits_is_in_the_loss(name, changed):
    """Their generation draws from scaled or capped logits; the loss must be of the same."""
    model, plain = tiny.model(name, **changed), tiny.model(name)
    ids = torch.tensor([PROMPTS[0] + TARGETS[0]])
    begin = len(PROMPTS[0]) - 1
    with torch.no_grad():
        wanted, other = (
            torch.nn.functional.cross_entropy(one(ids).logits[0, begin:-1], torch.tensor(TARGETS[0])).item()
            for one in (model, plain)
        )
        loss, _ = summaries.summary_loss(model, PROMPTS, TARGETS)(torch.tensor([0]))
    assert loss.item() == pytest.approx(wanted, rel=1e-5) and abs(wanted - other) > 1e-4


@pytest.mark.parametrize("over", ["continuation", "all"])
@tiny.every_family
def test_a_batch_writes_what_each_alone_would(name, over):
    model = tiny.model(name)
    alone = summaries.write(model, PROMPTS, spec(1), 10, over)
    assert summaries.write(model, PROMPTS, spec(4), 10, over) == alone
    assert all(0 < len(row) <= 10 for row in alone)


def test_no_pair_of_tokens_is_written_twice_and_all_forbids_the_prompt_s_too():
    model = tiny.model("gpt2")
    grams = lambda ids: list(zip(ids, ids[1:]))  # noqa: E731
    for over in ("continuation", "all"):
        for prompt, row in zip(PROMPTS, summaries.write(model, PROMPTS, spec(), 12, over)):
            assert len(set(grams(row))) == len(grams(row))
            assert over == "continuation" or not set(grams(row)) & set(grams(prompt))


def test_only_the_article_is_cut():
    words = lambda text, **_: {"input_ids": [ord(letter) for letter in text]}  # noqa: E731
    (row,) = summaries.prompts(words, ["abcdefgh"], "<{article}>!", 7)
    assert "".join(map(chr, row)) == "<abcd>!"
    (row,) = summaries.prompts(words, ["abcdefgh"], "<{article}>!", 7, [ord("^")])
    assert "".join(map(chr, row)) == "^<abc>!"
    with pytest.raises(UserError, match="summarize.context leaves no room"):
        summaries.prompts(words, ["abc"], "<{article}>!", 3)


def test_rouge_is_the_reference_s():
    found = ["A goat ran away. It was found on the roof!", "Nothing", ""]
    wanted = ["The goats of Ada ran away. They were found.", "Something else", "A word"]
    for stemmer in (True, False):
        scorer = RougeScorer(list(rouge.KINDS), use_stemmer=stemmer)
        lines = [["\n".join(rouge.sentences(text)) for text in texts] for texts in (wanted, found)]
        scores = [scorer.score(*pair) for pair in zip(*lines)]
        ours = rouge.rouge(found, wanted, stemmer)
        for kind in rouge.KINDS:
            assert ours[kind] == pytest.approx(sum(s[kind].fmeasure for s in scores) / 3, abs=1e-12)
    assert rouge.rouge(wanted, wanted)["rougeLsum"] == 1


def test_lead_is_the_first_sentences():
    assert rouge.lead('One. "Two!" said he. Three?\nFour. Five.', 3) == 'One. "Two!" said he. Three?'


SCRIPTS = {
    "thai": ("สวัสดีครับ วันนี้อากาศดี", "พรุ่งนี้", 1),
    "chinese": ("今天天气很好。我们去公园！他说：「好。」然后走了。", "电脑", 4),
    "japanese": ("３．１４です．はい。ラーメンとカレー？", "犬", 3),
    "russian": ("Сегодня хорошая погода. Мы идём в парк. «Да!» Потом 5. Дом.", "собака", 5),
    "greek": ("Γειά σου Κόσμε. Είναι μέρα!", "σκύλος", 2),
    "hindi": ("आज मौसम अच्छा है। हम पार्क जा रहे हैं।", "कुत्ता", 2),
    "urdu": ("یہ اچھا ہے۔ ہم جاتے ہیں۔", "کتا", 2),
    "arabic": ("مرحبا بالعالم. كيف حالك؟ بخير", "كلب", 3),
    "hebrew": ("שלום עולם. מה נשמע?", "כלב", 2),
    "armenian": ("Բարեւ։ Ինչպես ես։", "շուն", 2),
    "amharic": ("ሰላም። እንዴት ነህ።", "ውሻ", 2),
    "korean": ("안녕하세요. 반갑습니다.", "개", 2),
    "burmese": ("မင်္ဂလာပါ။ နေကောင်းလား။", "ခွေး", 2),
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_rouge_and_sentences_of_other_scripts(script):
    text, other, count = SCRIPTS[script]
    assert rouge.rouge([text], [text]) == dict.fromkeys(rouge.KINDS, 1.0)
    assert rouge.rouge([other], [text])["rouge2"] == 0
    found = rouge.sentences(text)
    assert len(found) == count and "".join(found).replace(" ", "") == text.replace(" ", "").replace("»", "")
    assert rouge.lead(text, 1) == found[0]


@pytest.mark.parametrize(
    "text",
    [
        "The goats of Ada ran away; they'd been found (in 2019) at 3.5 m² by café “Naïve”.",
        "ﬁnd the K\u212a and \u0130stanbul, don't_stop: e.g. U.S.A. — naïve coöperation",
        "Über Größe: l'été à Łódź",
    ],
)
@pytest.mark.parametrize("stemmer", [True, False])
def test_words_of_the_latin_script_are_those_of_rouge_score(text, stemmer):
    assert rouge.Tokenizer(stemmer).tokenize(text) == DefaultTokenizer(stemmer).tokenize(text)


def test_words_of_two_scripts_stand_in_order():
    assert rouge.Tokenizer(True).tokenize("Running iPhone手机 on β-carotene, 2024年") == [
        *("run", "iphon", "手", "机", "on", "β", "caroten", "2024", "年"),
    ]


@pytest.mark.parametrize("empty", ["!!! ...", "🙂", "。", ""])
def test_a_reference_without_a_word_is_refused(empty):
    with pytest.raises(UserError, match="articles.source: summary 1 of the test split has no word"):
        rouge.rouge(["A word", "A word"], ["A word", empty])
    assert rouge.rouge([empty], ["A word"])["rouge1"] == 0


@pytest.mark.parametrize("column", ["article", "highlights"])
def test_an_empty_text_is_named(column, tmp_path):
    table = {"article": ["Long", "Longer"], "highlights": ["short", "shorter"]}
    table[column][1] = " "
    pq.write_table(pa.table(table), tmp_path / "pairs.parquet")
    source = ArticleDataset(
        kind="dataset", path="parquet", data_files={"test": str(tmp_path / "pairs.parquet")}, test="test"
    )
    with pytest.raises(UserError, match=f"row 1 .*{column}.* is empty"):
        pairs(source, "test", tmp_path, tmp_path)
    assert pairs(source, "train", tmp_path, tmp_path) == []


class Letters:
    """Every letter is a token."""

    def __call__(self, text, **_):
        return {"input_ids": [ord(letter) % tiny.VOCABULARY for letter in text]}


@pytest.mark.parametrize("ends", [None, 4, [4, 9]], ids=str)
def test_summaries_end_at_every_end_token_and_nowhere_else(ends):
    """Token 0 is a word like any other, in what is taught and in what is written."""
    model = tiny.model("llama", eos_token_id=ends)
    row = [5, 0, 8, 9, 3, 4, 7, 7]
    model.generate = lambda ids, **_: torch.cat([ids, torch.tensor([row] * len(ids))], 1)
    cut = 8 if ends is None else 5 if ends == 4 else 3
    assert summaries.write(model, [[1, 2], [3]], spec(no_repeat_ngram=0), 8, "all") == [row[:cut]] * 2
    (taught,) = summaries.targets(Letters(), ["abc"], end_tokens(model), 3)
    plain = Letters()(" abc")["input_ids"]
    assert taught == (plain[:3] if ends is None else [*plain[:2], 4])


@pytest.mark.parametrize("beam", [1, 3])
@tiny.every_family
def test_summaries_are_those_of_the_library_s_own_cache(name, beam):
    """A prompt is read once for all its beams, and only what follows it is moved: neither changes a token."""
    model = tiny.model(name)
    found = summaries.write(model, PROMPTS, spec(4, beam, 0), 10, "all")
    for prompt, row in zip(PROMPTS, found):
        ids = torch.tensor([prompt])
        options = {"num_beams": beam, "max_new_tokens": 10, "do_sample": False, "pad_token_id": 0}
        alone = model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist()
        ends = set(end_tokens(model))
        assert row == alone[: next((at for at, token in enumerate(alone) if token in ends), len(alone))]


def test_a_prompt_is_read_once_whatever_the_beams():
    model, rows = tiny.model("gpt2"), []
    model.base_model.register_forward_pre_hook(
        lambda _, inputs, named: rows.append((inputs or [named["input_ids"]])[0].shape), with_kwargs=True
    )
    summaries.write(model, PROMPTS, spec(4, 3, 0), 6, "all")
    assert rows[0] == (4, 29) and set(rows[1:]) == {(12, 1)}
