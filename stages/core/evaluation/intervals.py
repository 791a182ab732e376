"""How good predicted labels are, as plain numbers."""

from collections.abc import Sequence

import numpy as np


def accuracy_interval(right: int, examples: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of an accuracy (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    from scipy.stats import binomtest

    interval = binomtest(right, examples).proportion_ci(confidence, method="wilson")
    return float(interval.low), float(interval.high)


def macro_f1(labels: Sequence[int], predicted: Sequence[int]) -> float:
    """The plain mean over labels of F1 = 2 TP / (2 TP + FP + FN); every label that occurs in either list counts."""
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    scores = []
    for label in np.union1d(labels, predicted):
        true, told = labels == label, predicted == label
        scores.append(2 * (true & told).sum() / (true.sum() + told.sum()))
    return float(np.mean(scores))


def scores(labels: Sequence[int], predicted: Sequence[int]) -> dict[str, float]:
    """accuracy with its 95% interval, macro F1, and the accuracy of always answering the commonest label."""
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    right = int((labels == predicted).sum())
    low, high = accuracy_interval(right, len(labels))
    return {
        "accuracy": right / len(labels),
        "accuracy_low": low,
        "accuracy_high": high,
        "macro_f1": macro_f1(labels, predicted),
        "majority": float(np.bincount(labels).max() / len(labels)),
        "examples": len(labels),
    }
