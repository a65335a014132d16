"""How fast is seglab on this machine, against the recipe that it starts from?

python scripts/benchmark.py [train] [predict] [load] [start] [--quick] [--data ROOT] [--json FILE]
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stderr, suppress
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from seglab.cli.errors import one_line_errors
from seglab.core.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from seglab.training.build import Components

# What is heavy is imported where it is used: --help need not wait for it, and the recipe's
# processes import nothing that they do not use.
SCRIPTS = Path(__file__).resolve().parent
PARTS = ("train", "predict", "load", "start")
STEPS = 2  # timed in a turn, after one that is not
PICTURES = 4  # likewise
CASES = 16  # read in a turn
EDGE = 2048  # of the matrices whose product tells the machine's rate
BF16 = "bf16-mixed"

Settings = Mapping[str, Any]
Turn = Callable[[Mapping[str, Any]], None]

# --- The recipe as it is written ------------------------------------------------------------------


def recipe_network(name: str) -> nn.Module:
    """Builds the recipe's 'unet' or 'segnet': images (N, 3, S, S) to probabilities (N, 1, S, S)."""
    import torch
    from torch import nn

    def block(a: int, b: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.BatchNorm2d(b))

    def level(a: int, b: int) -> nn.Sequential:
        return nn.Sequential(block(a, b), nn.MaxPool2d(2))

    class SegNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            levels = level(3, 16), level(16, 32), level(32, 64), level(64, 128)
            self.encoder: Any = nn.Sequential(*levels)
            self.bottleneck = nn.Conv2d(128, 256, 3, padding=1)
            self.decoder = nn.Sequential(block(256, 128), block(128, 64), block(64, 32))
            self.head = nn.Conv2d(32, 1, 1)
            self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)

        def forward(self, x: Tensor) -> Tensor:
            x = self.bottleneck(self.encoder(x))
            for block in self.decoder:
                x = block(self.upsample(x))
            return torch.sigmoid(self.head(self.upsample(x)))

    class UNet(SegNet):
        def __init__(self) -> None:
            super().__init__()
            self.decoder = nn.Sequential(block(256 + 128, 128), block(128 + 64, 64), block(96, 32))
            self.head = nn.Conv2d(32 + 16, 1, 1)

        def forward(self, x: Tensor) -> Tensor:
            skips = []
            for block, pool in self.encoder:
                skips.append(block(x))
                x = pool(block(x))  # every block of the encoder is computed twice
            x = self.bottleneck(x)
            for block, skip in zip(self.decoder, skips[:0:-1], strict=True):
                x = block(torch.cat([self.upsample(x), skip], 1))
            return torch.sigmoid(self.head(torch.cat([self.upsample(x), skips[0]], 1)))

    return {"unet": UNet, "segnet": SegNet}[name]()


def recipe_steps(net: nn.Module, loader: Iterable[Any], device: str = "cpu") -> Iterator[float]:
    """Trains without end; yields the loss of each step.

    Args:
        net: `recipe_network`.
        loader: Pairs of images float (N, 3, S, S) in [0, 1] and masks float (N, 1, S, S).
        device: Where to compute.
    """
    import torch

    net = net.to(device).train()
    criterion = torch.nn.BCEWithLogitsLoss()  # of probabilities: the second sigmoid
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, weight_decay=1e-6)
    while True:
        for images, masks in loader:
            optimizer.zero_grad()
            loss = criterion(net(images.to(device)), masks.to(device))
            loss.backward()
            optimizer.step()
            yield loss.item()  # for its progress bar


def training_flops(name: str, size: int) -> int:
    """Operations of training on one image, by the textbook: every layer once, as it is written.

    The gradients of weights and of inputs take a forward pass each, but no one needs that of the
    image. A multiply-add is two operations.

    Args:
        name: 'unet' or 'segnet'.
        size: Edge of the square image, in pixels.
    """
    from seglab.networks.cost import multiply_adds

    net: Any = recipe_network(name)
    forward = multiply_adds(net, size)
    if name == "unet":  # whose encoder the recipe computes twice
        forward -= multiply_adds(net.encoder, size)
    return 2 * (3 * forward - multiply_adds(net.encoder[0], size))


# --- Contenders: a process each, since allocator, threads and determinism are those of a process --


