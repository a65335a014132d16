"""Measures the speed of seglab against the recipe that it starts from, on this machine.

python scripts/benchmark.py [train] [predict] [load] [jobs] [--quick] [--data ROOT] [--json FILE]

Recipe and seglab take turns, one working at a time, and what counts is their ratio in each round:
seconds mean little on a shared machine. `jobs` times whole commands, which the recipe has not.
"""

import argparse
import multiprocessing
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import benchmark_jobs
import contenders
from contenders import STEPS, Contender, Settings, Turn

from seglab.cli.errors import one_line_errors
from seglab.core.errors import InputError

PARTS = ("train", "predict", "load")  # and jobs, when it is asked for
BF16 = "bf16-mixed"
Prepare = Callable[[Settings], Turn]


def compete(
    title: str, rounds: int, entries: Mapping[str, tuple[Prepare, Settings]]
) -> dict[str, list[float]]:
    """Let contenders take turns; return the seconds an image of each in every round, by name."""
    from tqdm import tqdm

    processes: dict[str, Contender] = {}
    seconds: dict[str, list[float]] = {name: [] for name in entries}
    try:
        for name, entry in entries.items():
            processes[name] = Contender(*entry)
        for _ in tqdm(range(rounds), title, unit="round", disable=None, leave=False):
            for name, process in processes.items():
                seconds[name].append(process.take_turn())
    finally:
        for process in processes.values():
            process.kill()
    return seconds


def compare(recipe: Sequence[float], seglab: Sequence[float], prefix: str = "") -> dict[str, Any]:
    """Return rates, and how many times faster seglab is: median and range over rounds."""
    ratios = [a / b for a, b in zip(recipe, seglab, strict=True)]
    return {
        f"{prefix}ratio": median(ratios),
        f"{prefix}ratio_range": [min(ratios), max(ratios)],
        f"recipe_{prefix}per_second": 1 / median(recipe),
        f"{prefix}per_second": 1 / median(seglab),
    }


def measure_train(s: Settings, model: str) -> dict[str, Any]:
    """Compare training steps of the recipe with seglab's in fp32, and in bf16 if it is fast."""
    s = {**s, "model": model, "precision": "32-true"}
    entries = {"recipe": (contenders.recipe_train, s), "fp32": (contenders.seglab_train, s)}
    if s["bf16"]:
        entries["bf16"] = (contenders.seglab_train, s | {"precision": BF16})
    recipe, *others = compete(f"train {model}", s["rounds"], entries).values()
    figures: dict[str, Any] = {}
    for prefix, seconds in zip(("fp32_", "bf16_"), others, strict=False):
        figures |= compare(recipe, seconds, prefix)
    return figures


def measure_pair(title: str, s: Settings, recipe: Prepare, seglab: Prepare) -> dict[str, Any]:
    """Compare the recipe with seglab."""
    seconds = compete(title, s["rounds"], {"recipe": (recipe, s), "seglab": (seglab, s)})
    return compare(seconds["recipe"], seconds["seglab"])


def format_report(report: Mapping[str, Any]) -> str:
    """Format the figures as a table."""
    machine, s = report["machine"], report["settings"]
    lines = [
        f"{machine['name']}, {machine['cores']} cores, {machine['threads']} threads; "
        f"seglab {machine['seglab']}, torch {machine['torch']}",
        f"{s['cases']} cases; medians of {s['rounds']} rounds in turns"
        f"{', beside a busy process' * s['busy']}",
    ]
    if {*PARTS} & {*report}:
        lines.append(f"{s['size']} px, batch {s['batch_size']}; images or cases a second:")
        lines.append(f"{'':38}{'recipe':>10}{'seglab':>10}   times faster (min to max)")

    def add(name: str, figures: Mapping[str, Any], prefix: str = "") -> None:
        if f"{prefix}ratio" in figures:
            rates = (figures[f"{who}{prefix}per_second"] for who in ("recipe_", ""))
            low, high = figures[f"{prefix}ratio_range"]
            columns = "".join(f"{rate:10.4g}" for rate in rates)
            lines.append(
                f"{name:38}{columns}   {figures[f'{prefix}ratio']:6.2f} ({low:.2f} to {high:.2f})"
            )

    for model, figures in report.get("train", {}).items():
        add(f"train {model}, 32-true", figures, "fp32_")
        add(f"train {model}, {BF16}", figures, "bf16_")
    for model, figures in report.get("predict", {}).items():
        add(f"predict {model}, image to mask", figures)
    add("load: read and resize", report.get("load", {}))
    if "jobs" in report:
        lines += benchmark_jobs.format_jobs(report["jobs"])
    return "\n".join(lines)


def describe_machine(device: str) -> dict[str, Any]:
    """Describe processor or GPU, versions, and whether it multiplies bfloat16 in hardware."""
    import torch

    import seglab
    from seglab.runs import provenance

    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch finds no CUDA device; leave it out")
    on_cuda = device != "cpu" and torch.cuda.is_available()
    machine = provenance.describe_machine()
    capabilities = torch.cpu.get_capabilities()
    bf16 = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))  # last: ARM
    if on_cuda:
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return {
        "device": "cuda" if on_cuda else "cpu",
        "name": machine["cuda"][0] if on_cuda else machine["processor"],
        **{key: machine[key] for key in ("cores", "threads")},
        "bf16": bf16,
        "seglab": seglab.__version__,
        "torch": torch.__version__,
    }


