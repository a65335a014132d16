"""Model card of a run: fills model_card.md from the run's files. Imports no torch.

The sections follow Mitchell et al., Model Cards for Model Reporting (2019); the front matter holds
what the Hugging Face Hub reads, scores included.
"""

import json
import re
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import yaml

from seglab.analysis.grouping import make_rows
from seglab.analysis.notes import MIN_CASES_FOR_INTERVAL, NARROW_INTERVAL_CAUTION
from seglab.analysis.rows import Row, Score, format_score
from seglab.core.commands import format_command, quote_for_shell
from seglab.data.splits import read_split
from seglab.metrics.scores import DEFAULT_METRICS, METRIC_DEFINITIONS, METRICS
from seglab.runs.records import Run, read_run
from seglab.runs.tables import select_scores

WORST_CASES = 5
PH2_LIMITS = (
    "PH2 comes from one hospital, one dermoscope at one magnification, and fair skin (phototypes "
    "II and III; Mendonça et al. 2013). Other cameras, darker skin and other diagnoses are not in "
    "it."
)
SYNTHETIC_LIMITS = "Trained and tested on synthetic images: scores say nothing about patients."
UNKNOWN_LIMITS = "The run does not record which people, places and cameras the images come from."


def make_model_card(run_dir: Path) -> str:
    """Makes the model card of a scored run from its files: Markdown with YAML front matter.

    Nothing in the run directory is trusted. Raises an InputError if it has no scores yet, or a
    file is missing or damaged.
    """
    run = read_run(run_dir, is_scored=True)
    values = {
        "front_matter": _make_front_matter(run),
        "run_shell": quote_for_shell(run.label),
        "run_python": json.dumps(run.label, ensure_ascii=False),
    }
    values |= {n: format_command(n) for n in ("predict", "export", "evaluate", "reproduce")}
    values |= _describe_run(run) | _describe_scores(run)
    return Template(Path(__file__).with_suffix(".md").read_text("utf-8")).substitute(values)


def _make_front_matter(run: Run) -> str:
    """YAML in the format of the Hugging Face Hub's model cards."""
    license = {"license": "other", "license_name": "terms-of-the-training-data"}
    is_from_scratch = _pretrained_weights(run) == "none" and not run.provenance.init
    if {*_data_limits(run).values()} == {SYNTHETIC_LIMITS} and is_from_scratch:
        license = {"license": "mit"}
    results = []
    for row in (row for row in make_rows([run])[0] if row.finished_runs):
        dataset, scores = row.set or _dataset(run), select_scores(run.values, "test", row.set)
        result = {
            "task": {"type": "image-segmentation"},
            "dataset": {
                "type": re.sub(r"\W+", "-", dataset.lower()),
                "name": dataset,
                "split": "test",
                "args": {"cases": row.n_cases, "resolution": "native", "split": _split(run)},
            },
            "metrics": [{"type": name, "name": name, "value": scores[name]} for name in METRICS],
        }
        results.append(result)
    name = f"{_class_name(run, 'model')} on {_dataset(run)}"
    front_matter = license | {
        "library_name": "seglab",
        "pipeline_tag": "image-segmentation",
        "tags": ["semantic-segmentation", "pytorch"],
        "metrics": ["dice", "iou", "accuracy"],
        "model-index": [{"name": name, "results": results}],
    }
    return yaml.safe_dump(front_matter, sort_keys=False, allow_unicode=True).rstrip()


def _pretrained_weights(run: Run) -> str:
    """SHA-256 of their file, the name by which SMP downloads them, or 'none'."""
    name = run.settings.get("model.encoder_weights", "null")
    return run.provenance.weights or (name if name != "null" else "none")