def take_turns(
    turn: Turn, s: Settings, metadata: Settings, times: int, **works: Callable[[], int]
) -> None:
    """Warms up, then works in each turn.

    Args:
        turn: Gives an answer and waits for the next turn.
        s: Settings.
        metadata: The first answer, before any turn.
        times: How often to do each work in a turn, after once that is not timed: while others had
            their turns, caches and memory grew cold.
        works: What to measure; each returns how many images or cases it has done, and the answer
            is the seconds that one of them took.
    """
    for work in works.values():
        work()
    answer = metadata
    while True:
        turn(answer)
        answer = {}
        for name, work in works.items():
            work()
            answer[name] = _seconds(s, work, times)


def machine(s: Settings, turn: Turn) -> None:
    """Matrix products in float32 and, where the machine has it, bfloat16."""
    import torch

    from seglab import __version__
    from seglab.runs import provenance

    if s["device"] == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device; leave it out")
    cuda = s["device"] != "cpu" and torch.cuda.is_available()
    known = provenance.describe_machine()
    metadata = {key: known[key] for key in ("processor", "cores", "threads", "cuda")}
    metadata |= {"seglab": __version__, "torch": torch.__version__}
    metadata["device"] = "cuda" if cuda else "cpu"
    able = torch.cpu.get_capabilities()
    bf16 = any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # the last: ARM
    if cuda:
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    a = torch.randn(EDGE, EDGE, device=metadata["device"])
    factors = {"fp32": a} | ({"bf16": a.bfloat16()} if bf16 else {})

    def best(a: Tensor) -> float:
        def product() -> int:
            torch.mm(a, a)
            return 1

        return min(_seconds(metadata, product) for _ in range(4))

    answer: dict[str, Any] = metadata
    while True:
        turn(answer)
        answer = {name: best(a) for name, a in factors.items()}


def recipe_train(s: Settings, turn: Turn) -> None:
    """The recipe's loop over a list of tensors."""
    import torch
    from torch.utils.data import DataLoader

    from seglab.data.cache import open_cache
    from seglab.data.layouts import find_cases

    torch.manual_seed(42)
    cache = open_cache(find_cases(s["root"]), s["size"], s["cache_dir"])
    images = torch.tensor(cache.images).permute(0, 3, 1, 2).contiguous() / 255
    masks = torch.tensor(cache.masks).unsqueeze(1).float()
    pairs: Any = list(zip(images, masks, strict=True))
    # The recipe's last batch of an epoch is smaller; steps of one size can be compared.
    loader = DataLoader(pairs, batch_size=s["batch_size"], shuffle=True, drop_last=True)
    steps = recipe_steps(recipe_network(s["model"]), loader, s["device"])

    def train() -> int:
        next(steps)
        return s["batch_size"]

    take_turns(turn, s, {}, STEPS, train=train)


