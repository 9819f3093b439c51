"""Files of texts, vocabularies, and texts as numbers of tokens."""

import concurrent.futures
import os
import subprocess
import sys

import numpy as np
import pytest

from byol_jax.data import match_classes, text, wordpiece
from byol_jax.data.text import TextSource, TokenSource, open_text
from byol_jax.errors import DataError, UserError

pytest.importorskip("tokenizers")
VOCABULARY = ("[PAD]", "[UNK]", "##s", "cat", "dog", "a", ".")


def test_lines_are_read(tmp_path):
    (tmp_path / "train.txt").write_bytes(
        b"\xef\xbb\xbf One \r\n\n  \ntwo\xc3\xa9\n\xe3\x80\x80\nthree"
    )
    source = open_text(str(tmp_path), "train")
    assert [source.text(i) for i in range(3)] == ["One", "twoé", "three"]
    assert source.num_examples == 3 and source.class_names is None
    (warning,) = source.warnings
    assert "3 texts of" in warning and "empty" in warning
    alone = open_text(str(tmp_path / "train.txt"), "train")
    assert alone.fingerprint() == source.fingerprint() != None  # noqa: E711
    (tmp_path / "train.txt").write_text("other")
    assert open_text(str(tmp_path), "train").fingerprint() != source.fingerprint()


def test_an_index_of_bytes_finds_each_of_many_lines(tmp_path):
    lines = [f"{'é' * (i % 7)} {i}" for i in range(2000)]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    source = open_text(str(tmp_path), "train")
    assert [source.text(i) for i in range(2000)] == [line.strip() for line in lines]


def test_endings_may_be_capitals_and_folders_are_no_files(tmp_path):
    (tmp_path / "train.txt").mkdir()
    with pytest.raises(DataError, match=r"no split 'train' \(it has no \.txt, \.jsonl"):
        open_text(str(tmp_path), "train")
    (tmp_path / "train.CSV").write_text("text,label\na,b\n")
    (tmp_path / "test.JsonL").write_text('{"text": "a", "label": "b"}\n')
    for split in ("train", "test"):
        source = open_text(str(tmp_path), split)
        assert source.text(0) == "a" and source.class_names == ("b",)
    assert open_text(str(tmp_path / "train.CSV"), "train").text(0) == "a"


@pytest.mark.parametrize(("content", "count"), [(b"a\rb\r", 1), (b"a\r\n", 0), (b"a\r\nb\r\n", 0)])
def test_lines_that_end_with_carriage_returns_alone_are_reported(tmp_path, content, count):
    (tmp_path / "train.txt").write_bytes(content)
    warnings = open_text(str(tmp_path), "train").warnings
    assert len(warnings) == count
    assert all("is one text with carriage returns" in warning for warning in warnings)


def test_a_file_that_changes_is_one_line(tmp_path):
    path = tmp_path / "train.txt"
    lines = "".join(f"line {i}\n" for i in range(2000))
    path.write_text(lines)
    source = open_text(str(path), "train")
    (tmp_path / "other").write_text("other")
    (tmp_path / "other").rename(path)  # as editors write files: the old one is still there
    assert source.text(1999) == "line 1999"
    source = open_text(str(path), "train")
    assert source.text(0) == "other"
    for content in ("", "longer than it was", "OTHER"):
        path.write_text(content)
        os.utime(path, ns=(0, 0))
        message = r"^/\S+train\.txt has changed since it was opened: start again\.$"
        with pytest.raises(DataError, match=message):
            source.text(0)


def test_many_threads_read_a_file(tmp_path):
    lines = [f"line {i}" for i in range(500)]
    (tmp_path / "train.txt").write_text("\n".join(lines))
    source = open_text(str(tmp_path), "train")
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert list(pool.map(source.text, [*range(500)] * 4)) == lines * 4


@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_labels_are_names_or_integers(tmp_path, ending):
    def write(split, labels):
        if ending == "jsonl":
            lines = [f'{{"text": "t{i}", "label": {label!r}}}\n' for i, label in enumerate(labels)]
            content = "".join(lines).replace("'", '"')
        else:
            lines = [f'{label},"t{i}"\n' for i, label in enumerate(labels)]
            content = "label,text\n" + "".join(lines)
        (tmp_path / f"{split}.{ending}").write_text(content)

    write("train", [10, 9, 10, -1])
    source = open_text(str(tmp_path), "train")
    assert source.class_names == ("-1", "9", "10") and list(source.labels) == [2, 1, 2, 0]
    write("test", [10, 9])
    test = match_classes(source, open_text(str(tmp_path), "test"))
    assert test.class_names == source.class_names and list(test.labels) == [2, 1]
    assert test.text(1) == "t1"
    write("names", ["b", "a"])
    assert open_text(str(tmp_path), "names").class_names == ("a", "b")
    with pytest.raises(DataError, match="have different classes"):
        match_classes(source, open_text(str(tmp_path), "names"))


