"""List of the code that the config of an untrusted run may name."""

# The `_target_`s that a stored config may name, by the key where each may stand. Opening a run
# calls nothing else. Exact names: a prefix such as 'torch.' would allow torch.hub.load, which
# fetches and runs code. The key counts because synthetic_cases as the model would write images
# into any folder. The option --trust adds a name.
_OPTIM = "torch.optim"
ALLOWED_TARGETS: dict[str, frozenset[str]] = {
    "data": frozenset({"seglab.data.datamodule.SegmentationDataModule"}),
    "data.cases": frozenset(
        {
            "seglab.data.layouts.find_cases",
            "seglab.data.synthetic.synthetic_cases",
        }
    ),
    "data.augment": frozenset({"seglab.data.augment.Augment"}),
    "model": frozenset(
        {"seglab.networks.EncoderUNet", "seglab.networks.SegNet", "seglab.networks.UNet"}
    ),
    "task": frozenset({"seglab.training.task.SegmentationTask"}),
    "task.loss": frozenset(
        {
            "seglab.losses.bce",
            "seglab.losses.bce_dice",
            "seglab.losses.cross_entropy",
            "seglab.losses.cross_entropy_dice",
            "seglab.losses.dice",
            "seglab.losses.double_sigmoid_bce",
            "seglab.losses.focal",
            "seglab.losses.structure",
            "seglab.losses.tversky",
        }
    ),
    "task.optimizer": frozenset({f"{_OPTIM}.{name}" for name in ("Adam", "AdamW", "SGD")}),
    "task.lr_scheduler": frozenset(
        {
            "seglab.training.lr_schedulers.cosine",
            *(f"{_OPTIM}.lr_scheduler.{n}LR" for n in ("CosineAnnealing", "MultiStep", "Step")),
        }
    ),
    "trainer": frozenset({"lightning.Trainer"}),
    "trainer.profiler": frozenset({"lightning.pytorch.profilers.PyTorchProfiler"}),
    "callbacks.*": frozenset(
        {
            "lightning.pytorch.callbacks.EarlyStopping",
            "lightning.pytorch.callbacks.LearningRateMonitor",
            "seglab.training.callbacks.ExponentialAverage",
            "seglab.training.callbacks.LogTestLoss",
            "seglab.training.callbacks.Pictures",
            "seglab.training.callbacks.Progress",
        }
    ),
    "logger": frozenset({"seglab.training.tensorboard.TensorBoard"}),
}
ALL_ALLOWED_TARGETS = frozenset().union(*ALLOWED_TARGETS.values())