def seglab_train(s: Settings, turn: Turn) -> None:
    """Lightning, as `seglab.training.train.train` uses it: a turn is an epoch of a few steps.

    From the end of the first step to the end of the last, so batches, metrics, logging and the
    bar count; what comes once an epoch, validation and checkpoints, does not.
    """
    from lightning.pytorch.callbacks import LambdaCallback

    parts = _build(s)
    answer: dict[str, float] = {}
    began = images = 0.0

    def start(trainer: Any, module: Any) -> None:
        if trainer.current_epoch > 1:  # two warm up: the first validation takes new memory
            turn(answer)

    def stepped(trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        nonlocal began, images
        images += len(batch["image"])
        if index in (0, STEPS):
            _synchronize(s["device"])
            answer["train"] = (time.perf_counter() - began) / images
            began, images = time.perf_counter(), 0

    clock = LambdaCallback(on_train_epoch_start=start, on_train_batch_end=stepped)
    parts.trainer.callbacks.append(clock)  # type: ignore[attr-defined]  # after all others
    with Path(os.devnull).open("w") as screen, redirect_stderr(screen):
        screen.isatty = lambda: True  # type: ignore[method-assign]  # so that the bar is drawn
        parts.trainer.fit(parts.task, parts.data)
    turn(answer)


def bare_train(s: Settings, turn: Turn) -> None:
    """The same network, batches, loss and optimizer in a plain loop: what does Lightning cost?"""
    parts = _build(s)
    net, optimizer = parts.task.net.to(s["device"]).train(), parts.task.configure_optimizers()

    def steps() -> Iterator[int]:
        while True:
            for batch in itertools.islice(_batches(parts, s), STEPS + 1):
                loss = parts.task.loss(net(batch["image"]), batch["mask"]).mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                yield len(batch["image"])

    metadata = {"flops": training_flops(s["model"], s["size"])}
    take_turns(turn, s, metadata, STEPS, train=steps().__next__)


def recipe_predict(s: Settings, turn: Turn) -> None:
    """From native picture to native mask with the recipe's tools."""
    import torch
    from skimage.transform import resize

    net, size = recipe_network(s["model"]).to(s["device"]).eval(), (s["size"], s["size"])

    @torch.no_grad()
    def predict(picture: Any) -> Any:
        image = torch.tensor(resize(picture, size, anti_aliasing=True), dtype=torch.float32)
        prob = net(image.permute(2, 0, 1)[None].to(s["device"]))[0, 0].cpu().numpy()
        return resize(prob, picture.shape[:2]) > 0.5

    _predict(s, turn, predict, torch.no_grad()(net), torch.rand(1, 3, *size))


def seglab_predict(s: Settings, turn: Turn) -> None:
    """The same with `seglab.inference.predictor.make_predictor`."""
    import torch

    from seglab import networks as nets
    from seglab.core.memory import keep_freed_memory
    from seglab.inference.predictor import make_predictor

    keep_freed_memory()
    net = {"unet": nets.UNet, "segnet": nets.SegNet}[s["model"]]()
    prob = make_predictor(net, s["size"], s["device"])
    small = torch.rand(1, s["size"], s["size"], 3).permute(0, 3, 1, 2)
    _predict(s, turn, lambda picture: prob(picture)[0] > 0.5, torch.inference_mode()(net), small)


def recipe_load(s: Settings, turn: Turn) -> None:
    """Reads and resizes case by case, as the recipe does at every start."""
    from skimage.io import imread
    from skimage.transform import resize

    from seglab.data.layouts import find_cases

    cases, size = find_cases(s["root"])[:CASES], (s["size"], s["size"])

    def read() -> int:
        for case in cases:
            resize(imread(case.image), size, anti_aliasing=True)
            mask = imread(case.mask)
            mask = mask[..., 0] if mask.ndim == 3 else mask  # where the recipe stops
            _ = resize(mask.astype(float), size, anti_aliasing=False) > 0.5
        return len(cases)

    take_turns(turn, s, {}, 1, read=read)


def seglab_load(s: Settings, turn: Turn) -> None:
    """Builds a cache anew, files hashed; feeds the batches of an epoch."""
    from seglab.data.cache import open_cache

    parts = _build(s)
    cases = parts.data.cases[:CASES]

    def read() -> int:
        fresh = tempfile.TemporaryDirectory(dir=s["folder"])
        with fresh as cache, redirect_stderr(io.StringIO()):  # its bars
            open_cache(cases, s["size"], cache)
        return len(cases)

    def feed() -> int:
        return sum(len(batch["image"]) for batch in _batches(parts, s))

    take_turns(turn, s, {}, 1, read=read, feed=feed)


_TRAIN = [machine, recipe_train, seglab_train, bare_train]
_OTHER = [recipe_predict, seglab_predict, recipe_load, seglab_load]
CONTENDERS = {function.__name__: function for function in _TRAIN + _OTHER}


def contend(name: str) -> None:
    """Runs one of `CONTENDERS`: settings, then a line a turn on stdin, answers on stdout."""
    import warnings

    warnings.simplefilter("ignore")
    answers, sys.stdout = sys.stdout, sys.stderr

    def turn(answer: Mapping[str, Any]) -> None:
        with suppress(BrokenPipeError):
            print(json.dumps(answer), file=answers, flush=True)
        if not sys.stdin.readline():
            os._exit(0)  # the benchmark is over, however it ended

    if settings := sys.stdin.readline():
        CONTENDERS[name](json.loads(settings), turn)


def first_step(*hook: Any, file: str) -> None:
    """Notes when a run's first step ended, and leaves the run: a callback's hook, for `start`."""
    Path(file).write_text(str(time.time()))
    os._exit(0)


def _overrides(s: Settings) -> list[str]:
    """The baseline on this data, as arguments of train.py."""
    from seglab.runs.overrides import quote_value

    return [
        f"model={s['model']}",
        f"trainer={'gpu' if s['device'] == 'cuda' else 'cpu'}",
        f"trainer.precision={s['precision']}",
        "data.cases._target_=seglab.data.layouts.find_cases",
        *(f"data.{key}={quote_value(s[key])}" for key in ("root", "cache_dir")),
        *(f"data.{key}={s[key]}" for key in ("size", "batch_size")),
    ]


def _build(s: Settings) -> Components:
    """Builds a run in this process, as `seglab.training.train.train` does."""
    import logging

    from hydra import compose, initialize_config_dir

    from seglab.config import check_config
    from seglab.core.memory import keep_freed_memory
    from seglab.runs.overrides import quote_value
    from seglab.training.build import build
    from seglab.training.train import seed_everything

    keep_freed_memory()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    run_dir = Path(tempfile.mkdtemp(dir=s["folder"]))
    limits = ["trainer.limit_val_batches=1", f"trainer.limit_train_batches={STEPS + 1}"]
    more = [*limits, f"trainer.max_epochs={s['rounds'] + 2}", f"run_dir={quote_value(run_dir)}"]
    with initialize_config_dir(str(SCRIPTS.parent / "conf"), version_base="1.3"):
        config = check_config(compose("train", [*_overrides(s), *more]))
    seed_everything(config["seed"])
    return build(config, run_dir)


def _batches(parts: Components, s: Settings) -> Iterator[dict[str, Tensor]]:
    for batch in parts.data.train_dataloader():
        yield parts.data.scale({key: batch[key].to(s["device"]) for key in ("image", "mask")})


def _predict(s: Settings, turn: Turn, predict: Any, net: Any, image: Tensor) -> None:
    """Measures from pictures to masks, and the network alone on one image."""
    from seglab.data.images import read_image
    from seglab.data.layouts import find_cases

    cases = find_cases(s["root"])[:PICTURES]
    pictures = itertools.cycle([read_image(case.image) for case in cases])
    image = image.to(s["device"])

    def mask() -> int:
        predict(next(pictures))
        return 1

    def alone() -> int:
        net(image)
        return 1

    take_turns(turn, s, {}, PICTURES, mask=mask, net=alone)


def _seconds(s: Settings, work: Callable[[], int], times: int = 1) -> float:
    """Seconds of one of the things that `work` does, done several times."""
    _synchronize(s["device"])
    began = time.perf_counter()
    done = sum(work() for _ in range(times))
    _synchronize(s["device"])
    return (time.perf_counter() - began) / done


def _synchronize(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


# --- The benchmark: contenders by turns -----------------------------------------------------------


@contextmanager
def started(name: str, s: Settings) -> Iterator[Callable[[], dict[str, Any]]]:
    """Starts a contender; yields what gives it a turn and returns its answer, the first at once."""
    # In a session of its own: Ctrl-C reaches the benchmark alone, which ends all of them.
    process: Any = subprocess.Popen(
        [sys.executable, __file__, "--contender", name],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    lines = itertools.chain([json.dumps(s)], itertools.repeat(""))

    def turn() -> dict[str, Any]:
        with suppress(BrokenPipeError):  # then there is no answer either
            print(next(lines), file=process.stdin, flush=True)
        if answer := process.stdout.readline():
            return json.loads(answer)
        if process.wait() < 0:
            raise InputError(
                f"{name} was killed by signal {-process.returncode}, probably for want of memory; "
                "use a smaller --batch-size or --size"
            )
        sys.exit(1)  # it has said why

    try:
        yield turn
    finally:
        process.kill()
        process.communicate()


def compete(
    title: str,
    rounds: int,
    entries: Mapping[str, tuple[str, Settings]],
    each_round: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Starts contenders and lets them take turns: one works at a time.

    Args:
        title: For the progress bar.
        rounds: Turns of each.
        entries: By name: which of `CONTENDERS`, and its settings.
        each_round: Called after each round.

    Returns:
        By name: seconds of each round by what was measured, and as 'about' its first answer.
    """
    from tqdm import tqdm

    total = (rounds + 1) * len(entries)
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        bar = stack.enter_context(
            tqdm(total=total, desc=title, unit="turn", disable=None, leave=False)
        )
        turns = {}
        for name, entry in entries.items():
            bar.set_postfix_str(f"{name} warms up")
            turns[name] = stack.enter_context(started(*entry))
            found[name] = {"about": turns[name]()}
            bar.update()
        for number in range(rounds):
            for name, turn in turns.items():
                bar.set_postfix_str(f"round {number + 1} of {rounds}: {name}")
                for key, seconds in turn().items():
                    found[name].setdefault(key, []).append(seconds)
                bar.update()
            each_round()
    return found


def against(
    recipe: Sequence[float], ours: Sequence[float], prefix: str = "", unit: str = "images"
) -> dict[str, Any]:
    """How many times faster seglab is: median, least and greatest over the rounds' pairs."""
    ratios = [a / b for a, b in zip(recipe, ours, strict=True)]
    return {
        f"{prefix}ratio": median(ratios),
        f"{prefix}ratio_range": [min(ratios), max(ratios)],
        f"recipe_{prefix}{unit}_per_second": 1 / median(recipe),
        f"{prefix}{unit}_per_second": 1 / median(ours),
    }


def train_figures(seconds: Mapping[str, Sequence[float]], flops: float, gflops: float) -> dict:
    """What is told of training.

    Args:
        seconds: An image, in each round: of 'recipe', 'seglab', 'bare', and of 'bf16' where the
            machine has it.
        flops: Of an image, `training_flops`.
        gflops: The machine's float32 matrix rate, 1e9 operations a second.
    """
    recipe, ours, bare = (seconds[name] for name in ("recipe", "seglab", "bare"))
    return {
        "precision": BF16 if "bf16" in seconds else "32-true",
        **against(recipe, seconds.get("bf16", ours)),
        **against(recipe, ours, "fp32_"),
        "bare_images_per_second": 1 / median(bare),
        "matrix_rate_share": flops / median(ours) / gflops / 1e9,
        "lightning_overhead": against(ours, bare)["ratio"] - 1,
    }


def measure_train(
    s: Settings, models: Sequence[str], metadata: Mapping[str, Any], each_round: Callable[[], None]
) -> dict[str, Any]:
    """Training, by model. `each_round` measures the machine, and keeps its best in `about`."""
    found = {}
    for model in models:
        mine: Settings = {**s, "model": model}
        entries = {name: (f"{name}_train", mine) for name in ("recipe", "seglab", "bare")}
        if metadata["bf16_gflops"] is not None:
            entries["bf16"] = ("seglab_train", {**mine, "precision": BF16})
        found[model] = compete(f"train {model}", s["rounds"], entries, each_round)
    return {
        model: train_figures(
            {name: one["train"] for name, one in every.items()},
            every["bare"]["about"]["flops"],
            metadata["fp32_gflops"],
        )
        for model, every in found.items()
    }


def measure_predict(s: Settings, models: Sequence[str]) -> dict[str, Any]:
    """Prediction, by model: from a native picture to its mask, and the network alone."""
    report = {}
    for model in models:
        mine = {**s, "model": model}
        entries = {name: (f"{name}_predict", mine) for name in ("recipe", "seglab")}
        recipe, ours = compete(f"predict {model}", s["rounds"], entries).values()
        report[model] = against(recipe["mask"], ours["mask"])
        report[model] |= against(recipe["net"], ours["net"], "net_")
    return report


def measure_load(s: Settings, train: Mapping[str, Any]) -> dict[str, Any]:
    """Reading cases, and feeding batches against what the fastest network in `train` takes."""
    entries = {name: (f"{name}_load", s) for name in ("recipe", "seglab")}
    recipe, ours = compete("load", s["rounds"], entries).values()
    figures = against(recipe["read"], ours["read"], "cache_", "cases")
    figures["recipe_cases_per_second"] = figures.pop("recipe_cache_cases_per_second")
    feed = 1 / median(ours["feed"])
    taken = max((one["images_per_second"] for one in train.values()), default=None)
    over = None if taken is None else feed / taken
    return figures | {"feed_images_per_second": feed, "feed_over_network": over}


def measure_start(s: Settings) -> dict[str, float]:
    """Seconds of commands, as whoever types them waits."""
    from tqdm import tqdm

    train, moment = [sys.executable, str(SCRIPTS / "train.py")], Path(s["folder"], "first_step")
    hook = f"{{_target_: benchmark.first_step, _partial_: true, file: {moment.name}}}"
    target = "_target_: lightning.pytorch.callbacks.LambdaCallback"
    first = f"+callbacks.first={{{target}, on_train_batch_end: {hook}}}"
    commands = {
        "help_seconds": ([*train, "--help"], 0),
        "config_error_seconds": ([*train, "data.no_such_key=1"], 1),
        "first_step_seconds": ([*train, *_overrides(s), first], 0),
        "import_seconds": ([sys.executable, "-c", "import torch, lightning"], 0),
    }
    path = os.pathsep.join([str(SCRIPTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    options: Any = {"cwd": s["folder"], "env": {**os.environ, "PYTHONPATH": path}}
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    turns = [*commands.items()] * s["rounds"]
    for name, (command, code) in tqdm(turns, "start", disable=None, leave=False):
        began = time.time()
        done = subprocess.run(command, capture_output=True, text=True, **options)
        ended = time.time()
        if done.returncode != code:
            raise RuntimeError(f"{name}: exit code {done.returncode}\n{done.stderr}")
        if name == "first_step_seconds":  # leaving takes time too
            ended = float(moment.read_text())
        seconds[name].append(ended - began)
    return {name: median(values) for name, values in seconds.items()}


def table(report: Mapping[str, Any]) -> str:
    """What was found: a line a figure, in images or cases a second unless it says otherwise."""
    metadata, s = report["machine"], report["settings"]
    processor = metadata["cuda"][0] if metadata["device"] == "cuda" else metadata["processor"]
    bf16 = "" if metadata["bf16_gflops"] is None else f", {metadata['bf16_gflops']:.0f} bf16"
    lines = [
        f"{processor}, {metadata['cores']} cores, {metadata['threads']} threads; "
        f"{metadata['fp32_gflops']:.0f} GFLOP/s fp32{bf16}",
        f"seglab {metadata['seglab']}, torch {metadata['torch']}; {s['cases']} cases, {s['size']} px, "
        f"batch {s['batch_size']}; medians of {s['rounds']} rounds in turns",
        f"{'images or cases a second':38}{'recipe':>10}{'seglab':>10}   times faster (min to max)",
    ]

    def pair(name: str, one: Mapping[str, Any], prefix: str = "", unit: str = "images") -> None:
        recipe = one.get(f"recipe_{prefix}{unit}_per_second", one.get(f"recipe_{unit}_per_second"))
        ratio, (low, high) = one[f"{prefix}ratio"], one[f"{prefix}ratio_range"]
        times = f"{ratio:6.2f} ({low:.2f} to {high:.2f})"
        lines.append(f"{name:38}{recipe:10.4g}{one[f'{prefix}{unit}_per_second']:10.4g}   {times}")

    def single(name: str, value: float, unit: str = "") -> None:
        lines.append(f"{name:48}{value:10.4g} {unit}".rstrip())

    for model, one in report.get("train", {}).items():
        pair(f"train {model}, 32-true", one, "fp32_")
        if one["precision"] == BF16:
            pair(f"train {model}, {BF16}", one)
        single(f"train {model}, bare loop", one["bare_images_per_second"])
        single(f"train {model}, Lightning's overhead", 100 * one["lightning_overhead"], "%")
        single(f"train {model}, of the fp32 matrix rate", 100 * one["matrix_rate_share"], "%")
    for model, one in report.get("predict", {}).items():
        pair(f"predict {model}, picture to mask", one)
        pair(f"predict {model}, network alone", one, "net_")
    if "load" in report:
        pair("load: read and resize", report["load"], "cache_", "cases")
        single("load: batches fed", report["load"]["feed_images_per_second"])
        if report["load"]["feed_over_network"] is not None:
            single("load: fed over trained", report["load"]["feed_over_network"], "times")
    for name, seconds in report.get("start", {}).items():
        what = name.removesuffix("_seconds").replace("_", " ")
        single(f"start: {what.replace('import', 'import torch, lightning')}", seconds, "s")
    return "\n".join(lines)


def benchmark(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Measures what was asked for, in a folder of its own; returns plain containers."""
    from seglab.data.cache import open_cache
    from seglab.data.layouts import find_cases
    from seglab.data.splits import make_split
    from seglab.data.synthetic import synthetic_cases

    root, cache_dir = Path(args.data or Path(folder, "synthetic")).absolute(), Path(folder, "cache")
    if args.data is None:
        drawn = max(20, 3 * args.batch_size * (STEPS + 1) // 2)
        if drawn > 999:
            raise InputError(
                f"--batch-size {args.batch_size}: needs more cases than 999; use --data"
            )
        synthetic_cases(root, n=drawn, seed=0)
    cases = find_cases(root)
    cache = open_cache(cases, args.size, cache_dir)
    # As the baseline splits.
    split = make_split(cases, cache.groups, cache.sha256, val=0.1, test=0.1, seed=42)
    if "train" in args.parts and len(split.train) < args.batch_size * (STEPS + 1):
        raise InputError(
            f"--batch-size {args.batch_size}: a turn takes {STEPS + 1} batches, and of the "
            f"{len(cases)} cases of {root} {len(split.train)} are trained on; use a smaller one"
        )
    own = {key: getattr(args, key) for key in ("size", "batch_size", "rounds")}
    s = {**own, "folder": folder, "root": str(root), "cache_dir": str(cache_dir)}
    s |= {"model": args.model[0], "precision": "32-true", "device": args.device}
    settings = own | {"steps": STEPS, "data": args.data or "synthetic", "cases": len(cases)}
    report: dict[str, Any] = {"settings": settings}
    with started("machine", s) as turn:
        metadata = report["machine"] = turn() | {"fp32_gflops": None, "bf16_gflops": None}
        s["device"] = metadata["device"]

        def measure_machine() -> None:
            for name, seconds in turn().items():
                rate = 2 * EDGE**3 / seconds / 1e9
                metadata[f"{name}_gflops"] = max(rate, metadata[f"{name}_gflops"] or 0)

        measure_machine()
        if "train" in args.parts:
            report["train"] = measure_train(s, args.model, metadata, measure_machine)
    if "predict" in args.parts:
        report["predict"] = measure_predict(s, args.model)
    if "load" in args.parts:
        report["load"] = measure_load(s, report.get("train", {}))
    if "start" in args.parts:
        report["start"] = measure_start(s)
    return report


@one_line_errors
def main() -> None:
    """Parses, measures, prints a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("parts", metavar="PART", nargs="*", help=f"of {', '.join(PARTS)}; default: all")
    add("--data", metavar="ROOT", help="PH2, or any supported layout; default: drawn cases")
    add("--model", action="append", choices=("unet", "segnet"), help="default: both")
    add("--size", type=int, help="edge of the network's input, pixels (256)")
    add("--batch-size", type=int, help="images of a training step (32)")
    add("--rounds", type=int, default=5, help="turns of each contender (%(default)s)")
    add("--threads", type=int, help="of each process; default: what torch takes")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    add("--quick", action="store_true", help="train alone, 128 px, batch 8")
    add("--json", metavar="FILE", help="where to leave the same for programs")
    add("--contender", choices=[*CONTENDERS], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender is not None:
        return contend(args.contender)

    from seglab.core.files import write_json
    from seglab.core.validation import check_number

    for part in args.parts:
        if part not in PARTS:
            parser.error(f"{part}: expected any of {', '.join(PARTS)}")
    args.parts = args.parts or (["train"] if args.quick else [*PARTS])
    args.model = args.model or ["unet", "segnet"]
    for name in ("size", "batch_size", "rounds", "threads"):
        if getattr(args, name) is not None:
            check_number(f"--{name.replace('_', '-')}", getattr(args, name), int, 1)
    args.size = args.size or (128 if args.quick else 256)
    args.batch_size = args.batch_size or (8 if args.quick else 32)
    if args.size % 16:
        raise InputError(f"--size={args.size}: expected a multiple of 16, as the networks take")
    if args.threads is not None:
        os.environ |= {"OMP_NUM_THREADS": str(args.threads)}
    if args.json is not None and (
        Path(args.json).is_dir() or not Path(args.json).absolute().parent.is_dir()
    ):
        raise InputError(f"--json {args.json}: expected a file in a folder that is there")
    with tempfile.TemporaryDirectory() as folder:
        report = benchmark(args, folder)
    print(table(report))
    if args.json is not None:
        write_json(args.json, report)


if __name__ == "__main__":
    main()
