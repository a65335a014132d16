"""A run's model card: what it is, made of, worth, and not to be used for. No torch.

After Mitchell et al., Model Cards for Model Reporting (2019), with the front matter that Hugging
Face reads. Whatever a run does not say is left out.
"""

from __future__ import annotations

import json
import math
import re
import shlex
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from seglab.analysis.compare import FEW, METRICS, SHOWN, TOO_NARROW, Row, Score, format_score
from seglab.runs.loading import ALL_ALLOWED_TARGETS
from seglab.runs.records import Run, RunProvenance, read_provenance, read_run

NAME = "MODEL_CARD.md"
WORST = 5
_LONGEST = 200  # characters of a name
_MOST = 10  # diagnoses: a card is read, not searched

_CASES = "seglab.data.cases"
_LAYOUTS = {
    f"{_CASES}.ph2_cases": "PH2's layout",
    f"{_CASES}.isic2018_cases": "the ISIC challenges' layout",
    f"{_CASES}.pairs_cases": "images and masks of one name",
    f"{_CASES}.find_cases": "a layout that was recognised",
    "seglab.data.synthetic.synthetic_cases": "drawn by seglab",
}
_SYNTHETIC = "seglab.data.synthetic.synthetic_cases"
_NETWORKS = {"seglab.networks.UNet": "U-Net", "seglab.networks.SegNet": "SegNet"}
_OVER_ENCODER = "seglab.networks.EncoderUNet"
_ENCODERS = {
    "efficientnet_lite0": "EfficientNet-Lite0",
    **{f"resnet{depth}": f"ResNet-{depth}" for depth in (18, 34, 50)},
}
_LOSSES = {
    "bce": "binary cross-entropy",
    "double_sigmoid_bce": "binary cross-entropy of a sigmoid that is taken twice",
    "dice": "1 - soft Dice",
    "bce_dice": "binary cross-entropy + 1 - soft Dice",
    "focal": "focal loss",
    "tversky": "1 - soft Tversky index",
    "structure": "cross-entropy + 1 - soft IoU, borders weighted",
    "cross_entropy": "cross-entropy",
    "cross_entropy_dice": "cross-entropy + 1 - soft Dice",
}
# Components of `seglab.data.augment.Augment`; the first are on unless they are switched off.
ON = ("flip", "rotate", "scale", "shift", "brightness", "contrast", "saturation")
# What a reader need not know of a trainer that is as conf/trainer/ has it.
_USUAL = (
    *("_target_", "max_epochs", "accelerator", "devices", "strategy", "deterministic"),
    *("use_distributed_sampler", "num_sanity_val_steps", "enable_model_summary"),
)
_LOOKS_ONLY = (
    *(
        "seglab.training.callbacks.Progress",
        "seglab.training.callbacks.Profile",
        "seglab.training.callbacks.Pictures",
    ),
    "lightning.pytorch.callbacks.LearningRateMonitor",
)
_BASELINES = {
    "all_background": "nothing is marked",
    "mean_mask": "the mean training mask in every picture",
    "otsu": "Otsu's threshold",
}
_WATCHES_TEST = "seglab.training.callbacks.WatchTest"
_MEANS = {
    "dice_per_image": "Dice (F1) of each picture, averaged; 1 is best",
    "iou_per_image": "intersection over union of each picture, averaged",
    "pixel_accuracy": "share of all pixels that are right",
    "iou_pooled": "intersection over union of all pixels together",
    "dice_pooled": "Dice of all pixels together",
    "sensitivity": "share of {} pixels that are found",
    "specificity": "share of other pixels that are left alone",
    "thresholded_iou": "as `iou_per_image`, but 0 of a picture under 0.65 (ISIC 2018)",
    "hd95": "95th percentile of the outlines' distances, px (one empty: diagonal); 0 is best",
    "surface_dice": "share of the outlines within 2 px of each other",
    "ece": "expected calibration error of probabilities, 15 bins; 0 is best",
}


