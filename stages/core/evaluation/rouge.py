"""ROUGE (Lin 2004) as a metric of `evaluate` that needs no hub: `rouge_score` does the counting.

`evaluate.load("rouge")` fetches its script from the hub and averages by a bootstrap that draws from numpy's global
state; this one is here already and takes plain means, so equal predictions have equal figures.
"""

import unicodedata

import datasets
import evaluate
import regex
from rouge_score import rouge_scorer, tokenizers

from stages.core.process.errors import UserError

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")

# A word of a script that rouge_score deletes: letters, marks and digits that are neither Latin nor ASCII. The joiners
# (U+200C, U+200D) stand inside words of Indic scripts and Persian.
_WORD = regex.compile(r"(?V1)[[\p{L}\p{Nd}]--[\p{Latin}0-9]][[\p{L}\p{M}\p{Nd}\u200c\u200d]--[\p{Latin}0-9]]*")
# Scripts that put no spaces between words.
_UNSPACED = regex.compile(
    r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}\p{Javanese}\p{Balinese}ー]"
)

# A new line; a full stop of the Latin, Greek and Cyrillic alphabets before a space and a capital (or a letter of a
# script without capitals); a full stop of any other script (Unicode's Sentence_Break = STerm), with closing quotes.
_END = regex.compile(
    r"""(?V1)\n+
    |(?<=[.!?])["'\p{Pf}]?\s+(?=["'A-Z0-9]|[\p{Pi}„¿¡]*[\p{Lu}\p{Lt}\p{Lo}])
    |(?<=[[\p{SB=STerm}．]--[!?]]["'\p{Pf}\p{Pe}]*)(?!["'\p{Pf}\p{Pe}\p{SB=STerm}]|[．]|(?<=．)\p{Nd})\s*""",
    regex.VERBOSE,
)


class Tokenizer(tokenizers.Tokenizer):
    """The words of a text: those of `rouge_score` for a-z and 0-9, and the words of all scripts it would delete.

    Where a script has no spaces between words (Chinese, Japanese, Thai, ...) every character, with its marks, is a
    word. Latin letters with accents separate words, as in `rouge_score`, so that scores of English text are the
    field's own.
    """

    def __init__(self, use_stemmer: bool):
        self.latin = tokenizers.DefaultTokenizer(use_stemmer)

    def tokenize(self, text: str) -> list[str]:
        found, begin = [], 0
        for word in _WORD.finditer(text):
            found += self.latin.tokenize(text[begin : word.start()]) + _split(word.group())
            begin = word.end()
        return found + self.latin.tokenize(text[begin:])


def _split(word: str) -> list[str]:
    """A word of another script in Unicode's normal form NFKC, split into characters where the script has no spaces."""
    word = unicodedata.normalize("NFKC", word).lower()
    return regex.findall(r"\X", word) if _UNSPACED.search(word) else [word]


class Rouge(evaluate.Metric):
    """Mean F-measures of predictions against references. For rougeLsum each line is one sentence."""

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="ROUGE", citation="", features=datasets.Features({"predictions": text, "references": text})
        )

    def _compute(self, predictions, references, use_stemmer):
        scorer = rouge_scorer.RougeScorer(KINDS, tokenizer=Tokenizer(use_stemmer))
        scores = [scorer.score(reference, found) for reference, found in zip(references, predictions)]
        return {kind: sum(score[kind].fmeasure for score in scores) / len(scores) for kind in KINDS}


def rouge(predictions: list[str], references: list[str], stemmer: bool = True) -> dict[str, float]:
    """rouge1, rouge2, rougeL, rougeLsum; words are stemmed (Porter) unless told otherwise, as the field does.

    Raises UserError where a reference has no word.
    """
    check(references)
    lines = ["\n".join(sentences(text)) for text in predictions], ["\n".join(sentences(text)) for text in references]
    return Rouge(keep_in_memory=True).compute(predictions=lines[0], references=lines[1], use_stemmer=stemmer)


def check(references: list[str]) -> None:
    """Raise UserError at the first reference without a word: every summary would score 0 against it."""
    words = Tokenizer(use_stemmer=False)
    for row, text in enumerate(references):
        if not words.tokenize(text):
            raise UserError(f"articles.source: summary {row} of the test split has no word for ROUGE: {text[:40]!r}")


def lead(text: str, count: int = 3) -> str:
    """The first sentences of an article (lead-3): a strong baseline on news."""
    return " ".join(sentences(text)[:count])


def sentences(text: str) -> list[str]:
    """Sentences of a text; a new line always begins one.

    Thai, Lao and other scripts that do not mark the end of a sentence have one sentence a line.
    """
    return [sentence.strip() for sentence in _END.split(text.strip()) if sentence.strip()]
