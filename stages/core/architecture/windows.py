"""Groups of consecutive layers, which share one FFN or become one layer."""

from collections.abc import Iterable, Mapping, Sequence

# The search under a budget starts at the smallest number of saved FFNs that meets it and tries this many numbers. A
# layout that saves more than the budget asks for spends the difference on ranks.
SPARE = 5

Window = tuple[int, int]  # the first and the last layer


def blocks(depth: int, size: int) -> list[list[int]]:
    """Consecutive blocks of `size` layers from layer 0; the last is shorter if `size` does not divide `depth`.

    A last block of one layer is left out.
    """
    groups = [list(range(start, min(start + size, depth))) for start in range(0, depth, size)]
    return [group for group in groups if len(group) > 1]


def contiguous(depth: int, sizes: Sequence[int], excluded: Sequence[int] = ()) -> list[Window]:
    """Every window of consecutive layers with a size of `sizes` that contains none of the `excluded` layers."""
    windows = [(first, first + size - 1) for size in sorted(sizes) for first in range(depth - size + 1)]
    return [window for window in windows if not any(window[0] <= layer <= window[1] for layer in excluded)]


def most(windows: Iterable[Window]) -> int:
    """How many of the windows can be chosen together at most, if no two may overlap."""
    count, end = 0, -1
    for first, last in sorted(windows, key=lambda window: window[1]):
        if first > end:
            count, end = count + 1, last
    return count


def savings(windows: Iterable[Window], depth: int) -> set[int]:
    """The numbers of FFNs that disjoint windows, chosen from these, can save."""
    every, within = list(windows), [{0}]
    for end in range(depth):
        longer = {gone + last - first for first, last in every if last == end for gone in within[first]}
        within.append(within[-1] | longer)
    return within[-1] - {0}


def layers(window: Window) -> list[int]:
    """The layers of a window."""
    return list(range(window[0], window[1] + 1))


def saved(layout: Sequence[Window]) -> int:
    """The number of FFNs that disjoint windows save: all but one of each window."""
    return sum(last - first for first, last in layout)


def layouts(costs: Mapping[Window, float], depth: int, keep: int) -> list[tuple[float, tuple[Window, ...]]]:
    """(summed cost, disjoint windows), cheapest first.

    For every number of windows and every number of saved layers, the `keep` cheapest. Exact, by dynamic programming
    over the layers.
    """
    ending: dict[int, list[Window]] = {}
    for window in costs:
        ending.setdefault(window[1] + 1, []).append(window)
    # best[n]: (windows, saved layers) -> the cheapest ways within the first n layers.
    best: list[dict[tuple[int, int], list[tuple[float, tuple[Window, ...]]]]] = [{(0, 0): [(0.0, ())]}]
    for end in range(1, depth + 1):
        found = {key: list(ways) for key, ways in best[end - 1].items()}
        for window in ending.get(end, []):
            for (count, gone), ways in best[window[0]].items():
                longer = [(cost + costs[window], (*layout, window)) for cost, layout in ways]
                found.setdefault((count + 1, gone + window[1] - window[0]), []).extend(longer)
        best.append({key: sorted(ways)[:keep] for key, ways in found.items()})
    return sorted(way for key, ways in best[depth].items() if key != (0, 0) for way in ways)
