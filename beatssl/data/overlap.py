"""Recognise a recording that was read before by its signal, whatever it is called there.

Published copies differ in sampling rate and gain. After the store's cleaning, the 100 and the
500 Hz file of one PTB-XL record correlate with at least 0.988 (mean over leads; 488 records), two
different recordings with at most 0.84 (3,693 of PTB-XL, LUDB and eight Challenge sources), two
rows of one long recording with at most 0.32 (164 pairs). Both ends are left out, because PTB-XL's
100 Hz files ring in their last second. Rows are compared as they lie, so a copy that starts at
another moment is not found.
"""

from collections.abc import Callable

import numpy as np

ALIKE = 0.95  # mean correlation over the leads from which on two rows are one recording
LIKELY = 0.85  # the same between sketches: from here on the rows are read
SIZE = 64  # numbers in a sketch


class Known:
    """Rows to be found again: a few numbers of each are compared first, then the rows themselves.

    The numbers are random projections of the scaled row: cosines of projections are correlations
    of rows up to an error of about (1 - correlation^2) / 8 (Johnson and Lindenstrauss).

    Args:
        shape: (leads, time) of a row.
        read: number of an added row -> that row, any unit.
    """

    def __init__(self, shape: tuple[int, int], read: Callable[[int], np.ndarray]) -> None:
        self._read, self._count = read, 0
        size = SIZE, len(_scaled(np.zeros(shape)))
        self._projection = np.random.default_rng(0).standard_normal(size, np.float32)
        self._sketches = np.zeros((1024, SIZE), np.float32)  # with room to grow

    def add(self, row: np.ndarray) -> None:
        """Let `row` (leads, time) be found from now on; rows are numbered from 0."""
        if self._count == len(self._sketches):
            self._sketches = np.concatenate([self._sketches, np.zeros_like(self._sketches)])
        self._sketches[self._count] = self._sketch(row)
        self._count += 1

    def find(self, row: np.ndarray) -> int | None:
        """Number of the first row that holds the recording of `row` (leads, time)."""
        cosines = self._sketches[: self._count] @ self._sketch(row)
        likely = np.flatnonzero(cosines >= LIKELY)
        return next((int(k) for k in likely if alike(row, self._read(k))), None)

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
