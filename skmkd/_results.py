"""What a detector says of one image."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What a detector says of one image; `iter_results` describes the fields."""

    index: int
    path: str | None
    score: float
    decision: float
    p_value: float
    map: np.ndarray | None = field(repr=False)
    error: str | None

    @property
    def label(self) -> int:
        """+1 for a normal image, -1 for an anomaly and for an image without a score."""
        return 1 if self.decision >= 0 else -1
