"""The page about a run: its template is filled with what the other files of this room found."""

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from byol_jax.report import shell, suspects, thumbnails, training, votes
from byol_jax.report.evaluations import Table
from byol_jax.report.features import PIXELS, TRAINED, UNTRAINED, Images
from byol_jax.report.findings import Findings

STEPS = 65_535  # of the coordinates of the map
CLASSES_DRAWN = 30  # of a confusion matrix; of more, only the most confused pairs are listed
PAIRS = 24  # that are open at first
TITLES = {
    TRAINED: "this encoder",
    UNTRAINED: "the same encoder, untrained",
    PIXELS: "raw pixels, shrunk to 32",
}


def render(
    *,
    name: str,
    step: int,
    load: str,
    commands: list[str],
    facts: dict[str, str],
    verdicts: list[training.Verdict],
    curves: list[training.Curve],
    views: bytes | None,
    tables: list[Table],
    notes: list[str],
    shown: Images,
    test: Images | None,
    found: Findings,
    dense: tuple[np.ndarray, np.ndarray, str] | None,
    library: bytes,
) -> bytes:
    """The HTML of a page.

    Args:
      name: of the run.
      step: of the checkpoint.
      load: Python that loads it.
      commands: what a user may type next.
      facts: what was trained, by name.
      verdicts: about health and trend.
      curves: charts of metrics.
      views: the PNG of the pairs of views, if there is one.
      tables: earlier evaluations.
      notes: lines about what is missing or was left out.
      shown: the images of the page.
      test: the test images, if there are any.
      found: about their features.
      dense: of `dense.colours`.
      library: of `shell.plotly`.
    """
    leaked = [] if not found.leaks else [pair.first for pair in found.leaks]
    pictures, names = shown.pictures, shown.names
    if leaked:  # behind the images that are shown
        pictures = np.concatenate([pictures, test.pictures[leaked]])
        names = names + [test.names[index] for index in leaked]
    class_names = list(shown.source.class_names or [])
    drawn = {
        "count": len(shown.names),
        "side": pictures.shape[1],
        "across": thumbnails.ACROSS,
        "names": names,
        "classes": class_names,
        "labels": None if shown.labels is None else _numbers(shown.labels),
        "clusters": _numbers(found.clusters),
        "points": _numbers(np.rint((found.points + 1) / 2 * STEPS)),
        "near": {row: _numbers(near) for row, (near, _) in found.neighbours.items()},
        "similarities": {  # in thousandths, from -1
            row: _numbers(np.rint(1000 * (1 + np.clip(near, -1, 1))))
            for row, (_, near) in found.neighbours.items()
        },
        "curves": [curve._asdict() for curve in curves],
    }
    return shell.fill(
        "page",
        library=library,
        drawn=drawn,
        sheets=[base64.b64encode(sheet).decode() for sheet in thumbnails.sheets(pictures)],
        name=name,
        step=step,
        load=load,
        commands=commands,
        facts=facts,
        verdicts=verdicts,
        curves=curves,
        views=None if views is None else _as_webp(views),
        tables=tables,
        notes=notes,
        shown=shown,
        test=test,
        found=found,
        titles=TITLES,
        names=names,
        classes=class_names,
        confused=[] if found.confusion is None else votes.most_confused(found.confusion),
        drawn_classes=CLASSES_DRAWN,
        leaks=[  # by the places of their pictures
            pair._replace(first=len(shown.names) + number)
            for number, pair in enumerate(found.leaks or [])
        ],
        alike=suspects.ALIKE,
        neighbours=votes.NEIGHBOURS,
        pairs=PAIRS,
        most_pairs=suspects.MOST,
        dense=None if dense is None else _dense(*dense),
    )


def _dense(images: np.ndarray, maps: np.ndarray, layer: str) -> dict[str, Any]:
    pairs = [
        (thumbnails.webp(image, 80), thumbnails.webp(colours, 100))
        for image, colours in zip(images, maps, strict=True)
    ]
    return {"pairs": pairs, "layer": layer, "cells": maps.shape[1:3]}


def _as_webp(png: bytes) -> bytes:
    return thumbnails.webp(np.asarray(Image.open(io.BytesIO(png)).convert("RGB")), 85)


def _numbers(values: np.ndarray) -> str:
    """Integers from 0 to 65,535 as base64, which is smaller than JSON."""
    return base64.b64encode(np.asarray(values).astype("<u2").tobytes()).decode()
