"""Opening networks, and ensembles of them."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.spoil import change_checkpoint, put_at
from helpers.tiny import Ended, written

from seglab.core.errors import InputError
from seglab.data.images import read_image
from seglab.inference.image_files import find_images
from seglab.inference.models import ensemble, load_model
from seglab.inference.postprocessing import clean
from seglab.inference.predict import predict
from seglab.schema import DEFAULT_INFERENCE


def test_an_ensemble_is_the_mean(
    predicting_runs: tuple[Path, Path], pictures: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    on, off = predicting_runs
    ended = script("predict", on, pictures, "--with", off, "--out", tmp_path / "out")
    (line,) = ended.err.splitlines()
    assert ended.code == 1 and "has another post-processing than" in line
    same = {"largest_component": True, "fill_holes": False}
    predict([on, off], [pictures], tmp_path / "out", ["probabilities"], **same)
    members = [load_model(run, **same) for run in predicting_runs]
    both = ensemble(members)
    assert both.threshold == sum(member.threshold for member in members) / 2
    for name, path in find_images([pictures]).items():
        image = read_image(path)
        first, second = (member.probabilities(image)[0].astype(float) for member in members)
        mean = (first + second) / 2
        files = written(tmp_path / "out")
        assert abs(files[f"probabilities/{name}.png"] / 65535 - mean).max() < 1e-5
        expected = clean(mean > both.threshold, **same)
        assert np.count_nonzero((files[f"masks/{name}.png"] > 0) ^ expected) <= 1
        assert np.array_equal(both.predict(path), files[f"masks/{name}.png"] > 0)


@pytest.mark.parametrize("section", [{}, {"new": True}, {"tta": 1}, None])
def test_keys_of_inference_may_be_missing_but_not_wrong(
    section: dict | None, predicting_runs: tuple[Path, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(predicting_runs[0], run)
    change_checkpoint(run, put_at("seglab.config.inference", section))
    if section == {}:
        assert load_model(run).inference == DEFAULT_INFERENCE
    else:
        with pytest.raises(InputError, match=r"best\.ckpt: .*inference"):
            load_model(run)


def test_a_checkpoint_alone_is_enough(
    predicting_runs: tuple[Path, Path], pictures: Path, script: Callable[..., Ended], tmp_path: Path
) -> None:
    alone = tmp_path / "alone.ckpt"
    shutil.copy(predicting_runs[0] / "checkpoints" / "best.ckpt", alone)
    for network, out in ((alone, "of-file"), (predicting_runs[0], "of-run")):
        ended = script("predict", network, pictures / "b", "--out", tmp_path / out)
        assert ended.code == 0, ended.err
    files = [written(tmp_path / out) for out in ("of-file", "of-run")]
    assert all(np.array_equal(files[0][name], files[1][name]) for name in files[1])
    for bad, said in (
        (tmp_path / "nowhere", "expected a run directory, which holds run.json, a checkpoint"),
        (tmp_path, "holds no run, no folder with a run.json"),
        (pictures / "a" / "one.png", "damaged (cut short, changed or not of seglab"),
    ):
        ended = script("predict", bad, pictures, "--out", tmp_path / "none")
        (line,) = ended.err.splitlines()
        assert ended.code == 1 and said in line
    assert not (tmp_path / "none").exists()