def model_card(run: Path) -> str:
    """Makes the model card of a run whose test cases are scored, from its files alone.

    Args:
        run: Its directory; nothing in it is trusted.

    Returns:
        Markdown, with YAML before it.

    Raises:
        InputError: It is no run directory, has no scores yet, or a file is damaged.
    """
    found, origin = read_run(run), read_provenance(run)
    row = Row(found.settings, {(found.seed, found.fold): found}, {found.seed: found.tested})
    sections = (
        _front(found, origin),
        _head(found, origin, row),
        _data(found, origin),
        _training(found, origin),
        _evaluation(found, origin, row),
        _limits(found, origin),
        _use(found, origin),
        _reproduction(found, origin),
    )
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def _front(run: Run, origin: RunProvenance) -> list[str]:
    tags = ["semantic-segmentation", "pytorch"]
    if _is_ph2(run, origin):
        tags += ["dermoscopy", "ph2"]
    elif run.settings.get("data.cases._target_") == _SYNTHETIC:
        tags.append("synthetic-data")
    return [
        *("---", "library_name: seglab", "pipeline_tag: image-segmentation"),
        *(f"tags: [{', '.join(tags)}]", "metrics: [dice, iou, accuracy]", "---"),
    ]


def _head(run: Run, origin: RunProvenance, row: Row) -> list[str]:
    get, folder = run.settings.get, _folder(run)
    is_multiclass = len(run.classes) > 1
    name = _network(run)
    what = _listed(map(_name, run.classes[is_multiclass:]))
    n, metric = len(run.tested), "dice_per_image"
    dice = _shown(metric, row.scores([metric])[metric], n)
    dice += " (an interval that is too narrow: they are few)" * (1 < n < FEW)
    known = {name: own[metric] for name, own in origin.baselines.items() if metric in own}
    trivial = max(known, key=known.__getitem__, default=None)
    beside = ""
    if trivial is not None:
        score = format_score(metric, Score(known[trivial]))
        beside = f"; the best trivial baseline, {_name(trivial)}, has {score}"
    # Of pairs the one class may be anything: 'lesion' is what it is called unless somebody says.
    is_known = is_multiclass or get("data.cases._target_") != f"{_CASES}.pairs_cases"
    marked = what if is_known else f"what its training masks mark, called {what},"
    facts = {"network": _call(run, "model"), "weights": ""}
    if origin.weights or get("model._target_") in {*_NETWORKS, _OVER_ENCODER}:
        facts["weights"] = _initial_weights(run, origin)
    if "parameters" in run.costs:
        facts["network"] += f", {run.costs['parameters']:,.0f} parameters"
    if "multiply_adds" in run.costs:
        facts["network"] += f", {run.costs['multiply_adds'] * 1e-9:.3g} G multiply-adds a pass"
    if size := get("data.size"):
        facts["input"] = (
            f"an RGB picture of any size, resized to {_plain(size)} x {_plain(size)} whatever its "
            "shape"
        )
    facts["output"] = f"at the picture's size, each pixel's probability of {what}, and a mask"
    if is_multiclass:
        facts["output"] = (
            f"at the picture's size, each pixel's probabilities of {len(run.classes)} classes "
            f"({', '.join(map(_name, run.classes))}), and a mask of class numbers"
        )
    facts["mask"] = _mask(run, origin)
    if experiment := get("name"):
        facts["experiment"] = f"{_name(experiment)}, seed {_plain(run.seed)}"
    facts["code"] = _code(run, origin)
    facts["trained"] = _trained(run, origin)
    facts["license"] = (
        "of seglab's code MIT; data and pretrained weights, if any, have terms of their own, which "
        "may bind these weights too"
    )
    return [
        f"# {name}, trained on {folder}",
        "",
        f"Marks {marked} in pictures. Research use only: no medical device, no diagnosis. Dice per "
        f"image on {_n(n, 'test case')}: {dice}{beside}.",
        "",
        *_table(["property", "value"], [[k, v] for k, v in facts.items() if v], 2),
    ]


