"""Recognise a recording of PTB-XL in another data set by its signal, whatever it is called there.

Published copies differ in sampling rate and gain. After the store's cleaning, the 100 and the
500 Hz file of one PTB-XL record correlate with at least 0.988 (mean over leads; 488 records), two
different records with at most 0.79 (2,272 records). Both ends are left out, because PTB-XL's 100 Hz
files ring in their last second. Rows are compared as they lie, so a copy that starts at another
moment is not found.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

ALIKE = 0.95  # mean correlation over the leads from which on two rows are one recording
SIZE = 64  # numbers in a sketch


class Known:
    """Rows to be found again: a few numbers of each are compared first, then the rows themselves.

    The numbers are random projections of the scaled row: cosines of projections are correlations
    of rows up to an error of about (1 - correlation^2) / 8 (Johnson and Lindenstrauss).

    Args:
        rows: (n, 12, time), any unit; read again when a row is looked for.
        names: of the rows.
    """

    def __init__(self, rows: np.ndarray, names: Sequence[str]) -> None:
        self.rows, self.names = rows, names
        size = SIZE, len(_scaled(np.zeros(rows.shape[1:])))
        self._projection = np.random.default_rng(0).standard_normal(size, np.float32)
        self._sketches = np.array([self._sketch(row) for row in rows])

    def nearest(self, row: np.ndarray) -> int:
        """Number of the row that is most like `row` (12, time); there must be one."""
        return int(np.argmax(self._sketches @ self._sketch(row)))

    def same(self, row: np.ndarray) -> str:
        """Name of the row that holds the recording of `row` (12, time), or an empty text."""
        k = self.nearest(row) if len(self.rows) else None
        return self.names[k] if k is not None and alike(row, self.rows[k]) else ""

    def _sketch(self, row: np.ndarray) -> np.ndarray:
        sketch = self._projection @ _scaled(row)
        return sketch / np.linalg.norm(sketch).clip(1e-9)


def alike(first: np.ndarray, second: np.ndarray) -> bool:
    """Whether two rows (12, time) hold one recording."""
    return float((_scaled(first) * _scaled(second)).sum()) >= ALIKE


def _scaled(row: np.ndarray) -> np.ndarray:
    """The middle of a row, flat, each lead centred and of the same norm, unit norm in all."""
    time = row.shape[1]
    part = row[:, time // 10 : time * 8 // 10].astype(np.float32)
    part -= part.mean(axis=1, keepdims=True)
    part /= np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-9)
    return part.ravel() / np.float32(np.sqrt(len(row)))
