"""Progress of long work, on standard error."""

import sys
from collections.abc import Iterable
from typing import Any


def progress(items: Iterable, what: str, **options: Any) -> Iterable:
    """`items` behind a progress bar on standard error that says what is being done."""
    from tqdm import tqdm

    return tqdm(items, desc=what, file=sys.stderr, dynamic_ncols=True, mininterval=0.5, **options)
