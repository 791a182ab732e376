"""How good predicted labels are, as plain numbers."""

import math
from collections.abc import Sequence

import numpy as np

Z = 1.959963984540054  # the standard normal distribution has 95% of its mass within this of zero


def accuracy_interval(right: int, examples: int) -> tuple[float, float]:
    """Wilson's 95% score interval of an accuracy (Wilson 1927, doi:10.1080/01621459.1927.10502953)."""
    share, denominator = right / examples, 2 * (examples + Z**2)
    centre = (2 * examples * share + Z**2) / denominator
    reach = Z / denominator * math.sqrt(4 * examples * share * (1 - share) + Z**2)
    return 0.0 if right == 0 else centre - reach, 1.0 if right == examples else centre + reach


def macro_f1(labels: Sequence[int], predicted: Sequence[int]) -> float:
    """The mean over labels of F1 = 2 TP / (2 TP + FP + FN), over every label that occurs in either list."""
    labels, predicted = np.asarray(labels), np.asarray(predicted)
    scores = []
    for label in np.union1d(labels, predicted):
        true, found = labels == label, predicted == label
        scores.append(2 * (true & found).sum() / (true.sum() + found.sum()))
    return float(np.mean(scores))


def scores(labels: Sequence[int], predicted: Sequence[int]) -> dict[str, float]:
    """Accuracy with its 95% interval, macro F1, the accuracy of always predicting the most frequent label, and n."""
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
