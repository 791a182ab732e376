"""The stories: a pure function of lexicon, seed and index, in correct English, that hold together to the end."""

import copy
import re
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from stages.core.text.stories import mingled, stories, summarised

LEXICON, SUMMARIES = (
    YAML(typ="safe").load(Path(__file__).parents[1] / f"data/{name}.yaml") for name in ("lexicon", "summaries")
)
FACTS = LEXICON["facts"]
TEXTS = stories(LEXICON, 0, 1000)
GENDER = {name: person["she"] for person in FACTS["hero"] for name in person["name"]}
PRONOUNS = {"she": {"she", "her", "herself"}, "he": {"he", "him", "his", "himself"}}
THINGS = {
    **{goods["one"]: goods["many"] for trade in FACTS["trade"] for goods in trade["goods"]},
    **{thing["name"]: thing["name"] for kind in ("keepsake", "device", "animal") for thing in FACTS[kind]},
    **{illness["herb"]: illness["herb"] for illness in FACTS["illness"]},
    **{tool: tool for trade in FACTS["trade"] for tool in trade["tool"]},
    **{season["storm"]["name"]: season["storm"]["name"] for season in FACTS["season"]},
    "letter": "letter",
}
MENTION = [re.compile(rf"\b(?:{one}|{many})\b") for one, many in THINGS.items()]


def words(text):
    return re.findall(r"[a-z]+(?:['-][a-z]+)*", text.lower())


def people(text):
    """The people of a story in the order of their first appearance."""
    return list(dict.fromkeys(word for word in re.findall(r"\w+", text) if word in GENDER))


def defects(text):
    """What is wrong with the form of a story."""
    patterns = {
        "markup": r"[<>()|{}_\n]",
        "omission mark": r"(?:^| )-(?: |$)",
        "a before a vowel": r"\b[Aa] (?!use)(?:[aeiou]|hour|honest)",
        "an before a consonant": r"\b[Aa]n (?!hour|honest)[^aeiou]",
        "spacing": r"  | [,.;:!?]|^ | $",
        "small letter after a full stop": r'[.!?] "?[a-z]',
        "small letter in speech": r', "[a-z]',
        "doubled word": r"\b(?!her )(\w+) \1\b",
        "first letter": r'^(?![A-Z"])',
        "last mark": r'(?<![.!?])$|(?<=[^.!?])"$',
    }
    found = [name for name, pattern in patterns.items() if re.search(pattern, text)]
    return found + ["quotes"] * (text.count('"') % 2)


def test_same_seed_same_stories():
    assert stories(LEXICON, 0, 50) == TEXTS[:50]
    assert stories(copy.deepcopy(LEXICON), 0, 50) == TEXTS[:50]


def test_first_words_of_a_seed_never_change():
    # Guards against a source of chance that differs between platforms or versions.
    assert TEXTS[0].startswith("The bindery in Stonebridge belonged to Delia, a brave bookbinder with a good memory.")


@pytest.mark.parametrize("count", [0, 1, 9])
def test_story_does_not_depend_on_count(count):
    assert stories(LEXICON, 0, count) == TEXTS[:count]


def test_seeds_share_no_story():
    texts = [text for seed in range(3) for text in stories(LEXICON, seed, 500)]
    assert len(set(texts)) == 1500


OTHER = mingled(LEXICON, 7, 100)


def test_the_other_text_shares_no_story_with_any_split():
    assert mingled(copy.deepcopy(LEXICON), 7, 9) == OTHER[:9] and len(set(OTHER)) == 100
    assert not set(OTHER) & {text for seed in (1, 2, 3, 4, 7) for text in stories(LEXICON, seed, 300)}
    assert not [defects(text) for text in OTHER if defects(text)]


def test_no_sentence_of_the_other_text_follows_one_of_its_own_plot():
    """So none of its stories can be any of the lexicon's. Each place has a sentence that a plot has there."""
    sizes = {"a": 5, "b": 9, "c": 6}
    plots = {name: "\n\n".join(f"{name.upper()}{place}." for place in range(size)) for name, size in sizes.items()}
    told = mingled({"facts": {}, "phrases": {}, "plots": plots}, 0, 200)
    ends = {name.upper(): {f"{name.upper()}0.", f"{name.upper()}{size - 1}."} for name, size in sizes.items()}
    for sentences in map(str.split, told):
        assert len(sentences) in sizes.values()
        assert all(one[0] != two[0] for one, two in zip(sentences, sentences[1:]))
        assert all(sentences[place] in ends[sentences[place][0]] for place in (0, -1))
        places = [int(sentence[1:-1]) / (sizes[sentence[0].lower()] - 1) for sentence in sentences]
        assert all(abs(share - n / (len(sentences) - 1)) < 0.25 for n, share in enumerate(places))
    assert len(set(told)) > 100
    with pytest.raises(ValueError, match="two plots or more"):
        mingled({"facts": {}, "phrases": {}, "plots": {"a": plots["a"]}}, 0, 1)


