"""Networks of libraries: `Normalized` by hand, SMP's and MONAI's by the libraries themselves."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers.tiny import REPO, Ended
from torch import nn

from seglab.networks import EncoderUNet, Normalized, SMPNetwork, UNet

MEAN, STD = [0.5, 0.25, 0.0], [0.5, 0.125, 2.0]
# (x - MEAN) / STD of a grey of 0.75, by hand.
GREY = torch.tensor([0.5, 4.0, 0.375]).view(1, 3, 1, 1).expand(2, 3, 8, 6)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_the_network_gets_the_normalised_image(layout: torch.memory_format) -> None:
    image = torch.full((2, 3, 8, 6), 0.75).to(memory_format=layout)
    x = Normalized(nn.Identity(), MEAN, STD)(image)
    assert x.equal(GREY)
    assert x.is_contiguous(memory_format=layout)
    with torch.autocast("cpu", torch.bfloat16):
        assert Normalized(nn.Identity(), MEAN, STD)(image).equal(GREY)


def test_a_checkpoint_holds_mean_and_std() -> None:
    state = Normalized(UNet(width=1), MEAN, STD).state_dict()
    assert {key for key in state if not key.startswith("net.")} == {"mean", "std"}
    net = Normalized(UNet(width=1), [0.0] * 3, [1.0] * 3)
    net.load_state_dict(state)
    assert net.mean.flatten().tolist() == MEAN
    assert net.std.flatten().tolist() == STD
    assert not {"mean", "std"} & {name for name, _ in net.named_parameters()}


def test_the_encoder_is_the_networks() -> None:
    net = EncoderUNet("resnet18", (8, 6, 5, 4))
    assert Normalized(net, MEAN, STD).encoder is net.encoder
    assert not hasattr(Normalized(nn.Conv2d(3, 1, 1), MEAN, STD), "encoder")


@pytest.fixture
def train(
    script: Callable[..., Ended], tiny_ph2: Path, cache_dir: Path, tmp_path: Path
) -> Callable[..., Path]:
    """Trains for an epoch and returns the run directory: train(*overrides)."""
    run = tmp_path / "run"
    small = ["data.size=32", "trainer.max_epochs=1", "logger=none", "data.batch_size=8"]
    where = [f"data.root={tiny_ph2}", f"data.cache_dir={cache_dir}", f"hydra.run.dir={run}"]

    def train(*overrides: str) -> Path:
        ended = script("train", *overrides, *small, *where)
        assert ended.code == 0, ended.err
        return run

    return train


WRAPPED = f"""
_target_: seglab.networks.Normalized
net:
  _target_: seglab.networks.UNet
  width: 4
  depth: 2
mean: {MEAN}
std: {STD}
"""
(MONAI,) = re.findall(
    r"```yaml\n(_target_: monai.*?)```",
    (REPO / "seglab" / "networks" / "README.md").read_text("utf-8"),
    re.DOTALL,
)


@pytest.mark.parametrize("library", ["seglab", "monai"])
def test_a_file_of_yaml_trains_and_exports(
    library: str, train: Callable[..., Path], script: Callable[..., Ended], tmp_path: Path
) -> None:
    for needed in ("onnxruntime", library):
        pytest.importorskip(needed)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    file = tmp_path / "conf" / "model" / "mine.yaml"
    file.write_text(WRAPPED if library == "seglab" else MONAI)
    options = ["task.encoder_lr_factor=0.5"] if library == "seglab" else []
    run = train("--config-dir", str(tmp_path / "conf"), "model=mine", *options)
    trust = ["--trust", "monai.networks.nets.UNet"] if library == "monai" else []
    if trust:
        assert " ".join(trust) in script("export", run).err
    ended = script("export", run, *trust)
    assert ended.code == 0, ended.err
    assert "probabilities differ by" in ended.err


# segmentation_models.pytorch: a stand-in, and the library where it is installed.


class StandIn(nn.Module):
    """A network with the arguments of SMP's that counts how often it loads weights."""

    downloads = 0

    def __init__(
        self,
        encoder_name: str,
        encoder_weights: str | None = "imagenet",
        classes: int = 1,
        decoder_channels: tuple[int, ...] = (4,),
        activation: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, decoder_channels[0], 3, padding=1)
        self.head = nn.Conv2d(decoder_channels[0], classes, 1)
        if encoder_weights is not None:
            StandIn.downloads += 1
            nn.init.constant_(self.encoder.weight, 0.25)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(image))


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> type[StandIn]:
    smp, timm = ModuleType("segmentation_models_pytorch"), ModuleType("timm")
    params = {"mean": [127.5, 51.0, 0.0], "std": [51.0, 51.0, 255.0], "input_range": [0, 255]}
    smp.MODEL_ARCHITECTURES_MAPPING = {"unet": StandIn}
    smp.create_model = lambda arch, encoder_name, **options: StandIn(encoder_name, **options)
    smp.encoders = SimpleNamespace(
        encoders={"resnet34": {}},
        get_preprocessing_params=lambda name, weights: params,
    )
    timm.is_model = lambda name: name == "convnext_tiny"
    for module in (smp, timm):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(StandIn, "downloads", 0)
    return StandIn


