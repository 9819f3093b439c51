"""Interactions of users and items: splits, walks, and what cannot be read."""

import numpy as np
import pytest

from byol_jax.data.interactions import InteractionSource, read_table
from byol_jax.errors import DataError

COLUMNS = ("user", "item", "time")


def write(path, rows, header="user,item,time"):
    path.write_text("\n".join([header, *rows]) + "\n")
    return str(path)


@pytest.fixture
def table(tmp_path):
    # By time: a buys x, y, z, w; b buys y, x, z, and y again; c buys x, y: too few.
    rows = [
        "a,w,9",
        "a,x,1",
        "a,y,2",
        "a,z,3",
        "b,z,7",
        "b,y,5",
        "b,y,6",
        "b,x,6.5",
        "c,x,1",
        "c,y,2",
    ]
    return read_table(write(tmp_path / "t.csv", rows), COLUMNS)


def named(table, split):
    return {(table.users[user], table.items[item]) for user, item in table.splits[split]}


def test_the_last_of_each_user_is_held_out(table):
    assert named(table, "test") == {("a", "w"), ("b", "z")}
    assert named(table, "val") == {("a", "z"), ("b", "x")}
    train = {("a", "x"), ("a", "y"), ("b", "y"), ("c", "x"), ("c", "y")}
    assert named(table, "train") == train and len(table.splits["train"]) == 5
    assert table.repeated == 1


def test_without_times_the_order_of_the_file_counts(tmp_path):
    path = write(tmp_path / "t.csv", ["a,1,9", "a,2,8", "a,3,7"])
    assert named(read_table(path, ("user", "item")), "test") == {("a", "3")}
    assert named(read_table(path, COLUMNS), "test") == {("a", "1")}


def test_walks_follow_training_interactions(table):
    source = InteractionSource("t", table, "test", walks=40, length=2)
    assert any("1 interactions occur again" in warning for warning in source.warnings)
    edges = {tuple(pair) for pair in table.splits["train"].tolist()}
    degrees = np.bincount(table.splits["train"][:, 0]), np.bincount(table.splits["train"][:, 1])
    users = np.arange(3)
    node = source.nodes("user", users, [(0, i) for i in users])
    for user in users:
        for (item, end), weights in zip(node["walks"][user], node["weights"][user], strict=True):
            assert (user, item) in edges and (end, item) in edges
            wanted = degrees[0][user] / np.array([degrees[1][item], degrees[0][end]])
            np.testing.assert_allclose(weights, np.sqrt(wanted), rtol=1e-6)
        assert set(node["walks"][user, :, 0]) == {item for at, item in edges if at == user}
    again = source.nodes("user", users[2:], [(0, 2)])
    np.testing.assert_array_equal(again["walks"][0], node["walks"][2])
    lonely = table.items.index("w")  # occurs in no training interaction
    assert (source.nodes("item", np.array([lonely]), [(0,)])["weights"] == 0).all()
    example = source.load(np.array([0, 1]))
    assert example["item"]["walks"].shape == (2, 40, 2)
    np.testing.assert_array_equal(example["user"]["id"], source.pairs[:, 0])


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        (["a,x,1"], "who,what,when", "has no column 'user'; it has who, what, when"),
        (["a,,1"], "user,item,time", "line 2 lacks one of user, item, time"),
        (["a,x,1", "a"], "user,item,time", "line 3 lacks one of"),
        (["a,x,noon"], "user,item,time", "column 'time' must hold numbers"),
        (["a,x,1", "", '"a', 'b",'], "user,item,time", "line 5 lacks one of"),
        (["a,x,nan"], "user,item,time", "column 'time' has NaN"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path, rows, header, message):
    with pytest.raises(DataError, match=message) as raised:
        read_table(write(tmp_path / "t.csv", rows, header), COLUMNS)
    assert "\n" not in str(raised.value)


def test_no_file_and_no_held_out_interactions(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_table(str(tmp_path / "none.csv"), COLUMNS)
    few = read_table(write(tmp_path / "t.csv", ["a,x,1"]), COLUMNS)
    with pytest.raises(DataError, match="holds no examples"):
        InteractionSource("t", few, "test")
