"""Small copies of the pictures that a run has seen, and what is found with them."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seglab.core.errors import InputError
from seglab.data.duplicates import THUMBNAIL
from seglab.data.images import read_image
from seglab.data.layouts import find_cases
from seglab.runs.records import open_run
from seglab.runs.thumbnails import find_trained_on, read_seen_cases, write_thumbnails


def small(image: np.ndarray) -> np.ndarray:
    grey = Image.fromarray(image).convert("L")
    return np.asarray(grey.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BILINEAR))


def test_a_run_keeps_the_pictures_of_train_and_val(run: Path, tiny_ph2: Path) -> None:
    split = json.loads((run / "splits.json").read_text())
    images = {case.id: read_image(case.image) for case in find_cases(tiny_ph2)}
    expected = [small(images[id]) for id in (*split["train"], *split["val"])]
    assert np.array_equal(np.load(run / "thumbnails.npy", allow_pickle=False), expected)
    opened = open_run(run)
    seen = read_seen_cases(opened)
    for part, pictures in (("train", expected), ("val", expected[len(split["train"]) :])):
        for id, picture in zip(split[part], pictures, strict=False):
            assert np.array_equal(seen[part][opened.sha256[id]], picture)
        assert len(seen[part]) == len(split[part])


def test_cases_are_found_by_file_or_picture(run: Path, tiny_ph2: Path) -> None:
    seen, random = open_run(run), np.random.default_rng(0)
    ids = seen.ids["train"] + seen.ids["val"]
    images = {case.id: read_image(case.image) for case in find_cases(tiny_ph2)}
    new = random.integers(0, 256, (40, 50, 3), np.uint8)
    mirrored = images[ids[3]][:, ::-1]
    thumbnails = np.stack([small(x) for x in (new, mirrored, images[seen.ids["test"][0]], new)])
    hashes = {"a": seen.sha256[ids[0]], "b": "mirrored", "c": "of test", "d": "new"}
    assert find_trained_on([seen], hashes, thumbnails) == ["a", "b"]
    seen.config["data"]["find_duplicates"] = False
    assert find_trained_on([seen], hashes, thumbnails) == ["a"]
    # Of several runs any one may have seen it.
    other = replace(
        seen,
        folder=run / "other",
        config={"data": {}},
        ids={"train": ["x"], "val": [], "test": []},
        sha256={"x": "of test"},
    )
    other.folder.mkdir()
    write_thumbnails(other.paths, small(new)[None])
    assert find_trained_on([other], hashes, thumbnails) == ["a", "c", "d"]
    assert find_trained_on([seen, other], hashes, thumbnails) == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "content",
    [
        np.zeros((3, 32, 32), np.uint8),
        np.zeros((18, 32, 32), np.float32),
        np.zeros((18, 32), np.uint8),
        np.zeros((18, 16, 32), np.uint8),
        np.array([{}] * 18),
    ],
)
def test_other_arrays_are_refused(content: np.ndarray, run: Path) -> None:
    np.save(run / "thumbnails.npy", content)
    with pytest.raises(InputError, match=rf"\A{run}/thumbnails.npy: damaged "):
        read_seen_cases(open_run(run))


def test_an_array_larger_than_its_file_takes_no_memory(run: Path) -> None:
    with (run / "thumbnails.npy").open("wb") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (18, 2**20, 2**20)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(InputError, match=r"thumbnails.npy: damaged"):
        read_seen_cases(open_run(run))
