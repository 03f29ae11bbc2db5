"""Recognise a recording of PTB-XL in another data set by its signal, whatever it is called there.

Published copies differ in sampling rate and gain. After the store's cleaning, the 100 and the
500 Hz file of one PTB-XL record correlate with at least 0.988 (mean over leads; 488 records), two
different records with at most 0.79 (2,272 records). Both ends are left out, because PTB-XL's 100 Hz
files ring in their last second. Rows are compared as they lie, so a copy that starts at another
moment is not found.
"""

from __future__ import annotations

import numpy as np

ALIKE = 0.95  # mean correlation over the leads from which on two rows are one recording
SIZE = 64  # numbers in a sketch


class Known:
    """Rows to be found again: a few numbers of each are compared first, then the rows themselves.

    The numbers are random projections of the scaled row: cosines of projections are correlations
    of rows up to an error of about (1 - correlation^2) / 8 (Johnson and Lindenstrauss).

    Args:
        length: samples of a row.
    """

    def __init__(self, length: int) -> None:
        self.middle = slice(length // 10, length * 8 // 10)
        self.names: list[str] = []
        self._sketches = np.zeros((0, SIZE), np.float32)
        self._new: list[np.ndarray] = []
        self._projection: np.ndarray | None = None

    def add(self, name: str, row: np.ndarray) -> None:
        """Remember a row (12, time) of any unit; rows are numbered in the order of the calls."""
        self.names.append(name)
        self._new.append(self._sketch(self._scaled(row)))

    def nearest(self, row: np.ndarray) -> int:
        """Number of the remembered row that is most like `row` (12, time); there must be one."""
        if self._new:
            self._sketches, self._new = np.vstack([self._sketches, *self._new]), []
        return int(np.argmax(self._sketches @ self._sketch(self._scaled(row))))

    def alike(self, first: np.ndarray, second: np.ndarray) -> bool:
        """Whether two rows (12, time) hold one recording."""
        return float((self._scaled(first) * self._scaled(second)).sum()) >= ALIKE

    def _scaled(self, row: np.ndarray) -> np.ndarray:
        """The middle of a row, flat, each lead centred and of the same norm, unit norm in all."""
        part = row[:, self.middle].astype(np.float32)
        part -= part.mean(axis=1, keepdims=True)
        part /= np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-9)
        return part.ravel() / np.float32(np.sqrt(len(row)))

    def _sketch(self, scaled: np.ndarray) -> np.ndarray:
        if self._projection is None:
            generator = np.random.default_rng(0)
            self._projection = generator.standard_normal((SIZE, len(scaled)), np.float32)
        sketch = self._projection @ scaled
        return sketch / np.linalg.norm(sketch).clip(1e-9)
