"""`byol-jax report`: the page of a tiny run, and what it refuses."""

import base64
import re

import numpy as np
import pytest
from absl import flags
from commands import imported
from conftest import CLASSES
from html_page import Page

import byol_jax
from byol_jax import data
from byol_jax.errors import CheckpointError, ConfigError, DataError
from byol_jax.evaluate.duplicates import whitening
from byol_jax.report import write
from byol_jax.runs import run as run_lib


@pytest.fixture(scope="module")
def page(page_file):
    return Page(page_file.read_text())


def numbers(text):
    return np.frombuffer(base64.b64decode(text), "<u2")


def test_a_page_is_complete_and_loads_nothing(page):
    assert page.text.startswith("<!doctype html>") and len(page.text) < 4e6
    assert all(url.startswith(("data:", "#")) for url in page.urls)
    assert "default-src 'none'" in page.text and "@import" not in page.text
    assert not page.all("link") and "url(" not in re.search(r"(?s)<style>.*?</style>", page.text)[0]
    assert {"run", "health", "views", "accuracy", "map", "clusters", "look", "maps"} <= {*page.ids}
    assert len(page.ids) == len(set(page.ids))
    for target in [url[1:] for url in page.urls if url.startswith("#")]:
        assert target in page.ids
    assert len(re.findall('class="sheet"', page.text)) == 1


def test_the_file_is_in_the_folder_of_the_run(page_file, parts, run):
    assert page_file == run / "report.html" and not list(run.glob("*.tmp"))
    assert parts == [
        *("checkpoint", "features", "neighbours", "near-duplicates", "clusters", "map"),
        *("colours of maps", "page"),
    ]


def test_a_page_can_be_read_aloud(page):
    assert page.all("html")[0]["lang"] == "en"
    assert [tag for tag, _ in page.tags if tag in ("header", "nav", "main", "footer")] == [
        *("header", "nav", "main", "footer")
    ]
    assert len(page.all("h1")) == 1
    assert len(page.all("table")) == len(page.all("caption"))
    assert all(image["alt"] for image in page.all("img"))
    assert all("scope" in cell for cell in page.all("th"))
    for tag, attributes in page.tags:
        if "data-i" in attributes:
            assert attributes["aria-label"], tag
    for section in page.all("section"):
        assert section.get("aria-label") or section["aria-labelledby"] in page.ids


def test_text_of_the_data_is_no_markup(page):
    assert CLASSES[0] not in page.text and "&lt;script&gt;alert(1)&lt;/script&gt;" in page.text
    assert page.drawn["classes"] == CLASSES


def features_of(run, folder, split):
    source = data.open_source(f"npz:{folder}", split, channels=1)
    seen, _ = next(data.eval_batches(source, batch_size=60, image_size=16))
    return byol_jax.load(run).embed(seen)


def test_neighbours_and_labels_are_those_of_numpy(page, run, folder):
    images, drawn = np.load(folder / "train.npz")["images"], page.drawn
    features = features_of(run, folder, "train")
    units = features / np.linalg.norm(features, axis=1, keepdims=True)
    similarities = units @ units.T
    np.fill_diagonal(similarities, -np.inf)
    near = numbers(drawn["near"]["trained"]).reshape(len(images), 8)
    shown = numbers(drawn["similarities"]["trained"]).reshape(near.shape) / 1000 - 1
    wanted = np.sort(similarities, axis=1)[:, ::-1][:, :8]
    np.testing.assert_allclose(
        np.take_along_axis(similarities, near.astype(int), 1), wanted, atol=1e-5
    )
    np.testing.assert_allclose(shown, wanted, atol=6e-4)
    assert not np.array_equal(near, numbers(drawn["near"]["untrained"]).reshape(near.shape))
    assert numbers(drawn["labels"]).tolist() == np.load(folder / "train.npz")["labels"].tolist()
    assert drawn["count"] == 60 and len(drawn["points"]) > 0


