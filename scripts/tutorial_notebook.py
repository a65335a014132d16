"""Runs tutorial.py as a notebook and writes tutorial.ipynb, which GitHub shows. Takes minutes.

Needs `pip install -e '.[notebook,pretrained]'`.
"""

import base64
import io
import sys
import tempfile
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

TUTORIAL = Path(__file__).with_name("tutorial.py")


def main() -> None:
    """Write the notebook."""
    notebook = jupytext.read(TUTORIAL)
    with tempfile.TemporaryDirectory() as folder:  # where nothing has been trained
        NotebookClient(
            notebook,
            kernel_name="python3",
            record_timing=False,
            coalesce_streams=True,
            resources={"metadata": {"path": folder}},
        ).execute()
    for i, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{i}", {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if keep(output)]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook.metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    nbformat.write(notebook, TUTORIAL.with_suffix(".ipynb"))


def keep(output: Any) -> bool:
    """Return whether to keep an output, which is all but the log of training; shrink figures."""
    if output.get("name") == "stderr":
        if "Warning" in output.text:
            sys.exit(f"the notebook is not written: {output.text}")
        return False
    png = base64.b64decode(output.get("data", {}).get("image/png", ""))
    if len(png) > 100_000:  # photographs
        jpeg = io.BytesIO()
        Image.open(io.BytesIO(png)).convert("RGB").save(jpeg, "JPEG", quality=85)
        output.data = {"image/jpeg": base64.b64encode(jpeg.getvalue()).decode()}
    return True


if __name__ == "__main__":
    main()
