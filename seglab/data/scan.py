"""What is found in the folder of a data set."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from seglab.data.cases import Case


@dataclass
class Scan:
    """Cases and defects found in a folder.

    Attributes:
        root: The folder.
        layout: Name of its layout, as in `conf/data/`.
        cases: Cases with an image and a mask, sorted by id.
        errors: A line for each defect because of which training refuses the data.
        warnings: A line for each other defect.
    """

    root: Path
    layout: str
    cases: list[Case] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        """Formats the findings for a terminal."""
        content = self.to_json()
        lines = [f"{self.root}: {len(self.cases)} good cases of layout {self.layout}"]
        lines += [f"  {n:4} {diagnosis}" for diagnosis, n in content["diagnoses"].items()]
        lines.append(f"patients named: {content['patients']}")
        for level in ("errors", "warnings"):
            lines.append(f"{level}: {len(content[level]) or 'none'}")
            lines += [f"  {' '.join(message.split())}" for message in content[level]]
        # File names need not be UTF-8.
        return "\n".join(lines).encode("utf-8", "backslashreplace").decode()

    def to_json(self) -> dict[str, Any]:
        """Converts the findings to plain containers; cases become their ids."""
        return {
            "root": str(self.root),
            "layout": self.layout,
            "cases": [case.id for case in self.cases],
            "diagnoses": dict(sorted(Counter(case.diagnosis for case in self.cases).items())),
            "patients": len({case.patient for case in self.cases} - {""}),
            "errors": self.errors,
            "warnings": self.warnings,
        }