def _data(run: Run, origin: RunProvenance) -> list[str]:
    get = run.settings.get
    sizes = {part: len(ids) for part, ids in origin.ids.items()}
    layout = _LAYOUTS.get(get("data.cases._target_", ""), _call(run, "data.cases"))
    lines = [
        f"- {_folder(run)}{f' ({layout})' if layout else ''}: {sum(sizes.values()):,} cases, "
        f"{sizes['train']:,} to train on, {sizes['val'] or 'none'} to choose on (val), "
        f"{sizes['test']:,} to test."
    ]
    diagnoses = _diagnoses(run)
    if diagnoses:
        counts = _listed(f"{n} {_name(of)}" for of, n in diagnoses.items())
        lines.append(f"- Diagnoses of the test cases: {counts}.")
    file = get("data.split.file", "null")
    if file != "null":
        split = f"as {_name(Path(file).name)} has it"
    elif run.fold:
        split = f"fold {_plain(run.fold)} of {run.folds} (from 0)"
    else:
        split = "holdout"
    if file == "null":
        split += ", diagnoses in proportion" * bool(diagnoses)
        split += f", split seed {_plain(get('data.split.seed', ''))}"
    patients = ""
    if origin.tables == []:
        patients = " Patients are not named in the data: one may have pictures on both sides."
    elif origin.tables:
        named = _listed(map(_name, origin.tables))
        patients = f" So are those of one patient, as far as {named} names patients."
    if get("data.cases._target_") == _SYNTHETIC:
        patients = " There are no patients."
    lines.append(f"- Split: {split}. Pictures that look the same are on one side.{patients}")
    hashes = {"data": run.data, "split": origin.split_hash}
    said = [f"{what} {_name(sha256)}" for what, sha256 in hashes.items() if sha256]
    if said:
        lines.append(f"- SHA-256: {', '.join(said)}.")
    return ["## Data", "", *lines]


def _training(run: Run, origin: RunProvenance) -> list[str]:
    get = run.settings.get
    loss = _call(run, "task.loss")
    target = get("task.loss._target_", "")
    if target.startswith("seglab.losses.") and (words := _LOSSES.get(target.rpartition(".")[2])):
        loss = f"{words}: {loss}"
    optimizer, schedule = _call(run, "task.optimizer"), _call(run, "task.lr_scheduler")
    if optimizer:
        optimizer += f"; schedule {schedule}" if schedule else "; the rate stays"
    if get("task.encoder_lr_factor", "1") not in ("1", "1.0"):
        optimizer += (
            f"; a pretrained encoder's rate is {_plain(get('task.encoder_lr_factor', ''))} of it"
        )
    callbacks = [
        _call(run, key.removesuffix("._target_"))
        for key, value in run.settings.items()
        if re.fullmatch(r"callbacks\.[^.]+\._target_", key) and value not in _LOOKS_ONLY
    ]
    steps = f"{'at most ' * bool(callbacks)}{_plain(get('trainer.max_epochs', ''))} epochs"
    if batch := get("data.batch_size"):
        steps += f", batches of {_plain(batch)}"
    usual = {f"trainer.{key}" for key in _USUAL}
    steps += "".join(
        f", {_name(key.removeprefix('trainer.') + '=' + value)}"
        for key, value in run.settings.items()
        if key.startswith("trainer.")
        and key not in usual
        and not (key.startswith("trainer.limit_") and value in ("1", "1.0"))
        and value not in ("null", "{}")
    )
    facts = {"Loss": loss, "Optimizer": optimizer, "Steps": steps, "Augmentation": _augment(run)}
    if get("task.ema", "0") not in ("0", "0.0"):
        facts["Weights"] = f"a moving average over steps, {_plain(get('task.ema', ''))} of the old"
    facts["Callbacks"] = ", ".join(callbacks)
    facts["Kept"] = _kept(run, origin)
    return ["## Training", "", *(f"- {what}: {said}." for what, said in facts.items() if said)]