def _describe_run(run: Run) -> dict[str, Any]:
    """Values of the placeholders on model, data, training and provenance."""
    provenance, settings = run.provenance, run.settings
    versions = [f"{k} {provenance.versions[k]}" for k in ("seglab", "torch", "lightning", "python")]
    texts = {
        "network": _class_name(run, "model"),
        "dataset": _dataset(run),
        "seed": run.seed,
        "model": _constructor(run, "model"),
        "weights": _pretrained_weights(run),
        "size": settings["data.size"],
        "classes": ", ".join(run.classes),
        "inference": _constructor(run, "inference"),
        "cases_reader": f"{_constructor(run, 'data.cases')}; {_constructor(run, 'data.sets')}",
        "split": _split(run),
        "data_hash": provenance.data,
        "loss": _constructor(run, "task.loss"),
        "optimizer": _constructor(run, "task.optimizer"),
        "lr_scheduler": _constructor(run, "task.lr_scheduler") or "constant",
        "augmentation": _constructor(run, "data.augment") or "none",
        "trainer": _constructor(run, "trainer"),
        "batch_size": settings["data.batch_size"],
        "monitor": settings["monitor"],
        "experiment": settings["name"],
        "versions": ", ".join(versions),
        "commit": provenance.commit or "none",
        "started": provenance.started[:10],
        "device": f"{provenance.device}: {provenance.machine}",
    }
    mask = f"probability above {run.threshold:g}"
    return {name: code_span(text.removesuffix("; ")) for name, text in texts.items()} | {
        "mask": mask if len(run.classes) == 1 else "class of the highest probability",
        "parameters": f"{run.costs['parameters']:,.0f}",
        "multiply_adds": f"{run.costs['multiply_adds'] * 1e-9:.3g}",
        "training_seconds": f"{run.costs['training_seconds']:,.0f}",
        "cases": ", ".join(f"{len(ids):,} {part}" for part, ids in run.ids.items()),
        "best_epoch": run.best_epoch,
        "changes": ", with uncommitted changes" if provenance.dirty else "",
        "limits": " ".join(
            f"{code_span(name)}: {text}" if name else text
            for name, text in _data_limits(run).items()
        ),
        "init": _describe_init(provenance.init),
    }


def _describe_init(init: Mapping[str, str]) -> str:
    """Return a paragraph on the weights that training started from; empty if there were none."""
    if not init:
        return ""
    name = Path(init["path"]).name
    text = (
        f"\nTraining started from the weights of {code_span(init.get('run', name))}, trained on "
        f"{code_span(init['data'])} (SHA-256 of the checkpoint: {code_span(init['sha256'])})."
    )
    if init["new"] != "[]":
        text += f" Started anew, as the classes differ: {code_span(init['new'])}."
    if init["trained_on"] == "unknown":
        text += " On which cases these were trained is unknown: test cases may be among them, and "
        text += "the scores above too high."
    return f"{text}\n"


def _describe_scores(run: Run) -> dict[str, str]:
    """Values of the placeholders that hold scores."""
    rows = [row for row in make_rows([run])[0] if row.finished_runs]
    headlines, bodies = zip(*(_describe_set(row, run.baselines) for row in rows), strict=True)
    sizes = Counter((row.set, case.diagnosis) for row in rows for case in row.cases)
    is_narrow = min(sizes.values()) < MIN_CASES_FOR_INTERVAL
    return {
        "n_test": f"{len(run.tested):,}",
        "headlines": "\n\n".join(headlines),
        "caution": f"\n**Caution:** {NARROW_INTERVAL_CAUTION}.\n" if is_narrow else "",
        "scores": "\n\n".join(bodies),
    }


