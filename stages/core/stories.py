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
    return [_Teller(lexicon, random.Random(f"{seed}/{index}")).tell(plots) for index in range(count)]


def summarised(lexicon: Mapping[str, Any], seed: int, count: int) -> list[tuple[str, str]]:
    """The same stories, each with a sentence that says what it was about: (story, summary).

    A summary is worded by chance and says only what its story has settled. Raises ValueError as `stories` does, and
    where a plot has no summary that its telling supports.
    """
    plots = _plots(lexicon)
    if set(plots) - set(lexicon.get("summaries", {})):
        raise ValueError("lexicon: the key summaries must have an entry for every plot")
    of = {id(plot): _options(lexicon["summaries"][name]) for name, plot in plots.items()}
    pairs = []
    for index in range(count):
        teller = _Teller(lexicon, random.Random(f"{seed}/{index}"))
        story = teller.tell(list(plots.values()))
        pairs.append((story, teller.sum_up(of[id(teller.plot)])))
    return pairs


class _Teller:
    """One story in the making: a source of chance, the facts settled so far and the words already used."""

    def __init__(self, lexicon: Mapping[str, Any], chance: random.Random):
        self.facts, self.phrases, self.chance = lexicon["facts"], lexicon["phrases"], chance
        self.settled: dict[str, Any] = {}
        self.used: set[str] = set()
        self.told = False

    def tell(self, plots: Sequence[Sequence[Sequence[str]]]) -> str:
        """The story of one of the plots."""
        self.plot = self.chance.choice(plots)
        sentences = [self.word(self.chance.choice(ways)) for ways in self.plot]
        self.told = True
        return _polished(" ".join(sentence for sentence in sentences if sentence != _OMITTED))

    def sum_up(self, ways: Sequence[str]) -> str:
        """One of the ways to sum up what was told, drawn among those that add nothing to it."""
        for way in self.chance.sample(ways, len(ways)):
            try:
                return _polished(self.word(way))
            except _Untold:
                continue
        raise ValueError(f"lexicon: no line of this summary fits every telling of its plot: {ways[-1]}")

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
                raise _Untold
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


class _Untold(Exception):
    """A summary has asked for something that its story left open."""


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