def _evaluation(run: Run, origin: RunProvenance, row: Row) -> list[str]:
    is_multiclass, n = len(run.classes) > 1, len(run.tested)
    scores = row.scores(METRICS)
    trivial = [name for name, own in origin.baselines.items() if own.keys() & scores.keys()]
    what = _listed(map(_name, run.classes[is_multiclass:]))
    body = []
    for metric in (metric for metric in METRICS if metric in scores):
        own = [origin.baselines[name].get(metric) for name in trivial]
        means = _MEANS[metric].format(what)
        cells = ["" if v is None else format_score(metric, Score(v)) for v in own]
        body.append([f"`{metric}`", _shown(metric, scores[metric], n), *cells, means])
    metadata = (
        f"{_n(n, 'test case')} at native resolution, against untouched masks; in brackets 95 % "
        "intervals by bootstrap over cases (BCa), of this one trained network."
    )
    if is_multiclass:
        metadata += (
            f" Values are means over {what}, each against the rest; `pixel_accuracy` and `ece` are "
            "of all classes."
        )
    if told := [f"{_name(b)}: {_BASELINES[b]}" for b in trivial if b in _BASELINES]:
        metadata += f" Baselines: {'; '.join(told)}."
    names = ["metric", "this network", *map(_name, trivial), "what it is"]
    lines = ["## Evaluation", "", metadata]
    diagnoses = _diagnoses(run)
    if min([n, *diagnoses.values()]) < FEW:
        lines += ["", f"**Caution:** {TOO_NARROW}."]
    lines += ["", *_table(names, body, 1, last_left=True)]
    if is_multiclass:
        lines += [
            "",
            *_parts("class", [(of, n, row.scores(SHOWN, of=of)) for of in row.classes[1:]]),
        ]
    if len(diagnoses) > 1:
        first = [*diagnoses.items()][:_MOST]
        lines += ["", *_parts("diagnosis", [(of, k, row.scores(SHOWN, of)) for of, k in first])]
        if len(diagnoses) > _MOST:
            lines += ["", f"{len(diagnoses) - _MOST} more diagnoses have no more cases each."]
    return [*lines, "", _worst(run, row)]


def _limits(run: Run, origin: RunProvenance) -> list[str]:
    get = run.settings.get
    lines = [
        "For research on segmentation. Not a medical device and not validated for patients; a "
        "mask says where something is, not what it is."
    ]
    if get("data.cases._target_") == _SYNTHETIC:
        lines.append("Trained and tested on drawn pictures: scores say nothing about patients.")
    else:
        lines.append(
            "PH2 is of one hospital, one dermoscope at one magnification, and fair skin "
            "(phototypes II and III; Mendonça et al. 2013). Other cameras, darker skin and other "
            "diagnoses are not in it."
            if _is_ph2(run, origin)
            else "Which people, places and cameras its pictures are of, the run does not say."
        )
        lines.append("No score is taken by skin, age, sex or camera: the run does not know them.")
    one = f"One training (seed {_plain(run.seed)}), one split"
    one += f" (one of {run.folds} folds)" * bool(run.fold)
    lines += [
        f"{one}, {_n(len(run.tested), 'test case')} of the same data set: another seed or split "
        "scores otherwise, which the intervals do not cover, and other data may score far less.",
        "How the settings came about, and whether the test cases had a part in that, the run does "
        "not say.",
    ]
    if any(value == _WATCHES_TEST for value in run.settings.values()):
        lines.append("The test loss was looked at in every epoch; this run chose nothing by it.")
    edge = _network_pixel(run)
    if edge > 1.2:
        lines.append(
            f"A pixel that the network sees stands for about {edge:.1f} x {edge:.1f} of a picture: "
            "finer outline is smoothed."
        )
    if get("inference.largest_component") == "true":
        each = " of each class" if len(run.classes) > 1 else ""
        lines.append(f"At most one piece{each} is marked in a picture: smaller ones are dropped.")
    return ["## Limits", "", *(f"- {line}" for line in lines)]