def _describe_set(row: Row, all_baselines: Mapping[str, dict[str, float]]) -> tuple[str, str]:
    """Return a sentence on the scores of a data set, and its tables, as Markdown."""
    scores, metric = row.scores(METRICS), "dice_per_image"
    baselines = {name: select_scores(v, row.set) for name, v in all_baselines.items()}
    metric_rows = [
        [
            code_span(name),
            format_score(name, scores[name]),
            *(format_score(name, Score(values[name])) for values in baselines.values()),
            METRIC_DEFINITIONS[name],
        ]
        for name in METRICS
    ]
    diagnoses = Counter(case.diagnosis for case in row.cases)
    groups = {
        f"class {name}": row.scores(DEFAULT_METRICS, class_name=name) for name in row.classes[1:]
    }
    for name, n in diagnoses.most_common():
        groups[f"diagnosis {name or 'unknown'} ({n})"] = row.scores(DEFAULT_METRICS, name)
    group_rows = [
        [code_span(group), *(format_score(name, values[name]) for name in DEFAULT_METRICS)]
        for group, values in groups.items()
    ]
    dice = row.by_case(metric)
    worst = sorted((value, case) for case, value in dice.items())[:WORST_CASES]
    of_set = f" of {code_span(row.set)}" if row.set else ""
    n_below = sum(value < 0.8 for value in dice.values())
    worst_cases = ", ".join(f"{code_span(case.id)} {value:.3f}" for value, case in worst)
    baselines_dice = (f"{code_span(name)} {v[metric]:.3f}" for name, v in baselines.items())
    headline = (
        f"Dice per image on {row.n_cases:,} test cases{of_set}: "
        f"{format_score(metric, scores[metric])}. Trivial baselines: {', '.join(baselines_dice)}."
    )
    body = [
        *([f"### Test cases{of_set}"] if row.set else []),
        _table(["metric", "this network", *map(code_span, baselines), "definition"], metric_rows),
        _table(["group (cases)", *DEFAULT_METRICS], group_rows),
        f"Dice of single cases: median {statistics.median(dice.values()):.3f}, below 0.8 in "
        f"{n_below}. The worst: {worst_cases}.",
    ]
    return headline, "\n\n".join(body)


def _split(run: Run) -> str:
    file = run.settings.get("data.split.file", "null")
    if file != "null":
        return Path(file).name
    part = f"fold {run.fold} of {run.folds} (from 0)" if run.fold else "holdout"
    if run.sets:
        part = read_split(run.paths.split).protocol
    return f"{part}, stratified by diagnosis, split seed {run.settings.get('data.split.seed')}"


def _dataset(run: Run) -> str:
    return ", ".join(run.sets) or Path(run.settings.get("data.root", "")).name or "unknown"


def _data_limits(run: Run) -> dict[str, str]:
    """What the images of each data set stand for, by the set's name."""
    limits = {}
    for name in run.sets or ("",):

        def read(key: str, name: str = name) -> str:
            return run.settings.get(f"data.sets.{name}.{key}", run.settings.get(f"data.{key}", ""))

        # Other data may be in PH2's layout.
        is_ph2 = read("cases.layout") in ("ph2", "") and "ph2" in Path(read("root")).name.lower()
        limits[name] = PH2_LIMITS if is_ph2 else UNKNOWN_LIMITS
        if read("cases._target_").endswith(".synthetic_cases"):
            limits[name] = SYNTHETIC_LIMITS
    return limits


def _class_name(run: Run, key: str) -> str:
    return run.settings.get(f"{key}._target_", "").rpartition(".")[2]


def _constructor(run: Run, key: str) -> str:
    """A config section as a call, e.g. `Adam(lr=0.001)`; without a target, its arguments."""
    arguments = {
        # Of absolute paths only the last part: folders may name people.
        name.removeprefix(f"{key}."): Path(value).name if value.startswith("/") else value
        for name, value in run.settings.items()
        if name.startswith(f"{key}.") and value not in ("{}", "null")
    }
    skipped = ("_target_", "_partial_")
    text = ", ".join(f"{k}={v}" for k, v in arguments.items() if k not in skipped)
    name = _class_name(run, key)
    return f"{name}({text})" if name else text


def code_span(text: str) -> str:
    """Formats untrusted text as Markdown code; text that could end the code becomes entities."""
    if not text or re.fullmatch(r"[^`|\\<>&]+", text):
        return text and f"`{text}`"
    # GitHub makes a link of www. in any text.
    return re.sub(r"[^\w .+-]|_|(?<=www)\.", lambda m: f"&#{ord(m[0])};", text, flags=re.I)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, [":--"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