def test_an_article_is_a_brief_story_and_a_function_of_its_seed_and_number():
    pairs = summarised(LEXICON, SUMMARIES, 0, 300)
    assert summarised(copy.deepcopy(LEXICON), SUMMARIES, 0, 9) == pairs[:9]
    assert summarised(LEXICON, SUMMARIES, 1, 9) != pairs[:9]
    assert not [defects(story) for story, _ in pairs if defects(story)]
    length = lambda texts: sum(len(text.split()) for text in texts) / len(texts)  # noqa: E731
    assert length([story for story, _ in pairs]) < 0.85 * length(TEXTS)


def test_a_summary_names_nobody_and_is_its_own_story_s():
    pairs = summarised(LEXICON, SUMMARIES, 0, 1000)
    for _, summary in pairs:
        assert not defects(summary) and not people(summary), summary
        assert not any(place in summary for place in FACTS["place"]["name"]), summary
    assert len({summary for _, summary in pairs}) > 100
    # How it ended is what the story's own end says.
    assert all(summary.split()[-1].rstrip(".") in words(story) for story, summary in pairs)


@pytest.mark.parametrize(
    "plot, text, message",
    [
        ("lost", "A <device> was lost.", "<device> says more"),
        ("lost", "A <trinket> was lost.", "<trinket> needs the key"),
        ("losing", "It was lost.", "no plot losing"),
    ],
)
def test_a_summary_that_its_story_does_not_support_is_refused(plot, text, message):
    with pytest.raises(ValueError, match=message):
        summarised(LEXICON, {plot: text}, 0, 1)


def test_vocabulary():
    assert len({word for text in TEXTS for word in words(text)}) >= 1400


def test_length():
    lengths = [len(text.split()) for text in TEXTS]
    assert 120 <= sum(lengths) / len(lengths) <= 160
    assert 85 <= min(lengths) and max(lengths) <= 220


def test_form():
    assert {text: defects(text) for text in TEXTS if defects(text)} == {}


@pytest.mark.parametrize(
    "text, defect",
    [
        ("She ate a apple.", "a before a vowel"),
        ("She ate an pear.", "an before a consonant"),
        ("She ate  it.", "spacing"),
        ("she ate it.", "first letter"),
        ("She ate it", "last mark"),
        ("She ate it. he did not.", "small letter after a full stop"),
        ("She ate <food>.", "markup"),
        ('"I ate it, she said.', "quotes"),
        ("She ate the the pear.", "doubled word"),
    ],
)
def test_form_would_notice(text, defect):
    assert defect in defects(text)


def test_pronouns_fit_the_people():
    for text in TEXTS:
        spoken = re.sub(r'"[^"]*"', "", text)
        genders = {GENDER[name] for name in people(text)}
        for gender, pronouns in PRONOUNS.items():
            if gender not in genders:
                assert not pronouns & set(words(spoken)), text


def test_protagonist_opens_and_ends_the_story():
    for text in TEXTS:
        first, last = text.split(". ")[0], text.split(". ")[-1]
        assert people(first) == people(text)[:1], text
        assert people(text)[0] in people(last), text


def test_something_introduced_returns():
    for text in TEXTS[:400]:
        assert any(len(mention.findall(text)) >= 2 for mention in MENTION), text


def test_season_and_weather_agree():
    for text in TEXTS:
        named = {season["name"] for season in FACTS["season"] if season["name"] in words(text)}
        harms = {s["name"] for s in FACTS["season"] for weather in s["weather"] if weather["harm"] in text}
        assert len(named | harms) <= 1, text


@pytest.mark.parametrize(
    "path, named",
    [
        (["plots"], "plots"),
        (["facts"], "facts"),
        (["phrases", "good"], "good"),
        (["facts", "trade"], "trade"),
        (["facts", "trade", 3, "stuff"], "stuff"),
        (["facts", "season", 1, "weather", 0, "harm"], "harm"),
        (["facts", "friend", 1, "name"], "name"),
    ],
)
def test_missing_key_is_named(path, named):
    lexicon = copy.deepcopy(LEXICON)
    *parents, last = path
    part = lexicon
    for key in parents:
        part = part[key]
    del part[last]
    with pytest.raises(ValueError, match=rf"key {named}\b"):
        stories(lexicon, 0, 1)
