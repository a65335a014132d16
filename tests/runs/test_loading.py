"""Configs of untrusted runs: only plain values and allowed names."""

import json
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.spoil import BEST, change_config, change_stored_config, put_at

from seglab.core.errors import InputError
from seglab.runs.loading import ALLOWED_TARGETS, check_targets, parse_config

FIND = "seglab.data.layouts.find_cases"
NAMES = (
    "os.system",
    "builtins.eval",
    "torch.hub.load",
    "torch.optim.adam.Adam",  # the same class: the list is of names
    "torch.optim.Adam\n",
    "seglab.networks.UNet.__init__.__globals__",
    "seglab.core.files.write_atomic",
    "",
    None,
    ["os.system"],
    {"_target_": "os.system"},
)


def test_names_are_compared_as_they_are(run: Path) -> None:
    config = parse_config(run / "config.yaml")
    check_targets(config, "config.yaml")
    for name in NAMES:
        for place in ("x", "model", "task.optimizer"):
            changed = json.loads(json.dumps(config))
            put_at(place, {"_target_": name})(changed)
            with pytest.raises(InputError, match=r"^config\.yaml: [^\n]*$"):
                check_targets(changed, "config.yaml")


PLACES = (
    *("model", "model._args_", "task.optimizer", "callbacks.x", "data.cases", "data.cases.root"),
    *("logger.x", "trainer.strategy", "unused"),
)


@pytest.mark.parametrize("file", ["config.yaml", BEST])
@pytest.mark.parametrize("place", PLACES)
def test_code_is_refused_and_not_run_wherever_it_is_named(
    place: str, file: str, run: Path, marker: Path, refuses: Callable[..., None]
) -> None:
    call = {"_target_": "os.system", "_args_": [f"touch {marker}"]}
    call |= {"_partial_": True, "_recursive_": False, "_convert_": "all"}
    change_stored_config(run, file, put_at(place, call))
    refuses(run, file)


def test_every_name_of_the_list_is_trusted_in_its_own_place_only() -> None:
    for place, names in ALLOWED_TARGETS.items():
        for name in names:
            node: Any = {"_target_": name}
            for section in reversed(place.replace("*", "mine").split(".")):
                node = {section: node}
            check_targets(node, "x")
            for moved in ({"x": node}, {"x": {"_target_": name}}, [node]):
                with pytest.raises(InputError, match=re.escape(name)):
                    check_targets(moved, "x")


@pytest.mark.parametrize("file", ["config.yaml", BEST])
@pytest.mark.parametrize(
    "text", ["${oc.create:{_target_: os.abort}}", "${oc.env:HOME}", "a${model}b", "${", "???"]
)
def test_interpolations_are_refused(
    text: str, file: str, run: Path, refuses: Callable[..., None]
) -> None:
    for key in ("data.cases", "model.in_channels", "x"):
        whole = (run / file).read_bytes()
        change_stored_config(run, file, put_at(key, text))
        refuses(run, file)
        (run / file).write_bytes(whole)
    change_stored_config(run, file, lambda config: config.update({text: 1}))
    refuses(run, file, "interpolation")


def laughs(form: str) -> str:
    lines = ["a0: &a0 {ha: 1}"]
    for i in range(12):
        references = form.format([f"*a{i}"] * 9).replace("'", "")
        lines.append(f"a{i + 1}: &a{i + 1} {references}")
    return "\n".join(lines)


YAML = {
    "code": "x: !!python/object/apply:os.system ['touch RAN']",
    "bytes": "x: !!binary aGVsbG8=",
    "references": laughs("{}"),
    "merged keys": laughs("{{<<: {}}}"),  # which PyYAML before 6.0.4 copies when it loads
    "deep": "x: " + "[" * 100_000,
    "wide": "x: [" + "a," * 60_000 + "]",
    "long": "x: " + "a" * 2**21,
}


@pytest.mark.parametrize("kind", YAML)
def test_yaml_that_is_not_a_plain_config_is_refused_at_once(
    kind: str, run: Path, marker: Path, refuses: Callable[..., None]
) -> None:
    file = run / "config.yaml"
    file.write_text(file.read_text() + "\n" + YAML[kind].replace("RAN", str(marker)) + "\n")
    start = time.process_time()
    refuses(run, "config.yaml")
    assert time.process_time() - start < 10


@pytest.mark.parametrize(
    ("key", "values"),
    {
        "data": (None, [], "x"),
        "data.root": (None, 5, ["a"], {}),
        "data.size": (None, "32", 0, -32, 32.0, True, 2**40, [32]),
        "data.cases": (None, "ph2", [], {}, {"_target_": FIND}),
        "data.cases._partial_": (False, "x", 1),
        "data.sets": (3, {"a": 3}, {"a": {"root": "x", "cases": {"_target_": FIND}}}),
        "data.split": (None, 5, {}),
        "data.split.val": ("x", None, -1),
        "data.more": (1,),
        "inference": (None, []),
        "inference.tta": (None, 1),
    }.items(),
)
def test_a_wrong_value_is_refused_by_its_key(
    key: str, values: tuple, run: Path, refuses: Callable[..., None]
) -> None:
    whole = (run / "config.yaml").read_bytes()
    for value in values:
        change_config(run, put_at(key, value))
        refuses(run, "config.yaml", key.removesuffix("._partial_"))
        (run / "config.yaml").write_bytes(whole)


def test_a_trusted_name_is_allowed_anywhere_and_nothing_else() -> None:
    trust = ("lib.Net",)
    check_targets({"x": {"_target_": "lib.Net"}}, "config.yaml", trust)
    for name in ("lib", "lib.Net.__init__", "lib.os.system", "xlib.Net"):
        with pytest.raises(InputError, match=f"--trust {name}$"):
            check_targets({"x": {"_target_": name}}, "config.yaml", trust)
