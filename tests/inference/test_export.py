"""export.py: one exported file, and what is held against it."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.tiny import ONE_THREAD, REPO, Ended, written
from PIL import Image

from seglab.data.images import read_image
from seglab.inference.image_files import find_images
from seglab.inference.models import load_model
from seglab.inference.onnx_predictor import make_exported_predictor
from seglab.inference.postprocessing import measure_confidence
from seglab.schema import DEFAULT_INFERENCE


@pytest.fixture(scope="module", autouse=True)
def onnx() -> None:
    pytest.importorskip("onnxruntime")


@pytest.fixture
def exported(predicting_runs: tuple[Path, Path], script: Callable[..., Ended]) -> Path:
    file = predicting_runs[0] / "network.onnx"
    if not file.exists():
        ended = script("export", predicting_runs[0])
        assert ended.code == 0, ended.err
        assert "2 images: probabilities differ by" in ended.err
    return file


def test_it_predicts_without_torch_what_the_checkpoint_does(
    exported: Path,
    predicting_runs: tuple[Path, Path],
    pictures: Path,
    script: Callable[..., Ended],
    tmp_path: Path,
) -> None:
    (tmp_path / "torch.py").write_text("raise RuntimeError('torch was imported')")
    options = [pictures, "--probabilities", "--instances", "--out"]
    done = subprocess.run(
        [sys.executable, REPO / "scripts" / "predict.py", exported, *options, tmp_path / "onnx"],
        env=os.environ | ONE_THREAD | {"PYTHONPATH": f"{tmp_path}:{REPO}"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert script("predict", predicting_runs[0], *options, tmp_path / "torch").code == 0
    ours, theirs = (written(tmp_path / out) for out in ("onnx", "torch"))
    for name, file in ours.items():
        difference = abs(file.astype(int) - theirs[name])
        if name.startswith("probabilities"):
            assert difference.max() <= 2 and np.ptp(file) > 1000
        else:
            assert np.count_nonzero(difference) <= 1


def test_confidence_is_that_of_the_checkpoint(
    exported: Path, predicting_runs: tuple[Path, Path], pictures: Path
) -> None:
    models = load_model(exported), load_model(predicting_runs[0])
    for file in find_images([pictures]).values():
        predictions = [model.predictor(read_image(file)) for model in models]
        ours, theirs = (
            measure_confidence(prediction, model.make_mask(prediction.prob), model.threshold)[0]
            for model, prediction in zip(models, predictions, strict=True)
        )
        assert 0 < theirs["confidence"] < 1 and 0 < theirs["view_dice"] < 1
        assert ours == pytest.approx(theirs, abs=1e-4)


def test_any_batch_and_size_pass_and_it_says_what_it_is(
    exported: Path, predicting_runs: tuple[Path, Path]
) -> None:
    import onnxruntime
    import torch

    from seglab.runs.checkpoints import load_network

    session = onnxruntime.InferenceSession(exported, providers=["CPUExecutionProvider"])
    net, stored = load_network(predicting_runs[0] / "checkpoints" / "best.ckpt")
    random = np.random.default_rng(0)
    for shape in ((1, 3, 32, 32), (3, 3, 64, 32), (2, 3, 4, 96)):
        image = random.integers(0, 256, shape, np.uint8)
        (prob,) = session.run(["probability"], {"image": image})
        with torch.no_grad():
            expected = torch.sigmoid(net(torch.from_numpy(image).float() / 255)).numpy()
        np.testing.assert_allclose(prob, expected, rtol=0, atol=1e-5)
    metadata = json.loads(session.get_modelmeta().custom_metadata_map["seglab"])
    assert metadata["size"] == 32 and metadata["classes"] == [*stored["classes"].names]
    assert metadata["threshold"] == stored["threshold"]
    assert metadata["inference"]["tta"] and metadata["run"] == predicting_runs[0].name


def test_a_file_in_the_way_and_bad_files_are_refused(
    exported: Path, predicting_runs: tuple[Path, Path], script: Callable[..., Ended], tmp_path: Path
) -> None:
    content = exported.read_bytes()
    ended = script("export", predicting_runs[0])
    assert ended.code == 1 and "is there already" in ended.err
    Image.new("RGB", (9, 9)).save(tmp_path / "picture.png")
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    for damaged in (content[:1000], flipped, content.replace(b"seglab", b"others"), b""):
        bad = tmp_path / "bad.onnx"
        bad.write_bytes(damaged)
        ended = script("predict", bad, tmp_path / "picture.png", "--out", tmp_path / "out")
        (line,) = ended.err.splitlines()
        assert ended.code == 1
        assert line.startswith(f"error: {bad}: is no network of seglab export, or damaged (")


def test_weights_in_another_file_are_not_read(
    exported: Path, script: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import onnx

    file, picture = tmp_path / "network.onnx", tmp_path / "picture.png"
    Image.new("RGB", (9, 9)).save(picture)
    onnx.save(onnx.load(exported), file, save_as_external_data=True, location="w", size_threshold=0)
    monkeypatch.chdir(tmp_path)  # where ONNX Runtime would look for them
    ended = script("predict", file, picture, "--out", tmp_path / "out")
    assert ended.code == 1 and "is no network of seglab export" in ended.err


@pytest.mark.parametrize(
    "body",
    [
        "image[:, :1].float() * 10",  # no probability
        "image[:, :1].float() / 0 * 0",  # not a number
        "image[:, :1, 1:].float() / 255",  # of another size
    ],
)
def test_networks_of_anyone_are_refused_in_one_line(
    body: str, script: Callable[..., Ended], tmp_path: Path
) -> None:
    import onnx
    import torch

    from seglab.inference.onnx_predictor import HASH_PLACEHOLDER, insert_hash

    class Hostile(torch.nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return eval(body, {"image": image})

    file = tmp_path / "hostile.onnx"
    image = torch.ones(1, 3, 32, 32, dtype=torch.uint8)
    names = {"input_names": ["image"], "output_names": ["probability"]}
    torch.onnx.export(Hostile(), (image,), str(file), dynamo=False, **names)
    model = onnx.load(file)
    metadata = {"size": 32, "threshold": 0.5, "classes": ["lesion"]}
    metadata["sha256"] = HASH_PLACEHOLDER.decode()
    metadata["inference"] = asdict(DEFAULT_INFERENCE)
    onnx.helper.set_model_props(model, {"seglab": json.dumps(metadata)})
    file.write_bytes(insert_hash(model.SerializeToString()))
    Image.new("RGB", (9, 9), "white").save(tmp_path / "picture.png")
    ended = script("predict", file, tmp_path / "picture.png", "--out", tmp_path / "out")
    assert ended.code == 1
    assert "gives no probabilities" in ended.err.splitlines()[0]
    assert not written(tmp_path / "out")


def test_one_that_predicts_something_else_is_not_written(
    predicting_runs: tuple[Path, Path],
    script: Callable[..., Ended],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    import torch

    monkeypatch.setattr("seglab.inference.export.probabilities", lambda x: torch.sigmoid(x) / 2)
    ended = script("export", predicting_runs[0], "--out", tmp_path / "x.onnx")
    assert ended.code == 1
    assert "predictions of ONNX Runtime differ from those of torch by up to 0." in ended.err
    assert list(tmp_path.iterdir()) == []


def test_probabilities_a_rounding_error_beyond_one_are_clipped() -> None:
    class Session:
        def run(self, outputs: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
            n, _, height, width = inputs["image"].shape
            return [np.full((n, 1, height, width), 1.0000001, np.float32)]

    session: Any = Session()
    predict = make_exported_predictor(session, 8, 1, tta=True)
    assert (predict(np.zeros((5, 6, 3), np.uint8)).prob == 1).all()
