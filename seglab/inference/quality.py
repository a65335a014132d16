"""How far a predicted mask can be trusted, without an annotation of its image. No torch."""

from typing import Any, NamedTuple

REVIEW_BELOW = 0.8  # a mask whose Dice may be lower is to be reviewed
NOT_VALID = "not valid here"


class Quality(NamedTuple):
    """How far a mask can be trusted; without a calibration, `confidence` alone is known."""

    confidence: float  # Soft Dice Confidence, of several classes the mean over all but background
    # See `Calibration`; None for an image that is not familiar, too.
    expected_dice: float | None = None
    lower_bound: float | None = None
    familiar: bool | None = None  # whether the image looks like the training images

    def needs_review(self, below: float = REVIEW_BELOW) -> bool | None:
        """Whether the Dice may be lower than `below`, or is unknown; None without a calibration."""
        if self.familiar is None:
            return None
        return self.lower_bound is None or self.lower_bound < below

    def to_row(self, review_below: float) -> dict[str, Any]:
        """Return the columns of quality.csv, JSON values."""
        row = self._asdict()
        if self.familiar is False:
            row |= {"expected_dice": NOT_VALID, "lower_bound": NOT_VALID}
        return row | {"review": self.needs_review(review_below)}
