"""docs/first_run.ipynb runs from top to bottom, on fewer images and a tiny network."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "first_run.ipynb"
CELLS = json.loads(NOTEBOOK.read_text())["cells"]
PLAIN = {"jitter_prob": 0.0, "blur_prob": 0.0}  # these take seconds to compile
PARAMETERS = {
    "DRAWN": {"train": 60, "test": 20},
    "SETTINGS": {
        "steps": 2,
        "batch_size": 16,
        "encoder": {"name": "convnet", "channels": (4, 8), "features": 16},
        "heads": {"hidden_size": 8, "output_size": 4},
        "views": {"view1": PLAIN, "view2": PLAIN},
    },
}


def code():
    return [cell for cell in CELLS if cell["cell_type"] == "code"]


def test_it_is_kept_without_outputs():
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code())
    assert [cell["metadata"].get("tags") for cell in code()].count(["parameters"]) == 1


@pytest.mark.filterwarnings("ignore:FigureCanvasAgg is non-interactive")
def test_it_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    names = {}
    for number, cell in enumerate(code()):
        exec(compile("".join(cell["source"]), f"cell {number}", "exec"), names)
        if cell["metadata"].get("tags") == ["parameters"]:
            assert set(PARAMETERS) <= set(names)
            names |= PARAMETERS
    try:
        assert len(plt.get_fignums()) == 3  # images, curves, neighbours
    finally:
        plt.close("all")
    assert names["test_features"].shape == (20, 16)
    assert np.all(np.isfinite(names["test_features"]))
    out = capsys.readouterr().out
    assert "Done: 2 steps." in out and "byol    kNN " in out and "pixels  kNN " in out
    assert Path(tmp_path, "runs", "textures", "export", "model.safetensors").is_file()
