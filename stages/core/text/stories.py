"""Small English stories from a seeded grammar: the text that the project's own model learns and is tested on.

A story is one walk through a plot of the lexicon. Facts (who, where, what went wrong) are settled once and keep
their parts together, so that a later sentence can only agree with an earlier one; the wording is drawn anew each
time. What remains for a language model is to carry the facts along. The notation is described in the lexicon.
"""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

_CHOICE = re.compile(r"\(([^()]*)\)")
_NAME = re.compile(r"<([\w.]+)>")
_ARTICLE = re.compile(r"\b([Aa])(?= (?!use|uni|one|eu)(?:[aeiou]|hour|honest))")
_FIRST = re.compile(r'(?:^|[.!?] |\." |, "|: ")"?[a-z]')
_OMITTED = "-"


def stories(lexicon: Mapping[str, Any], seed: int | str, count: int) -> list[str]:
    """`count` stories, each a single line of some 90 to 160 words; story i is a function of lexicon, seed and i.

    Raises ValueError where the lexicon lacks a key that the stories or one of its own texts need.
    """
    plots = list(_plots(lexicon).values())
    tellers = (_Teller(lexicon, random.Random(f"{seed}/{index}")) for index in range(count))
    return [teller.tell(teller.chance.choice(plots)) for teller in tellers]


def mingled(lexicon: Mapping[str, Any], seed: int | str, count: int) -> list[str]:
    """`count` stories of plots that the lexicon does not have: no sentence is of the plot of the one before it.

    A story is as long as one of the plots. Its sentences keep the place that they have there, and its facts hold
    throughout, so that every sentence is the lexicon's and only what follows what is new. Raises ValueError as
    `stories` does, and where the lexicon has a single plot.
    """
    plots = list(_plots(lexicon).values())
    if len(plots) < 2:
        raise ValueError("lexicon: stories of mingled plots need two plots or more")
    tellers = (_Teller(lexicon, random.Random(f"{seed}/{index}")) for index in range(count))
    return [teller.tell(_mingle(plots, teller.chance)) for teller in tellers]


