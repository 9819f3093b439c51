"""The check of a source before a long run: its findings, messages and exit codes."""

import io
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from byol_jax.data import from_arrays, open_source
from byol_jax.data.check import check
from byol_jax.data.tfds import open_records

ROOT = Path(__file__).resolve().parents[2]


def put(path, image, **kwargs):
    image.save(path, **kwargs)


def mixed(path):
    """One image of each kind."""
    plain = Image.new("RGB", (32, 24), (200, 100, 50))
    exif = Image.Exif()
    exif[0x0112] = 6
    put(path / "1 good.png", plain)
    put(path / "2 cmyk.jpg", plain.convert("CMYK"))
    put(path / "3 deep.png", Image.fromarray(np.full((24, 32), 40_000, np.uint16)))
    put(path / "4 turned.jpg", plain, exif=exif.tobytes())
    put(path / "5 tiny.png", Image.new("RGB", (1, 1)))
    file = io.BytesIO()
    plain.save(file, "GIF", save_all=True, append_images=[Image.new("RGB", (32, 24))])
    (path / "6 moving.png").write_bytes(file.getvalue())
    (path / "7 empty.jpg").write_bytes(b"")
    (path / "8 half.png").write_bytes((path / "1 good.png").read_bytes()[:60])


def test_every_image_has_a_finding(tmp_path):
    mixed(tmp_path)
    findings = list(check(open_source(f"folder:{tmp_path}", "train"), workers=2))
    assert [finding.name for finding in findings] == [str(p) for p in sorted(tmp_path.iterdir())]
    assert [finding.decode_error for finding in findings] == [None] * 6 + [
        "it is empty",
        "it is damaged or truncated",
    ]
    assert [finding.warnings for finding in findings] == [
        (),
        ("its CMYK colours are converted to RGB without their profile",),
        ("only the upper 8 of its 16 bits are used",),
        ("it is turned upright (EXIF orientation 6)",),
        ("it is only 1 x 1 pixels",),
        ("of its animation only the first frame is used",),
        (),
        (),
    ]


def test_other_sources(shared):
    source = from_arrays(np.zeros((3, 20, 9, 1), np.uint8))
    assert {f.warnings for f in check(source, 1)} == {("it is only 9 x 20 pixels",)}
    source = open_records("cifar10", "test[:20]", str(shared("tfds")), 3, memory_limit=0)
    findings = list(check(source, 3))
    assert len(findings) == 20 and not any(f.decode_error or f.warnings for f in findings)


def test_the_caller_may_stop_early(tmp_path):
    mixed(tmp_path)
    findings = check(open_source(f"folder:{tmp_path}", "train"), workers=1)
    next(findings)
    findings.close()


def test_a_damaged_record_file_is_a_finding(tmp_path, shared):
    damaged = shutil.copytree(shared("tfds") / "cifar10", tmp_path / "cifar10")
    (file,) = damaged.glob("*/cifar10-test.tfrecord*")
    content = bytearray(file.read_bytes())
    content[100_000] ^= 1
    file.write_bytes(content)
    source = open_records("cifar10", "test", str(tmp_path), 3, memory_limit=0)
    *good, last = check(source, 2)
    assert 0 < len(good) < source.num_examples and not any(f.decode_error for f in good)
    assert last == (source.name, "it cannot be read any further: its record is damaged", ())


def test_what_pillow_takes_for_a_bomb_is_a_warning(tmp_path, monkeypatch):
    put(tmp_path / "1.png", Image.new("RGB", (32, 24)))
    source = open_source(f"folder:{tmp_path}", "train")
    for limit, expected in [(700, ()), (100, ("Pillow cannot read it",))]:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)  # a warning; from twice that an error
        assert [finding.warnings for finding in check(source, 2)] == [expected]


def run(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "byol_jax.cli", "check-data", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_the_command_lists_and_exits_with_1(tmp_path):
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
    put(tmp_path / "train" / "1.png", Image.new("RGB", (32, 24)))
    mixed(tmp_path / "test")
    result = run(
        "--config=cifar10",  # with a test split
        f"--config.data.source=folder:{tmp_path}",
        "--workers=2",
    )
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert f"All 1 images of folder:{tmp_path}/train can be decoded." in lines
    assert f"{tmp_path}/test/7 empty.jpg: it is empty" in lines
    assert f"odd: {tmp_path}/test/5 tiny.png: it is only 1 x 1 pixels" in lines
    assert f"error: 2 of 8 images of folder:{tmp_path}/test cannot be decoded" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("config", "code", "message"),
    [
        ("nosuch.py", 2, "error: flag --config=nosuch.py: there is no such file."),
        ("folder", 1, "error: config.data.source is empty: name the images"),
    ],
)
def test_the_command_reports_a_config_without_images(config, code, message):
    result = run(f"--config={config}")
    assert result.returncode == code and result.stderr.startswith(message)