def test_a_csv_has_quoted_line_breaks(tmp_path):
    (tmp_path / "train.csv").write_text('text,x\n"a, b\nc",1\n"",2\n"d ""e""",3\n')
    source = open_text(str(tmp_path), "train")
    assert [source.text(i) for i in range(2)] == ["a, b\nc", 'd "e"']
    assert source.labels.tolist() == [-1, -1] and len(source.warnings) == 1


def test_white_space_around_headers_and_labels_does_not_count(tmp_path):
    (tmp_path / "train.csv").write_bytes(b"\xef\xbb\xbftext, label ,x\na, pos,\nb,pos ,\nc,neg,\n")
    source = open_text(str(tmp_path), "train")
    assert source.class_names == ("neg", "pos") and list(source.labels) == [1, 1, 0]


def test_a_label_of_a_csv_is_utf_8(tmp_path):
    (tmp_path / "train.csv").write_bytes(b"text,label\na,b\nc,caf\xe9\n")
    with pytest.raises(DataError, match=r"line 3 of .* has a label that is not UTF-8"):
        open_text(str(tmp_path), "train")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train.txt", b"ok\n\n\xff\n", r"line 3 of .*train\.txt cannot be read: it is not UTF-8"),
        ("train.jsonl", b'{"text": "ok"}\n{"text', r"line 2 of .* it is no JSON object \(Unterm"),
        ("train.jsonl", b'{"text": "ok"}\n{"text": 5}', 'no JSON object with a string "text"'),
        ("train.jsonl", b'{"text": "ok"}\n{"text": "\\ud800"}', "it is not UTF-8"),
        ("train.csv", b"text\nok\n\xff\n", "line 3 of .* it is not UTF-8"),
    ],
)
def test_a_bad_text_is_one_line_where_it_is_used(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    source = open_text(str(tmp_path), "train")
    assert source.num_examples == 2 and source.text(0) == "ok"
    with pytest.raises(DataError, match=message) as raised:
        source.text(1)
    assert "\n" not in str(raised.value)
    with pytest.raises(DataError, match=message):
        source.vocabulary(100, skip=False)
    assert "ok" in source.vocabulary(100, skip=True)


@pytest.mark.parametrize(
    ("files", "path", "split", "message"),
    [
        ({}, "no", "train", "no does not exist: check the path after 'text:'"),
        ({"a.bin": "x"}, "", "train", r"no split 'train' \(it has no \.txt, \.jsonl, \.csv files"),
        ({"train.txt": "x"}, "", "test", r"no split 'test' \(it has train\)"),
        ({"train.txt": "x"}, "train.txt", "test", "which stands for the split 'train'"),
        ({"train.txt": "x", "train.csv": "x"}, "", "train", r"train\.csv and train\.txt: keep one"),
        ({}, "x" * 300, "train", "x cannot be read .File name too long"),
        ({"train.txt.gz": "x"}, "", "train", r"is compressed: decompress it, such as by gunzip"),
        ({"a.gz": "x"}, "a.gz", "train", "is compressed"),
        ({"a.tsv": "x"}, "a.tsv", "train", r"is no \.txt, \.jsonl, \.csv file"),
        ({"train.txt": "\n \n"}, "", "train", "has no texts"),
        ({"train.jsonl": ""}, "", "train", "has no texts"),
        ({"train.csv": "a,b\n1,2\n"}, "", "train", "has no column 'text'"),
        ({"train.csv": ""}, "", "train", "has no column 'text'"),
        ({"train.csv": "text\na, b\n"}, "", "train", "line 2 of .* has not as many fields as the"),
        ({"train.csv": "text,label\na,b\nc\n"}, "", "train", "line 3 of .* has not as many fields"),
        (
            {"train.csv": 'text\n"a\nb\n'},
            "",
            "train",
            "from line 2 of .*unexpected end of data. Double",
        ),
        ({"train.csv": 'text\na\n"b" c\n'}, "", "train", "from line 3 of .* expected after"),
        ({"train.csv": "text, Label\na,b\n"}, "", "train", "a column 'Label': name it 'label'"),
        ({"train.csv": "TEXT,label\na,b\n"}, "", "train", "a column 'TEXT': name it 'text'"),
        ({"train.csv": "text,text\na,b\n"}, "", "train", "several columns 'text': keep one"),
        ({"train.csv": "text,label\na,b\nc,  \n"}, "", "train", "line 3 of .* has no label"),
        (
            {"train.jsonl": '{"text": "a", "label": "\\ud800"}'},
            *("", "train", "line 1 of .* has a label that is not UTF-8"),
        ),
        (
            {"train.jsonl": '{"text": "a", "label": 1}\n{"text": "b"}'},
            *("", "train", "line 2 of .* has no label, and others have"),
        ),
        (
            {"train.jsonl": '{"text": "a", "label": 1.5}'},
            *("", "train", "has the label 1.5: give a string or an integer"),
        ),
    ],
)
def test_what_cannot_be_used_is_one_line(tmp_path, files, path, split, message):
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as raised:
        open_text(str(tmp_path / path), split)
    assert "\n" not in str(raised.value)


def test_tokens_are_padded_and_long_texts_cut():
    assert wordpiece.encode(VOCABULARY, ["A cats. DOGS", "", "x cat", "[PAD]"]) == [
        [5, 3, 2, 6, 4, 2],
        [1],
        [1, 3],
        [1, 1, 1],
    ]
    long = " ".join(["cat", "dog"] * 10 + ["a"])
    source = TokenSource(TextSource("mine", ["Cats.", long]), VOCABULARY, 4)
    rows = source.load(np.array([0, 1]))
    assert rows.dtype == np.int32 and rows.tolist() == [[3, 2, 6, 0], [3, 4, 3, 4]]
    seeds = [(0, 0, i) for i in range(60)]
    windows = source.load_random(np.ones(60, int), seeds)
    assert {*map(tuple, windows)} == {(3, 4, 3, 4), (4, 3, 4, 3), (4, 3, 4, 5)}
    again = source.load_random(np.array([0, 1]), [seeds[0], seeds[7]])
    np.testing.assert_array_equal(again[1], windows[7])
    assert again[0].tolist() == [3, 2, 6, 0]


def test_the_beginning_of_a_long_text_has_the_same_tokens(monkeypatch):
    rng, seen = np.random.default_rng(0), []
    parts = ["cat", "dogs", "a", ".", " ", " " * 300, "cats" * 30, "s" * 90, "中中", "x\u0301"]
    texts = ["".join(rng.choice(parts, rng.integers(1, 200))) for _ in range(30)]
    texts += [
        "cats " * 900,
        "cats" * 900,
        "a" + " " * 4000 + "cat",
        "中" * 3000,
        " " * 50 + "cat" + "s" * 500,
    ]
    want = [(numbers + [0] * 8)[:8] for numbers in wordpiece.encode(VOCABULARY, texts)]
    encode = wordpiece.encode

    def counted(vocabulary, given):
        seen.append(sum(map(len, given)))
        return encode(vocabulary, given)

    monkeypatch.setattr(wordpiece, "encode", counted)
    for characters in (1, 2, wordpiece.CHARACTERS_A_TOKEN):
        monkeypatch.setattr(wordpiece, "CHARACTERS_A_TOKEN", characters)
        assert text.first_tokens(VOCABULARY, texts, 8).tolist() == want
    seen.clear()
    text.first_tokens(VOCABULARY, ["the cat " * 100_000], 8)
    assert sum(seen) < 2000


TEXTS = ["the cats sat on the mat, unbelievably", "Thé dogs sat; dogs bark!", "cat ☃"]
PROGRAM = """
from byol_jax.data import wordpiece
print(wordpiece.learn(lambda: iter({texts!r}), {size}))
"""


def test_a_vocabulary_is_the_same_in_every_process():
    found = wordpiece.learn(lambda: iter(TEXTS), 100)
    assert found[:2] == ("[PAD]", "[UNK]") and len(set(found)) == len(found) <= 100
    assert {"dogs", "the", "sat", "##s", "☃"} <= {*found}
    for threads in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM.format(texts=TEXTS, size=100)],
            env=os.environ | {"RAYON_NUM_THREADS": threads},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == str(found)


