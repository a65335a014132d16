"""The loss of the published recipe, by hand."""

import json
from pathlib import Path

import numpy as np
import torch

from seglab.data.images import read_image
from seglab.data.layouts import find_cases
from seglab.data.masks import read_mask
from seglab.data.resizing import to_network_size
from seglab.runs.checkpoints import load_network


def recipe_loss(run: Path, root: Path) -> float:
    """The mean over a run's test cases, of the weights of its last epoch."""
    net, _ = load_network(run / "checkpoints" / "last.ckpt")
    test = json.loads((run / "splits.json").read_text())["test"]
    losses = []
    for case in find_cases(root):
        if case.id in test:
            image, mask = to_network_size(read_image(case.image), read_mask(case.mask), 32)
            x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
            with torch.no_grad():
                p = torch.sigmoid(torch.sigmoid(net(x)))[0, 0].double().numpy()
            losses.append(-np.where(mask, np.log(p), np.log(1 - p)).mean())
    assert len(losses) == len(test)
    return float(np.mean(losses))
