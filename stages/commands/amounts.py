"""Whether a profile asks for more tokens than there are, or leaves none for a text, before anything is tokenised."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stages.core.architecture.shape import Shape
from stages.core.process.errors import UserError
from stages.core.settings import splits
from stages.core.settings.images import Digits, ImageProfile, Patterns
from stages.core.settings.params import PARAMS
from stages.core.settings.profiles import LanguageProfile, Profile
from stages.core.settings.texts import Stories

LEXICON = Path("data/lexicon.yaml")
DIGITS = 1000  # images of the train split, see stages.core.images.digits
SAMPLE = 100  # stories that say about how long all are
SURE = 0.8  # of that guess: so many tokens are there without counting


def mistakes(name: str, profile: Profile, shape: Shape) -> list[str]:
    """A line where `extract` asks for more tokens than there are, and for each text that is left no room.

    None where the tokens are not known here.
    """
    known = tokenizer(name, profile)
    lines = list(_frames(name, profile, known)) if known and isinstance(profile, LanguageProfile) else []
    spec = profile.extract
    key = "max_tokens" if spec.max_tokens >= spec.moment_tokens else "moment_tokens"
    asked, length = getattr(spec, key), getattr(spec, "sequence_length", 1)
    needed = -(-asked // length) * length
    there = most(profile, needed, shape, known)
    if there is not None and there < needed:
        whole = f" takes {needed:,} tokens in sequences of {length}" if needed > asked else ""
        lines.append(f"profiles.{name}.extract.{key} = {asked}{whole}: the train split has only {there:,} tokens")
    return lines


def _frames(name: str, profile: LanguageProfile, known: Any) -> Iterator[str]:
    """A line where what stands around a review or an article, and a summary, fill all the tokens that there are."""
    reviews, summaries = profile.reviews, profile.summarize

    def tokens(text: str) -> int:
        return len(known.encode(text, add_special_tokens=False))

    taken = sum(map(tokens, reviews.template.split("{text}")))
    if taken >= reviews.max_tokens:
        yield f"profiles.{name}.reviews.max_tokens = {reviews.max_tokens}: template alone has {taken} tokens"
    taken = sum(map(tokens, summaries.format.split("{article}"))) + summaries.new_tokens
    if taken >= summaries.context:
        yield f"profiles.{name}.summarize.context = {summaries.context}: format and new_tokens take {taken} tokens"


def most(profile: Profile, needed: int, shape: Shape, known: Any) -> int | None:
    """The tokens of the train split, or `needed` where they are surely enough; None where nothing here says it.

    known: the profile's `tokenizer`.
    """
    source = profile.prepare.source
    if isinstance(profile, ImageProfile):
        images = source.train if isinstance(source, Patterns) else DIGITS
        if not isinstance(source, Patterns | Digits):
            images = splits.most_rows(source.train)
        return images and images * shape.positions
    if not isinstance(source, Stories) or not known:
        return None
    from stages.core.text.sources import generated

    def count(stories: int) -> int:
        text = "\n\n".join(generated(LEXICON, source.seed, "train", stories))
        return len(known.encode(text, add_special_tokens=False))

    few = min(SAMPLE, source.train)
    return needed if needed <= SURE * count(few) / few * source.train else count(source.train)


def tokenizer(name: str, profile: Profile) -> Any:
    """The tokenizer of a folder, None where the model is no folder or has its words in another file."""
    path = Path(profile.base.model, "tokenizer.json")
    if not path.is_file():
        return None
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises this very class
        said = f"{PARAMS}: profiles.{name}.base.model = {profile.base.model}"
        raise UserError(f"{said}: cannot read {path.name} as a tokenizer: {error}") from error