def _use(run: Run, origin: RunProvenance) -> list[str]:
    is_multiclass = len(run.classes) > 1
    outside = _outside(run)
    trust = "".join(f" --trust {shlex.quote(module)}" for module in outside)
    trusted = f", trust={tuple(outside)!r}" if outside else ""
    shape = f"({len(run.classes)}, H, W)" if is_multiclass else "(H, W)"
    mask = "uint8 (H, W), class numbers" if is_multiclass else "bool (H, W)"
    place = _place(run, origin)
    elsewhere = "" if place else "  # put before it where it lies"
    place = place or run.path
    data = "needs the data where config.yaml says"
    pretrained = " and the extra 'pretrained'" * (run.settings.get("model.weights") == "imagenet")
    commands = {
        f'predict.py "$RUN" pictures --out predictions{trust}': "masks of a folder of pictures",
        f'export.py "$RUN"{trust}': "network.onnx, runs without torch; needs the extra 'onnx'",
        f'evaluate.py "$RUN"{trust}': f"scores the test cases again; {data}",
        f'reproduce.py "$RUN"{trust}': f"trains again, compares; {data}{pretrained}",
    }
    return [
        "## Use",
        "",
        "In a checkout of seglab, with it installed; `RUN` is the path to this directory:",
        "",
        "```bash",
        f"RUN={shlex.quote(place)}{elsewhere}",
        *(f"python scripts/{command}  # {note}" for command, note in commands.items()),
        "```",
        "",
        "```python",
        "from seglab.data.images import read_image",
        "from seglab.inference.postprocessing import predicted_mask",
        "from seglab.inference.models import open_model",
        f"model = open_model({json.dumps(place, ensure_ascii=False)}{trusted}){elsewhere}",
        f'prob = model.predict(read_image("picture.jpg"))  # float32 {shape}, 0 to 1',
        f"mask = predicted_mask(prob, model.threshold, model.inference.postprocessing)  # {mask}",
        "```",
    ]


def _reproduction(run: Run, origin: RunProvenance) -> list[str]:
    said = (
        f"Seed {_plain(run.seed)} and `config.yaml` decide everything that is drawn; `run.json` "
        "holds versions, machine and hashes, `splits.json` the ids. `reproduce.py` names what is "
        "another now, trains again, and compares every weight and value."
    )
    if origin.resumed:
        said += f" This run was interrupted and gone on with {_n(origin.resumed, 'time')}"
        said += f"; {_listed(origin.changed)} had changed then." if origin.changed else "."
    return ["## Reproduction", "", said]


def _network(run: Run) -> str:
    target = run.settings.get("model._target_", "")
    if target == _OVER_ENCODER:
        encoder = run.settings.get("model.encoder", "")
        return f"U-Net over {_ENCODERS.get(encoder, _name(encoder))}"
    return _NETWORKS.get(target, _name(target.rpartition(".")[2]))


def _initial_weights(run: Run, origin: RunProvenance) -> str:
    get = run.settings.get
    weights = get("model.weights", "null")
    if get("model._target_") != _OVER_ENCODER or weights == "null":
        return "from scratch"
    said = "the encoder's are ImageNet's, as published"
    if weights != "imagenet":
        said = f"the encoder's are those of {_name(Path(weights).name)}"
    said += f" (SHA-256 {_name(origin.weights)})" if origin.weights else ""
    if get("model.freeze", "0") != "0":
        said += f", of its 5 halvings the first {_plain(get('model.freeze', ''))} frozen"
    return f"{said}; the rest is from scratch"