def _mingle(plots: list[list[Sequence[str]]], chance: random.Random) -> list[Sequence[str]]:
    """A plot with sentences of all plots: at each place the one there of a plot that the sentence before is not of."""
    places, last, found = len(chance.choice(plots)), -1, []
    for place in range(places):
        last = chance.choice([number for number in range(len(plots)) if number != last])
        found.append(plots[last][place * (len(plots[last]) - 1) // max(places - 1, 1)])
    return found


def summarised(
    lexicon: Mapping[str, Any], summaries: Mapping[str, str], seed: int, count: int
) -> list[tuple[str, str]]:
    """`count` stories, each with a sentence that sums it up: (story, summary).

    The plots are those that `summaries` has a text for. Stories are brief: whatever one may leave out is left out.
    Raises ValueError as `stories` does, for a summary of no plot, and for one that says more than its story settles.
    """
    plots = _plots({**lexicon, "summaries": summaries})
    if unknown := sorted(set(summaries) - set(plots)):
        raise ValueError(f"summaries: the lexicon has no plot {unknown[0]}")
    phrases = {name: _OMITTED if _OMITTED in _options(text) else text for name, text in lexicon["phrases"].items()}
    pairs = []
    for index in range(count):
        teller = _Teller({**lexicon, "phrases": phrases}, random.Random(f"{seed}/{index}"))
        name = teller.chance.choice(list(summaries))
        story = teller.tell([ways for ways in plots[name] if _OMITTED not in ways])
        pairs.append((story, teller.sum_up(summaries[name])))
    return pairs


class _Teller:
    """One story in the making: a source of chance, the facts settled so far and the words already used."""

    def __init__(self, lexicon: Mapping[str, Any], chance: random.Random):
        self.facts, self.phrases, self.chance = lexicon["facts"], lexicon["phrases"], chance
        self.settled: dict[str, Any] = {}
        self.used: set[str] = set()
        self.told = False

    def tell(self, plot: Sequence[Sequence[str]]) -> str:
        """The story of a plot."""
        sentences = [self.word(self.chance.choice(ways)) for ways in plot]
        return _polished(" ".join(sentence for sentence in sentences if sentence != _OMITTED))

    def sum_up(self, text: str) -> str:
        """The text in the words of what was told, to which it must add nothing."""
        self.told = True
        return _polished(self.word(text.strip()))

    def word(self, text: str) -> str:
        """The text without any markup."""
        # Choices come first, so that no fact is settled for an alternative that is not taken.
        while "(" in text:
            text = _CHOICE.sub(lambda match: self.chance.choice(match[1].split("|")), text)
        return _NAME.sub(lambda match: self.word(self.look_up(match[1])), text)

    def look_up(self, name: str) -> str:
        """The text behind a name: one of a phrase's, or that of a fact."""
        if name in self.phrases:
            return self.draw(self.phrases[name])
        value = self.fact(name)
        return self.fact(f"{name}.name") if isinstance(value, Mapping) else value

    def fact(self, path: str) -> Any:
        """The value of a fact or of a part of it, the same throughout the story."""
        if path not in self.settled:
            whole, _, part = path.rpartition(".")
            value = (self.fact(whole) if whole else self.facts)[part]
            if self.told and len(_options(value)) > 1:
                raise ValueError(f"summaries: <{path}> says more than its story has settled")
            self.settled[path] = self.draw(value)
        return self.settled[path]

    def draw(self, value: Any) -> Any:
        """A value itself, or one of the alternatives it offers; a text that was drawn before is avoided."""
        options = _options(value)
        fresh = [option for option in options if not isinstance(option, str) or option not in self.used]
        option = self.chance.choice(fresh or options)
        if isinstance(option, str) and len(options) > 1:
            self.used.add(option)
        return option


def _polished(text: str) -> str:
    """The text with "an" where it belongs and a capital at the start of every sentence."""
    return _FIRST.sub(lambda match: match[0][:-1] + match[0][-1].upper(), _ARTICLE.sub(r"\1n", text))


def _options(value: Any) -> Sequence[Any]:
    """The alternatives a value offers: the items of a list, the lines of a text, or the value alone."""
    if isinstance(value, str):
        return value.splitlines()
    return [value] if isinstance(value, Mapping) else value


def _plots(lexicon: Mapping[str, Any]) -> dict[str, list[Sequence[str]]]:
    """The lexicon's plots by name as sentences, each a list of ways to say it; every name must lead to a text."""
    for key in ("facts", "phrases", "plots"):
        if key not in lexicon:
            raise ValueError(f"lexicon: the key {key} is missing")
    for text in _texts(lexicon):
        for name in _NAME.findall(text):
            if name not in lexicon["phrases"]:
                _check(lexicon["facts"], name.split("."), name)
    return {name: [_options(sentence) for sentence in plot.split("\n\n")] for name, plot in lexicon["plots"].items()}


def _texts(value: Any) -> Iterator[str]:
    """Every text anywhere in a value."""
    if isinstance(value, str):
        yield value
    else:
        for part in value.values() if isinstance(value, Mapping) else value:
            yield from _texts(part)


def _check(value: Any, parts: Sequence[str], name: str) -> None:
    """Raise ValueError unless `parts` lead to a text in every alternative of a value."""
    for option in _options(value):
        if isinstance(option, Mapping):
            part = parts[0] if parts else "name"
            if part not in option:
                raise ValueError(f"lexicon: <{name}> needs the key {part}, but an entry has only {', '.join(option)}")
            _check(option[part], parts[1:], name)
        elif parts:
            raise ValueError(f"lexicon: <{name}> needs the key {parts[0]}, but {option!r} has no parts")
