"""Groups of consecutive layers, which share one FFN or become one layer."""

from collections.abc import Callable, Iterable, Mapping, Sequence

# The search under a budget starts at the smallest number of saved FFNs that meets it and tries this many numbers. A
# layout that saves more than the budget asks for spends the difference on ranks.
SPARE = 5

Window = tuple[int, int]  # the first and the last layer


def stages(depth: int, borders: Sequence[int] = ()) -> list[range]:
    """The layers of each stage. borders: the first layer of every stage but the first."""
    edges = [0, *borders, depth]
    return [range(first, end) for first, end in zip(edges, edges[1:])]


def blocks(depth: int, size: int, borders: Sequence[int] = ()) -> list[list[int]]:
    """Consecutive blocks of `size` layers from layer 0; the last is shorter if `size` does not divide `depth`.

    A last block of one layer is left out. In a model with stages (see `stages`) blocks are cut at their ends, and
    stages of fewer than `size` layers have none.
    """
    found = [stage for stage in stages(depth, borders) if len(stage) >= size or not borders]
    groups = [list(stage[start : start + size]) for stage in found for start in range(0, len(stage), size)]
    return [group for group in groups if len(group) > 1]


def contiguous(
    depth: int, sizes: Sequence[int], excluded: Sequence[int] = (), borders: Sequence[int] = ()
) -> list[Window]:
    """Every window of consecutive layers, of one stage, with a size of `sizes` and none of the `excluded` layers."""
    windows = [(first, first + size - 1) for size in sorted(sizes) for first in range(depth - size + 1)]
    inside = [window for window in windows if not any(window[0] < border <= window[1] for border in borders)]
    return [window for window in inside if not any(window[0] <= layer <= window[1] for layer in excluded)]


def most(windows: Iterable[Window]) -> int:
    """How many of the windows can be chosen together at most, if no two may overlap."""
    count, end = 0, -1
    for first, last in sorted(windows, key=lambda window: window[1]):
        if first > end:
            count, end = count + 1, last
    return count


def length(window: Window) -> int:
    """The number of FFNs that a window saves: all but one."""
    return window[1] - window[0]


def savings(windows: Iterable[Window], depth: int, weight: Callable[[Window], int] = length) -> set[int]:
    """What disjoint windows, chosen from these, can save: numbers of FFNs, or sums of their `weight`."""
    every, within = list(windows), [{0}]
    for end in range(depth):
        longer = {gone + weight((first, last)) for first, last in every if last == end for gone in within[first]}
        within.append(within[-1] | longer)
    return within[-1] - {0}


def layers(window: Window) -> list[int]:
    """The layers of a window."""
    return list(range(window[0], window[1] + 1))


def saved(layout: Sequence[Window]) -> int:
    """The number of FFNs that disjoint windows save: all but one of each window."""
    return sum(last - first for first, last in layout)


def layouts(
    costs: Mapping[Window, float], depth: int, keep: int, weight: Callable[[Window], int] = length
) -> list[tuple[float, tuple[Window, ...]]]:
    """(summed cost, disjoint windows), cheapest first.

    For every number of windows and every number of saved layers, or sum of `weight`, the `keep` cheapest. Exact, by
    dynamic programming over the layers.
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
                found.setdefault((count + 1, gone + weight(window)), []).extend(longer)
        best.append({key: sorted(ways)[:keep] for key, ways in found.items()})
    return sorted(way for key, ways in best[depth].items() if key != (0, 0) for way in ways)
