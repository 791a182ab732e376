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
    plots = _plots(lexicon)
    return [_Teller(lexicon, random.Random(f"{seed}/{index}")).tell(plots) for index in range(count)]


class _Teller:
    """One story in the making: a source of chance, the facts settled so far and the words already used."""

    def __init__(self, lexicon: Mapping[str, Any], chance: random.Random):
        self.facts, self.phrases, self.chance = lexicon["facts"], lexicon["phrases"], chance
        self.settled: dict[str, Any] = {}
        self.used: set[str] = set()

    def tell(self, plots: Sequence[Sequence[Sequence[str]]]) -> str:
        """The story of one of the plots."""
        sentences = [self.word(self.chance.choice(ways)) for ways in self.chance.choice(plots)]
        text = " ".join(sentence for sentence in sentences if sentence != _OMITTED)
        return _FIRST.sub(lambda match: match[0][:-1] + match[0][-1].upper(), _ARTICLE.sub(r"\1n", text))

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
            self.settled[path] = self.draw((self.fact(whole) if whole else self.facts)[part])
        return self.settled[path]

    def draw(self, value: Any) -> Any:
        """A value itself, or one of the alternatives it offers; a text that was drawn before is avoided."""
        options = _options(value)
        fresh = [option for option in options if not isinstance(option, str) or option not in self.used]
        option = self.chance.choice(fresh or options)
        if isinstance(option, str) and len(options) > 1:
            self.used.add(option)
        return option


def _options(value: Any) -> Sequence[Any]:
    """The alternatives a value offers: the items of a list, the lines of a text, or the value alone."""
    if isinstance(value, str):
        return value.splitlines()
    return [value] if isinstance(value, Mapping) else value


def _plots(lexicon: Mapping[str, Any]) -> list[list[list[str]]]:
    """The lexicon's plots as sentences, each a list of ways to say it; checks that every name leads to a text."""
    for key in ("facts", "phrases", "plots"):
        if key not in lexicon:
            raise ValueError(f"lexicon: the key {key} is missing")
    for text in _texts(lexicon):
        for name in _NAME.findall(text):
            if name not in lexicon["phrases"]:
                _check(lexicon["facts"], name.split("."), name)
    return [[_options(sentence) for sentence in plot.split("\n\n")] for plot in lexicon["plots"].values()]


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