def _mask(run: Run, origin: RunProvenance) -> str:
    get = run.settings.get
    said = "each pixel's most probable class"
    if len(run.classes) == 1:
        threshold = get("task.threshold", "") if origin.threshold is None else origin.threshold
        said = f"{_name(run.classes[0])} where the probability is above {_plain(str(threshold))}"
        if get("inference.tune_threshold") == "true":
            said += ", the threshold of the best Dice on val"
    if get("inference.tta") == "true":
        said += "; probabilities are means over the 8 flips and quarter turns (8 passes)"
    if get("inference.largest_component") == "true":
        said += "; the largest piece alone is kept"
    if get("inference.fill_holes") == "true":
        said += "; holes are filled"
    return said


def _code(run: Run, origin: RunProvenance) -> str:
    said = []
    if "seglab" in origin.versions:
        said.append(f"seglab {_plain(origin.versions['seglab'])}")
    if origin.commit:
        states = {True: ", with uncommitted changes (`code.diff`)", False: ", nothing uncommitted"}
        state = next((words for known, words in states.items() if origin.dirty is known), "")
        said.append(f"commit {_name(origin.commit)}{state}")
    elif run.source:
        said.append(f"source SHA-256 {_name(run.source)}")
    for name, shown in (("python", "Python"), ("torch", "torch")):
        if name in origin.versions:
            said.append(f"{shown} {_plain(origin.versions[name])}")
    return ", ".join(said)


def _trained(run: Run, origin: RunProvenance) -> str:
    said = [_plain(origin.started[:10])] if origin.started else []
    if "training_seconds" in run.costs:
        said.append(f"{run.costs['training_seconds']:,.0f} s of training steps")
    on = " ".join(filter(None, (_plain(origin.device.upper()), _name(origin.machine))))
    return ", ".join(said) + (f", on {on}" if on else "")


def _augment(run: Run) -> str:
    target = run.settings.get("data.augment._target_")
    if target is None:
        return "none" if "data.augment" in run.settings else ""
    if target != "seglab.data.augment.Augment":
        return _call(run, "data.augment")
    prefix = "data.augment."
    given = {k.removeprefix(prefix): v for k, v in run.settings.items() if k.startswith(prefix)}
    given.pop("_target_")
    parts = dict.fromkeys(ON, "") | given
    on = [
        f"{_plain(part)} {_plain(value)}".removesuffix(" true").strip()
        for part, value in parts.items()
        if value not in ("0", "0.0", "false")
    ]
    return (
        f"{', '.join(on)} (anew for each picture; without a number the "
        "default of `seglab.data.augment.Augment`)"
    )


def _kept(run: Run, origin: RunProvenance) -> str:
    get = run.settings.get
    monitor = get("monitor", "null")
    if monitor == "null":
        return f"the weights of the last epoch, {origin.best_epoch}; nothing was chosen"
    best = "lowest" if get("monitor_mode") == "min" else "highest"
    said = f"the weights of epoch {origin.best_epoch}, that of the {best} {_name(monitor)}"
    n = len(origin.ids["val"])
    return f"{said}, on {_n(n, 'case')} of val" if monitor.startswith("val/") else said


def _parts(kind: str, parts: Sequence[tuple[str, int, dict[str, Score]]]) -> list[str]:
    body = [
        [_name(of or "unknown"), str(n), *(_shown(m, scores[m], n) for m in SHOWN)]
        for of, n, scores in parts
    ]
    return _table([kind, "n", *(f"`{metric}`" for metric in SHOWN)], body, 1)


def _worst(run: Run, row: Row) -> str:
    dice = row.by_case("dice_per_image")
    diagnosed = bool(_diagnoses(run))
    worst = [
        f"{_name(case[0])}{f' ({_name(case[2])})' * diagnosed} {dice[case]:.3f}"
        for case in sorted(dice, key=lambda case: (dice[case], case))[:WORST]
    ]
    values, n = dice.values(), len(dice)
    low, lower = (sum(value < bound for value in values) for bound in (0.9, 0.8))
    said = (
        f"Dice of single cases: median {statistics.median(values):.3f}, below 0.9 in {low} of {n}, "
        f"below 0.8 in {lower}. The worst: {', '.join(worst)}"
    )
    drawn = (run.folder / "figures" / "worst.png").is_file()
    return said + (" (`figures/worst.png` shows them)." if drawn else ".")


