"""Networks of libraries, fed with the normalised images that their weights expect."""

import inspect
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class Normalized(nn.Module):
    """Network that gets `(image - mean) / std` for an image in [0, 1].

    Mean and std are buffers in the state dict: what a checkpoint was trained with comes with it,
    and nothing needs to be looked up or downloaded to open it.

    Args:
        net: From normalised images (N, 3, H, W) to logits (N, C, H, W).
        mean: One value a channel, for images in [0, 1].
        std: One value a channel.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, net: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.net = net
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1))

    @property
    def encoder(self) -> nn.Module:
        """Encoder of the network, whose learning rate `task.encoder_lr_factor` divides."""
        return self.net.encoder  # type: ignore[return-value]

    def forward(self, image: Tensor) -> Tensor:
        """From images (N, 3, H, W) in [0, 1] to logits (N, C, H, W)."""
        return self.net((image - self.mean) / self.std)


class SMPNetwork(Normalized):
    """Network of segmentation_models.pytorch (SMP), with the normalisation of its encoder.

    Args:
        arch: As in SMP's `create_model`: 'unet', 'unetplusplus', 'fpn', 'deeplabv3plus', ...
        encoder_name: SMP's name of the encoder, such as 'resnet34' or timm's 'tu-convnext_tiny'.
        encoder_weights: 'imagenet' or another name of SMP's for `load_weights`; None to train
            from scratch, on images as they are. The constructor downloads nothing.
        classes: Channels of the logits; 1 for lesion against background.
        options: Further arguments of the architecture, such as `decoder_channels`. Those that SMP
            would pass on to timm are refused, because some of them read files.

    Raises:
        ValueError: SMP is not installed, or an argument is not one of its own.
    """

    def __init__(
        self,
        arch: str,
        encoder_name: str,
        encoder_weights: str | None = None,
        classes: int = 1,
        **options: Any,
    ) -> None:
        try:
            import segmentation_models_pytorch as smp
            import timm
        except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision for another torch
            remedy = "pip install 'seglab[smp]', and torchvision from where torch came from"
            raise ValueError(f"segmentation_models_pytorch: {error}; {remedy}") from error
        architectures = smp.MODEL_ARCHITECTURES_MAPPING
        if arch not in architectures:
            raise ValueError(f"arch={arch}: expected one of {', '.join(architectures)}")
        # Exact names, or 'tu-hf-hub:NAME' would download a stranger's model.
        is_timm = encoder_name.startswith("tu-") and timm.is_model(encoder_name[3:])
        if not is_timm and encoder_name not in smp.encoders.encoders:
            names = f"{', '.join(smp.encoders.encoders)}, or tu- and a name of timm's"
            raise ValueError(f"encoder_name={encoder_name}: expected {names}")
        # Activations come with loss and prediction; a second head would not be trained.
        known = {*inspect.signature(architectures[arch]).parameters}
        known -= {"activation", "aux_params", "kwargs"}
        for option in options.keys() - known:
            raise ValueError(f"{option}: expected one of {', '.join(sorted(known))}")
        create = partial(smp.create_model, arch, encoder_name, classes=classes, **options)
        super().__init__(create(encoder_weights=None), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
        self.create, self.encoder_name, self.weights = create, encoder_name, encoder_weights

    def load_weights(self) -> None:
        """Download the encoder's pretrained weights, with the mean and std that they expect."""
        if self.weights is None:
            return
        import segmentation_models_pytorch as smp

        try:
            encoder = self.create(encoder_weights=self.weights).encoder
            params = smp.encoders.get_preprocessing_params(self.encoder_name, self.weights)
        except Exception as error:  # the client of the Hugging Face Hub raises many kinds
            raise ValueError(
                f"encoder_weights={self.weights}: not found for {self.encoder_name}: {error}; "
                "download them once where there is a network, or train with encoder_weights=null"
            ) from error
        self.encoder.load_state_dict(encoder.state_dict())
        for buffer, values in ((self.mean, params["mean"]), (self.std, params["std"])):
            buffer.copy_(torch.tensor(values).view(-1, 1, 1) / params["input_range"][1])