def test_rare_characters_are_left_out():
    found = wordpiece.learn(lambda: iter(["aaa bbb ccc", "aab z☃"]), 12)
    assert {c for token in found[2:] for c in token.removeprefix("##")} == {"a", "b", "c"}
    assert wordpiece.encode(found, ["☃ a"])[0][0] == 1
    with pytest.raises(DataError, match="have no words"):
        wordpiece.learn(lambda: iter([" ", "\0"]), 12)


def test_a_character_that_continues_no_word_has_one_token():
    found = wordpiece.learn(lambda: iter(["中国人 ab", "中国国。"]), 100)
    assert {"中", "国", "人", "。", "a", "##b", "ab"} <= {*found}
    assert not {"##中", "##国", "##人", "##。", "##a"} & {*found}
    chinese = "".join(map(chr, range(0x4E00, 0x4E00 + 80)))
    found = wordpiece.learn(lambda: iter([chinese]), 100)
    assert found[2:] == tuple(chinese[:50])


def test_a_vocabulary_is_learned_from_texts_at_equal_distances(monkeypatch):
    monkeypatch.setattr(text, "LEARNT_FROM", 3)
    source = TextSource("mine", ["aa", "bb", "cc", "dd", "ee"])
    assert {*source.vocabulary(100, skip=False)} >= {"aa", "cc", "ee"}
    assert not {*source.vocabulary(100, skip=False)} & {"bb", "dd"}


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"pip install 'byol_jax\[text\]'"):
        wordpiece.learn(lambda: iter(TEXTS), 100)
