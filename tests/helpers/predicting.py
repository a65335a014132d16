"""Cases and predictors whose answers are known, and scikit-image's way to clean masks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import skimage.measure
from helpers.tiny import write_ph2_case

from seglab.data.cases import Case
from seglab.data.layouts import find_cases
from seglab.inference.postprocessing import Prediction, Predictor


def write_cases(folder: Path, masks: Sequence[np.ndarray]) -> list[Case]:
    """Write a case for each mask, bool (H, W); all pixels of its image are the mask's index."""
    for i, mask in enumerate(masks):
        image = np.full((*mask.shape, 3), i, np.uint8)
        write_ph2_case(folder, f"IMD{i:03}", image, mask)
    return find_cases(folder)


def make_lookup_predictor(probs: Sequence[np.ndarray]) -> Predictor:
    """Make a predictor for `write_cases` that answers with these probabilities, (H, W) each."""

    def predict(image: np.ndarray) -> Prediction:
        return Prediction(lambda: probs[image[0, 0, 0]][None].astype(np.float32))

    return predict


def clean_by_skimage(mask: np.ndarray, largest_component: bool, fill_holes: bool) -> np.ndarray:
    if largest_component and mask.any():
        regions = skimage.measure.label(mask, connectivity=2)
        areas = [region.area for region in skimage.measure.regionprops(regions)]
        mask = regions == 1 + int(np.argmax(areas))
    if fill_holes:
        outside = skimage.measure.label(np.pad(~mask, 1, constant_values=True), connectivity=1)
        mask = (outside != outside[0, 0])[1:-1, 1:-1]
    return mask
