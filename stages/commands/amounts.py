"""Whether a profile asks for more calibration tokens than its train split has, before anything is tokenised."""

from pathlib import Path

from stages.core.architecture.shape import Shape
from stages.core.process.errors import UserError
from stages.core.settings import splits
from stages.core.settings.images import Digits, ImageProfile, Patterns
from stages.core.settings.profiles import Profile
from stages.core.settings.texts import Stories

LEXICON = Path("data/lexicon.yaml")
DIGITS = 1000  # images of the train split, see stages.core.images.digits
SAMPLE = 100  # stories that say about how long all are
SURE = 0.8  # of that guess: so many tokens are there without counting


def mistakes(name: str, profile: Profile, shape: Shape) -> list[str]:
    """A line where `extract` asks for more tokens than there are; none where their number is not known here."""
    spec = profile.extract
    key = "max_tokens" if spec.max_tokens >= spec.moment_tokens else "moment_tokens"
    needed, length = getattr(spec, key), getattr(spec, "sequence_length", 1)
    there = most(profile, -(-needed // length) * length, shape)
    if there is None or there >= needed:
        return []
    return [f"profiles.{name}.extract.{key} = {needed}: the train split has only {there:,} tokens"]


def most(profile: Profile, needed: int, shape: Shape) -> int | None:
    """The tokens of the train split, or `needed` where they are surely enough; None where nothing here says it."""
    source = profile.prepare.source
    if isinstance(profile, ImageProfile):
        images = source.train if isinstance(source, Patterns) else DIGITS
        if not isinstance(source, Patterns | Digits):
            images = splits.most_rows(source.train)
        return images and images * shape.positions
    tokenizer = Path(profile.base.model, "tokenizer.json")
    if not isinstance(source, Stories) or not tokenizer.is_file():
        return None
    from tokenizers import Tokenizer

    from stages.core.text.sources import generated

    try:
        known = Tokenizer.from_file(str(tokenizer))
    except Exception as error:  # tokenizers raises this very class
        raise UserError(f"cannot read {tokenizer} as a tokenizer: {error}") from error

    def count(stories: int) -> int:
        text = "\n\n".join(generated(LEXICON, source.seed, "train", stories))
        return len(known.encode(text, add_special_tokens=False))

    few = min(SAMPLE, source.train)
    return needed if needed <= SURE * count(few) / few * source.train else count(source.train)
