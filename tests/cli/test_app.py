"""Arguments by position, which `app.run` gives to flags."""

import pytest
from absl import flags

from byol_jax.cli import app


@pytest.fixture
def defined():
    flags.DEFINE_string("run", None, "A folder.")
    flags.DEFINE_multi_string("image", [], "Files.")
    flags.DEFINE_integer("top", 10, "How many.")
    yield flags.FLAGS
    flags.FLAGS.unparse_flags()
    for name in ("run", "image", "top"):
        delattr(flags.FLAGS, name)


@pytest.mark.parametrize(
    "given",
    [
        ["R", "a.jpg", "b.jpg", "--top=3"],
        ["--top=3", "R", "a.jpg", "b.jpg"],
        ["R", "a.jpg", "--top", "3", "b.jpg"],
        ["R", "--top=3", "--", "a.jpg", "b.jpg"],
        ["--run=R", "a.jpg", "b.jpg", "--top=3"],
        ["--image=a.jpg", "--image=b.jpg", "R", "--top=3"],
    ],
)
def test_arguments_by_position_are_flags(defined, given):
    app._parse("RUN IMAGE...", ["search", *given])
    assert (defined.run, defined.image, defined.top) == ("R", ["a.jpg", "b.jpg"], 3)


def test_an_argument_in_brackets_may_be_left_out(defined):
    app._parse("[RUN]", ["pretrain", "--top=2"])
    assert (defined.run, defined.top) == (None, 2)


@pytest.mark.parametrize(
    ("arguments", "given", "message"),
    [
        ("RUN IMAGE...", [], "RUN is missing; --help describes the arguments."),
        ("RUN IMAGE...", ["R"], "IMAGE is missing; --help describes the arguments."),
        ("RUN", ["R", "x"], "unexpected argument 'x'; flags are written --name=value"),
        ("RUN", ["--run=R", "x"], "unexpected argument 'x'; flags are written --name=value"),
        ("", ["x", "--top=3"], "unexpected argument 'x'; flags are written --name=value"),
        ("RUN", ["R", "--tpo=3"], "Unknown command line flag 'tpo'. Did you mean: top"),
    ],
)
def test_a_wrong_argument_is_one_line(defined, capsys, arguments, given, message):
    with pytest.raises(SystemExit, match="2"):
        app._parse(arguments, ["search", *given])
    assert capsys.readouterr().err.startswith(f"error: {message}")