def test_pretrained_weights_come_with_their_mean_and_std(stand_in: type[StandIn]) -> None:
    net = SMPNetwork("unet", "resnet34", "imagenet", decoder_channels=[5])
    assert stand_in.downloads == 0
    net.load_weights()
    assert stand_in.downloads == 1
    assert torch.equal(net.encoder.weight, torch.full((5, 3, 3, 3), 0.25))
    torch.testing.assert_close(net.mean.flatten(), torch.tensor([0.5, 0.2, 0.0]))
    torch.testing.assert_close(net.std.flatten(), torch.tensor([0.2, 0.2, 1.0]))
    scratch = SMPNetwork("unet", "tu-convnext_tiny")
    scratch.load_weights()
    assert stand_in.downloads == 1
    assert scratch.mean.tolist() == [[[0.0]]] * 3
    assert scratch.std.tolist() == [[[1.0]]] * 3


def test_a_trained_run_opens_without_download_and_without_trust(
    stand_in: type[StandIn],
    train: Callable[..., Path],
    script: Callable[..., Ended],
    pictures: Path,
    tmp_path: Path,
) -> None:
    run = train("model=smp_unet")
    assert stand_in.downloads == 1
    ended = script("predict", run, pictures, "--out", tmp_path / "masks")
    assert ended.code == 0, ended.err
    assert stand_in.downloads == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arch": "unet++"}, r"^arch=unet\+\+: expected one of unet$"),
        (
            {"encoder_name": "convnext_tiny"},
            "^encoder_name=convnext_tiny: expected resnet34, or tu- and ",
        ),
        # Would download a stranger's model, and read any file.
        ({"encoder_name": "tu-hf-hub:someone/model"}, "^encoder_name=tu-hf-hub:someone/model: "),
        ({"checkpoint_path": "x"}, "^checkpoint_path: expected one of classes, decoder_channels, "),
        ({"activation": "sigmoid"}, "^activation: expected one of classes, "),
        ({"kwargs": {"checkpoint_path": "x"}}, "^kwargs: expected one of "),
    ],
)
@pytest.mark.usefixtures("stand_in")
def test_other_arguments_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SMPNetwork(**{"arch": "unet", "encoder_name": "resnet34"} | arguments)


def test_what_is_missing_is_named(stand_in: type[StandIn], monkeypatch: pytest.MonkeyPatch) -> None:
    smp: Any = sys.modules["segmentation_models_pytorch"]
    net = SMPNetwork("unet", "resnet34", "imagenet")

    def fail(*arguments: str) -> None:
        raise OSError("no network")

    smp.encoders.get_preprocessing_params = fail
    with pytest.raises(ValueError, match=r"^encoder_weights=imagenet: .*resnet34: no network; "):
        net.load_weights()
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(ValueError, match=r"^segmentation_models_pytorch: .*\[smp\]'"):
        SMPNetwork("unet", "resnet34")


@pytest.fixture
def smp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The library, which finds the files of encoder weights in a folder."""
    try:
        import segmentation_models_pytorch as smp
    except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision for another torch
        pytest.skip(f"segmentation_models_pytorch cannot be imported: {error}")
    from safetensors.torch import save_file

    state = smp.encoders.get_encoder("resnet18").state_dict()
    save_file(state, tmp_path / "model.safetensors")
    params = {"mean": [0.4, 0.5, 0.6], "std": [0.1, 0.2, 0.3], "input_range": [0, 1]}
    (tmp_path / "config.json").write_text(json.dumps(params))
    monkeypatch.setattr(
        smp.encoders, "hf_hub_download", lambda _, filename, revision: str(tmp_path / filename)
    )
    return smp


def test_smp_agrees_with_its_own_preprocessing(smp: Any) -> None:
    net = SMPNetwork("unet", "resnet18", "imagenet", classes=2)
    net.load_weights()
    theirs = smp.Unet("resnet18", encoder_weights="imagenet", classes=2)
    theirs.decoder.load_state_dict(net.net.decoder.state_dict())
    theirs.segmentation_head.load_state_dict(net.net.segmentation_head.state_dict())
    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)
    prepared = smp.encoders.get_preprocessing_fn("resnet18")(pixels)
    image, expected = (torch.tensor(x).permute(2, 0, 1)[None] for x in (pixels, prepared))
    with torch.no_grad():
        ours = net.eval()(image / 255)
        torch.testing.assert_close(ours, theirs.eval()(expected.float()), rtol=1e-4, atol=1e-4)