def benchmark(args: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Measure `args.parts`; temporary files go to `folder`. Returns plain containers."""
    from seglab.data.cache import open_cache
    from seglab.data.layouts import find_cases
    from seglab.data.synthetic import synthetic_cases

    root, cache_dir = Path(args.data or Path(folder, "synthetic")).absolute(), Path(folder, "cache")
    if args.data is None:
        synthetic_cases(root, n=140, seed=0)
    cases = find_cases(root)
    # The baseline trains on 80 % of the cases.
    if "train" in args.parts and 0.75 * len(cases) < args.batch_size * (STEPS + 1):
        raise InputError(
            f"--batch-size {args.batch_size}: a turn needs {STEPS + 1} batches, and {root} has "
            f"{len(cases)} cases; use a smaller one"
        )
    open_cache(cases, args.size, cache_dir)
    machine = describe_machine(args.device)
    settings = {key: getattr(args, key) for key in ("size", "batch_size", "rounds")}
    s = settings | {"folder": folder, "root": str(root), "cache_dir": str(cache_dir)}
    s |= {key: machine[key] for key in ("device", "bf16")}
    settings |= {
        "busy": args.busy,
        "steps": STEPS,
        "data": args.data or "synthetic",
        "cases": len(cases),
    }
    report: dict[str, Any] = {"settings": settings, "machine": machine}
    if "train" in args.parts:
        report["train"] = {model: measure_train(s, model) for model in args.model}
    if "predict" in args.parts:
        pair = contenders.recipe_predict, contenders.seglab_predict
        report["predict"] = {
            model: measure_pair(f"predict {model}", {**s, "model": model}, *pair)
            for model in args.model
        }
    if "load" in args.parts:
        pair = contenders.recipe_load, contenders.seglab_load
        report["load"] = measure_pair("load", s, *pair)
    if "jobs" in args.parts:
        checkout = Path(__file__).absolute().parents[1]
        s["checkouts"] = [str(Path(path).absolute()) for path in (checkout, *args.against)]
        s["overrides"] = args.override
        report["jobs"] = {
            f"{experiment} {model or ''}".strip(): benchmark_jobs.measure_jobs(s, experiment, model)
            for experiment in args.experiment or ["fast"]
            for model in (args.model if experiment == "fast" else [None])
        }
    return report


@contextmanager
def busy_process(wanted: bool) -> Iterator[None]:
    """Keep one core busy while the body runs, as another program of the machine would."""
    process = multiprocessing.get_context("spawn").Process(target=count_forever, daemon=True)
    if wanted:
        process.start()
    try:
        yield
    finally:
        if wanted:
            process.kill()


def count_forever() -> None:
    """Do nothing useful, in a session of its own: Linux shares the cores between sessions."""
    parent = os.getppid()
    os.setsid()
    while os.getppid() == parent:
        pass


@one_line_errors
def main() -> None:
    """Parse the command line, measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "parts",
        metavar="PART",
        nargs="*",
        help="train, predict, load or jobs; default: all but jobs",
    )
    add("--data", metavar="ROOT", help="PH2, or any supported layout; default: 140 drawn cases")
    add("--model", action="append", choices=("unet", "segnet"), help="default: both")
    add("--size", type=int, help="edge of the network's input, pixels (256)")
    add("--batch-size", type=int, help="images of a training step (32)")
    add("--rounds", type=int, default=5, help="turns of each contender (%(default)s)")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="(%(default)s)")
    text = "of jobs: what to train; default: fast"
    add("--experiment", metavar="NAME", action="append", help=text)
    text = "of jobs: a checkout of another version, to take turns with"
    add("--against", metavar="CHECKOUT", action="append", default=[], help=text)
    text = "of jobs: an override, such as trainer.max_epochs=2"
    add("--override", metavar="KEY=VALUE", action="append", default=[], help=text)
    add("--busy", action="store_true", help="while another process keeps one core busy")
    add("--quick", action="store_true", help="train alone, 128 px, batch 8")
    add("--json", metavar="FILE", help="also write the figures to a JSON file")
    args = parser.parse_args()

    from seglab.core.errors import check_number
    from seglab.core.files import write_json

    for part in args.parts:
        if part not in (*PARTS, "jobs"):
            parser.error(f"{part}: expected any of {', '.join(PARTS)}, jobs")
    args.parts = args.parts or (["train"] if args.quick else PARTS)
    args.model = args.model or ["unet", "segnet"]
    args.size = (128 if args.quick else 256) if args.size is None else args.size
    if args.batch_size is None:
        args.batch_size = 8 if args.quick else 32
    for name in ("size", "batch_size", "rounds"):
        check_number(f"--{name.replace('_', '-')}", getattr(args, name), int, 1)
    if args.size % 16:
        raise InputError(f"--size={args.size}: expected a multiple of 16, as the networks need")
    if args.json is not None and not Path(args.json).absolute().parent.is_dir():
        raise InputError(f"--json {args.json}: expected a file in an existing folder")
    # For contenders, and for the resource tracker that warns about killed processes.
    os.environ["PYTHONWARNINGS"] = "ignore"
    with tempfile.TemporaryDirectory() as folder, busy_process(args.busy):
        report = benchmark(args, folder)
    print(format_report(report))
    if args.json is not None:
        write_json(args.json, report)


if __name__ == "__main__":
    main()
