"""ROUGE (Lin 2004) as a metric of `evaluate` that needs no hub: `rouge_score` does the counting.

`evaluate.load("rouge")` fetches its script from the hub and averages by a bootstrap that draws from numpy's global
state; this one is here already and takes plain means, so equal predictions have equal figures.
"""

import re

import datasets
import evaluate
from rouge_score import rouge_scorer

KINDS = ("rouge1", "rouge2", "rougeL", "rougeLsum")


class Rouge(evaluate.Metric):
    """Mean F-measures of predictions against references; rougeLsum takes lines for sentences."""

    def _info(self):
        text = datasets.Value("string")
        return evaluate.MetricInfo(
            description="ROUGE", citation="", features=datasets.Features({"predictions": text, "references": text})
        )

    def _compute(self, predictions, references, use_stemmer):
        scorer = rouge_scorer.RougeScorer(KINDS, use_stemmer=use_stemmer)
        scores = [scorer.score(reference, found) for reference, found in zip(references, predictions)]
        return {kind: sum(score[kind].fmeasure for score in scores) / len(scores) for kind in KINDS}


def rouge(predictions: list[str], references: list[str], stemmer: bool = True) -> dict[str, float]:
    """rouge1, rouge2, rougeL, rougeLsum; words are stemmed (Porter) unless told otherwise, as the field does."""
    lines = ["\n".join(sentences(text)) for text in predictions], ["\n".join(sentences(text)) for text in references]
    return Rouge(keep_in_memory=True).compute(predictions=lines[0], references=lines[1], use_stemmer=stemmer)


def lead(text: str, count: int = 3) -> str:
    """The first sentences of an article: the baseline that is hard to beat on news."""
    return " ".join(sentences(text)[:count])


def sentences(text: str) -> list[str]:
    """Sentences of a text; a new line always begins one."""
    found = re.split(r"\n+|(?<=[.!?])[\"']?\s+(?=[\"'A-Z0-9])", text.strip())
    return [sentence.strip() for sentence in found if sentence.strip()]
