"""What benchmark.py measures: training, prediction and reading, by the recipe and by seglab.

Each contender is a function that prepares its work and returns a function that measures it once.
It runs in a process of its own, because memory allocator, threads and determinism belong to a
process.
"""

import io
import itertools
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from seglab.core.errors import InputError

# Heavy imports are inside the functions: the recipe's processes import only what they use.
STEPS = 2  # timed in a turn, after as many that are not
IMAGES = 4  # predicted in a turn, after as many that are not timed
CASES = 16  # read in a turn, after as many that are not timed

Settings = Mapping[str, Any]
Turn = Callable[[], float]  # measures once: seconds of one image or case


def measure(device: str, times: int, work: Callable[[], int]) -> Turn:
    """Return a function that measures `work`, after it has warmed up.

    Args:
        device: 'cpu' or 'cuda'.
        times: How often to work in a turn, after as many times that are not timed, because caches
            and memory grow cold while others have their turns.
        work: Returns the number of images or cases that it processed.
    """

    def take_turn() -> float:
        for _ in range(times):
            work()
        began = clock(device)
        done = sum(work() for _ in range(times))
        return (clock(device) - began) / done

    take_turn()
    return take_turn


def clock(device: str) -> float:
    """Return the time in seconds, once everything started before is computed."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def recipe_train(s: Settings) -> Turn:
    """Measure the recipe's loop over a list of tensors."""
    import torch
    from recipe import make_network, train_steps
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
    steps = train_steps(make_network(s["model"]), loader, s["device"])

    def train() -> int:
        next(steps)
        return s["batch_size"]

    return measure(s["device"], STEPS, train)


def seglab_train(s: Settings) -> Turn:
    """Measure Lightning as `seglab.training` uses it: a turn is an epoch of a few steps.

    Timed from the end of the first step to the end of the last one, so that batches, metrics and
    logging count; validation and checkpoints, once per epoch, do not.
    """
    from lightning.pytorch.callbacks import LambdaCallback

    run, ends = build_run(s), [0.0] * (STEPS + 1)

    def end_step(trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        ends[index] = clock(s["device"])

    hook = LambdaCallback(on_train_batch_end=end_step)
    run.trainer.callbacks.append(hook)  # after all others

    def take_turn() -> float:
        run.trainer.fit_loop.max_epochs = run.trainer.current_epoch + 1
        run.trainer.fit(run.task, run.data)
        return (ends[-1] - ends[0]) / (STEPS * s["batch_size"])

    take_turn()
    return take_turn


def recipe_predict(s: Settings) -> Turn:
    """Measure prediction from native image to native mask with the recipe's tools."""
    from recipe import make_network, predict_mask

    net, device = make_network(s["model"]).to(s["device"]).eval(), s["device"]
    return measure_prediction(s, lambda image: predict_mask(net, image, s["size"], device))


def seglab_predict(s: Settings) -> Turn:
    """Measure prediction from native image to native mask with seglab."""
    from seglab import networks
    from seglab.core.memory import keep_freed_memory
    from seglab.inference.predictor import make_predictor

    keep_freed_memory()
    net = {"unet": networks.UNet, "segnet": networks.SegNet}[s["model"]]()
    predictor = make_predictor(net, s["size"], s["device"])
    return measure_prediction(s, lambda image: predictor(image).prob > 0.5)


def measure_prediction(s: Settings, predict: Callable[[Any], Any]) -> Turn:
    """Measure a function from image to mask on images of the data set."""
    from seglab.data.images import read_image
    from seglab.data.layouts import find_cases

    images = itertools.cycle([read_image(case.image) for case in find_cases(s["root"])[:IMAGES]])

    def predict_next() -> int:
        predict(next(images))
        return 1

    return measure(s["device"], IMAGES, predict_next)


def recipe_load(s: Settings) -> Turn:
    """Measure reading and resizing case by case, as the recipe does at every start."""
    from recipe import read_case

    from seglab.data.layouts import find_cases

    cases = find_cases(s["root"])[:CASES]
    return measure("cpu", 1, lambda: len([read_case(c.image, c.mask, s["size"]) for c in cases]))


def seglab_load(s: Settings) -> Turn:
    """Measure building a new cache, files hashed."""
    from seglab.core.memory import keep_freed_memory
    from seglab.data.cache import open_cache
    from seglab.data.layouts import find_cases

    keep_freed_memory()
    cases = find_cases(s["root"])[:CASES]

    def read() -> int:
        cache_dir = tempfile.TemporaryDirectory(dir=s["folder"])
        with cache_dir as folder, redirect_stderr(io.StringIO()):  # its progress bars
            open_cache(cases, s["size"], folder)
        return len(cases)

    return measure("cpu", 1, read)


def build_run(s: Settings) -> Any:
    """Build data, task and trainer of the baseline, as `seglab.training.train` does."""
    import logging

    from seglab import compose
    from seglab.config import check_config
    from seglab.core.memory import keep_freed_memory
    from seglab.runs.overrides import quote_value
    from seglab.training.build import build
    from seglab.training.train import seed_everything

    keep_freed_memory()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    run_dir = Path(tempfile.mkdtemp(dir=s["folder"]))
    overrides = [
        f"model={s['model']}",
        f"trainer={'gpu' if s['device'] == 'cuda' else 'cpu'}",
        f"trainer.precision={s['precision']}",
        f"trainer.limit_train_batches={STEPS + 1}",
        "trainer.limit_val_batches=1",
        "data.cases._target_=seglab.data.layouts.find_cases",
        *(f"data.{key}={quote_value(s[key])}" for key in ("root", "cache_dir")),
        *(f"data.{key}={s[key]}" for key in ("size", "batch_size")),
        f"run_dir={quote_value(run_dir)}",
    ]
    config = check_config(compose(overrides))
    seed_everything(config["seed"])
    return build(config, run_dir)


class Contender:
    """A process that builds what it measures, warms up, and measures in turns."""

    def __init__(self, function: Callable[[Settings], Turn], settings: Settings) -> None:
        self.name = function.__name__
        context = multiprocessing.get_context("spawn")
        self._connection, remote = context.Pipe()
        arguments = (function, settings, remote)
        self._process: Any = context.Process(target=run_contender, args=arguments, daemon=True)
        self._process.start()
        remote.close()
        self.take_turn()

    def take_turn(self) -> float:
        """Return what the process measures in this turn."""
        try:
            self._connection.send(None)
            return self._connection.recv()
        except (EOFError, OSError):
            self._process.join()
            raise InputError(
                f"{self.name} ended with exit code {self._process.exitcode}; if it was killed (-9) "
                "use a smaller --batch-size or --size"
            ) from None

    def kill(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()


def run_contender(function: Callable[[Settings], Turn], s: Settings, connection: Any) -> None:
    """Measure whenever the connection asks for it: the main function of a `Contender`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the benchmark, which kills this
    sys.stdout = sys.stderr
    take_turn = function(s)
    try:
        while True:
            connection.recv()
            connection.send(take_turn())
    except (EOFError, OSError):
        os._exit(0)  # the benchmark has ended