def test_planted_duplicates_and_leaks_are_listed_first(page, run, folder):
    features, test = (features_of(run, folder, split) for split in ("train", "test"))
    rows, test_rows = map(whitening(features), (features, test))
    pairs = np.triu(rows @ rows.T >= 0.9, 1).sum()
    number = "200 or more" if pairs >= 200 else str(pairs)
    assert f"<p>{number} pairs of 60 images.</p>" in page.words
    leaking = (test_rows @ rows.T >= 0.9).any(axis=1).sum()
    assert re.search(rf"{leaking} of 24 images of npz:\S+/test have a near-duplicate", page.words)
    first, second = (
        re.search(r'(?s)<ol class="pairs">\s*<li>(.*?)</li>', part)[1]
        for part in page.words.split("Test images that may")[:2]
    )
    assert re.findall('data-i="(.*?)"', first) == ["7", "40"] and "1.000" in first
    assert re.findall('data-i="(.*?)"', second) == ["60", "10"]
    assert page.drawn["names"][60] == "5"  # the test image


def test_a_page_tells_what_was_trained_and_measured(page, run):
    assert f"byol_jax.load(&#39;{run}&#39;)" in page.words
    for text in ("6 of 6", "convnet at 16 pixels", "the same encoder, untrained", "raw pixels"):
        assert text in page.words
    assert ">knn, step 6<" in page.words and "25.0%" in page.words
    assert "other.json holds no result" in page.words
    assert "Too few evaluations" in page.words
    titles = [curve["title"] for curve in page.drawn["curves"]]
    assert titles[0] == "Loss" and "Accuracy" in titles


def test_without_labels_and_test_images_everything_else_is_there(run, folder, tmp_path):
    output = tmp_path / "page.html"
    write(run, output, source=f"npz:{folder / 'unlabelled'}", images=15, baselines=("none",))
    page = Page(output.read_text())
    assert page.drawn["labels"] is None and page.drawn["count"] == 15
    assert list(page.drawn["near"]) == ["trained"]
    assert "15 images of" in page.words and "drawn from 24" in page.words
    assert "RankMe" in page.words and "kNN accuracy</h2>" not in page.words
    assert "Clusters" in page.words and "purity" not in page.words
    assert "Test images that may" not in page.words
    assert {"map", "clusters", "look"} <= {*page.ids}


@pytest.fixture(scope="module")
def command():
    with imported("report") as module:
        yield module


def test_mistakes_are_one_line(run, folder, tmp_path, command):
    def call(*arguments):
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["report", f"--run={run}", *arguments])
        command.main()

    with pytest.raises(CheckpointError, match=r"--output=.*name a file in a folder that exists"):
        call(f"--output={tmp_path / 'no' / 'page.html'}")
    with pytest.raises(CheckpointError, match="no checkpoint of step 5"):
        call("--step=5")
    with pytest.raises(DataError, match="no split 'validation'"):
        call("--split=validation")
    with pytest.raises(DataError, match="no split 'validation'"):
        call("--test_split=validation")
    with pytest.raises(flags.IllegalFlagValueError, match="--images=10001"):
        call("--images=10001")
    with pytest.raises(ConfigError, match="--images=1: a page shows 2 to 10,000"):
        write(run, images=1)
    with pytest.raises(CheckpointError, match="holds no run"):
        write(tmp_path)
    np.savez(tmp_path / "one.npz", images=np.zeros((1, 20, 20, 1), np.uint8))
    with pytest.raises(DataError, match="has one image only"):
        write(run, source=f"npz:{tmp_path / 'one.npz'}")


def test_other_data_than_images_have_no_page(run, monkeypatch):
    other = run_lib.read(run)
    other.config.data.kind = "signals"
    monkeypatch.setattr(run_lib, "read", lambda workdir: other)
    with pytest.raises(ConfigError, match="A report is for images, not for signals"):
        write(run)