def _diagnoses(run: Run) -> dict[str, int]:
    """Test cases of each, most first; empty where none is known."""
    counts = Counter(diagnosis for _, _, diagnosis in run.tested)
    return {} if {*counts} <= {"unknown", ""} else dict(counts.most_common())


def _is_ph2(run: Run, origin: RunProvenance) -> bool:
    """Whether it is PH2, and not something else in its layout."""
    ids = [id for part in origin.ids.values() for id in part]
    named = run.settings.get("data.cases._target_") == f"{_CASES}.ph2_cases"
    return named and bool(ids) and all(re.fullmatch(r"IMD\d{3}", id) for id in ids)


def _network_pixel(run: Run) -> float:
    """Edge in pixels of a picture, the median one, of what the network sees as one; 0: unknown."""
    size = run.settings.get("data.size", "")
    if not re.fullmatch(r"[1-9]\d{0,4}", size):
        return 0
    return statistics.median(math.sqrt(own[0, :4].sum()) for own in run.tested.values()) / int(size)


def _outside(run: Run) -> list[str]:
    """Libraries that its config names, which have to be trusted."""
    targets = {v for k, v in run.settings.items() if k.split(".")[-1] == "_target_"}
    return sorted({target.partition(".")[0] for target in targets - ALL_ALLOWED_TARGETS})


def _place(run: Run, origin: RunProvenance) -> str:
    """Where the run lies, from where its command was started; empty if it is elsewhere."""
    there = run.folder.resolve()
    if not origin.directory or not there.is_relative_to(origin.directory):
        return ""
    there = there.relative_to(origin.directory)
    return there.as_posix() if str(there).isprintable() else ""


def _folder(run: Run) -> str:
    return _name(Path(run.settings.get("data.root", "")).name)


def _call(run: Run, key: str) -> str:
    """What a config builds there: `Adam(lr=0.001)`; of a path its name."""
    target = run.settings.get(f"{key}._target_")
    if not target:
        return ""
    arguments = []
    for name, value in run.settings.items():
        argument = name.removeprefix(f"{key}.")
        if argument == name or value == "{}" or argument.endswith("_partial_"):
            continue
        if argument.endswith("_target_"):
            argument, value = argument[: -len("._target_")], value.rpartition(".")[2]
        if argument:
            value = Path(value).name if value.startswith("/") else value
            arguments.append(f"{argument}={value}")
    given = f"({', '.join(arguments)})" if arguments else ""
    return _name(target.rpartition(".")[2] + given)


def _shown(metric: str, score: Score, n: int) -> str:
    """Of a single case there is no interval."""
    return format_score(metric, score if n > 1 else Score(score.value))


def _name(text: str) -> str:
    """A text of anyone, which Markdown takes for nothing else."""
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 3]}..."
    if re.fullmatch(r"[^`|\\<>&]+", text):
        return f"`{text}`"
    return _plain(text)


def _plain(text: str) -> str:
    """The same, for what is a word or a number if nobody means harm."""
    # GitHub makes a link of www. in any text.
    special = r"[^\w .+-]|_|(?<=www)\."
    return re.sub(special, lambda found: f"&#{ord(found[0])};", text[:_LONGEST], flags=re.I)


def _n(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def _listed(items: Iterable[str]) -> str:
    *first, last = items
    return f"{', '.join(first)} and {last}" if first else last


def _table(
    head: Sequence[str], body: Sequence[Sequence[str]], left: int, last_left: bool = False
) -> list[str]:
    rules = [":--" if i < left else "--:" for i in range(len(head))]
    if last_left:
        rules[-1] = ":--"
    return [f"| {' | '.join(line)} |" for line in (head, rules, *body)]
