"""The losses behind a perplexity, kept so that two models can be compared answer by answer."""

from pathlib import Path

import numpy as np

from stages.core.process.artifacts import parquet_writer


def keep(path: Path, before: np.ndarray, after: np.ndarray, block: int) -> None:
    """Write a parquet table, a row for every answer in order: block, before, after (losses in nats, float32).

    block: how many answers in a row are one draw of the test split; the column numbers these draws from 0.
    """
    import pyarrow as pa

    columns = {
        "block": pa.array(np.arange(len(after), dtype=np.int32) // block),
        "before": pa.array(before.astype(np.float32)),
        "after": pa.array(after.astype(np.float32)),
    }
    table = pa.table(columns)
    with parquet_writer(path, table.schema) as writer:
        writer.write_table(table)
