"""Users and items: LightGCN, and a run's whole life."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import resuming
from absl import flags
from commands import imported

import byol_jax
from byol_jax import models
from byol_jax.data.interactions import InteractionSource, read_table
from byol_jax.errors import ConfigError, DataError
from byol_jax.presets import buir, buir_nb
from byol_jax.runs import encoder as encoder_lib
from byol_jax.runs.kinds import drawing
from byol_jax.train import loop

USERS, ITEMS = 12, 10


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    """Users and items in two groups; each user has four items of the same group."""
    path = tmp_path_factory.mktemp("interactions") / "all.csv"
    rng = np.random.default_rng(0)
    lines = ["who,what"]
    for user in range(USERS):
        items = rng.permutation(np.arange(user % 2, ITEMS, 2))[:4]
        lines += [f"u{user},i{item}" for item in items]
    path.write_text("\n".join(lines) + "\n")
    return path


def config_for(file, preset=buir):
    config = preset.get_config()
    config.epochs, config.steps, config.batch_size = 0, 4, 8
    config.data.source, config.data.columns = f"csv:{file}", "who,what"
    config.encoder.features = 4
    config.log_every_steps = config.checkpoint.every_steps = 2
    return config


@pytest.fixture(scope="module")
def run(file, tmp_path_factory):
    config, workdir = config_for(file, buir_nb), tmp_path_factory.mktemp("run")
    config.data.walks = 3
    assert loop.train(config, workdir)
    return config, workdir, byol_jax.load(workdir)


def test_walks_estimate_lightgcn(file):
    table = read_table(str(file), ("who", "what"))
    source = InteractionSource("t", table, "train", walks=4000, length=3)
    adjacency = np.zeros((USERS + ITEMS, USERS + ITEMS))
    for user, item in table.splits["train"]:
        adjacency[user, USERS + item] = adjacency[USERS + item, user] = 1
    degrees = np.maximum(adjacency.sum(axis=0), 1)
    step = adjacency / np.sqrt(degrees[:, None] * degrees)
    module = models.LightGCN(features=4, users=USERS, items=ITEMS)
    nodes = {
        "user": source.nodes("user", np.arange(10), [(i,) for i in range(10)]),
        "item": source.nodes("item", np.arange(10), [(i,) for i in range(10)]),
    }
    nodes = jax.tree.map(jnp.asarray, nodes)
    variables = module.init(jax.random.key(0), nodes)
    tables = [variables["params"][side]["embedding"] for side in ("user", "item")]
    layer = total = np.concatenate(tables)
    for _ in range(3):
        layer = step @ layer
        total = total + layer
    for side, start in (("user", 0), ("item", USERS)):
        found = module.apply(variables, {side: nodes[side]})
        np.testing.assert_allclose(found, total[start : start + 10] / 4, atol=5e-3)
    both = module.apply(variables, nodes)
    np.testing.assert_allclose(both, (total[:10] + total[USERS : USERS + 10]) / 8, atol=5e-3)


def test_a_run_resumes_to_the_bit(run, tmp_path, capsys):
    resuming.check(run, tmp_path, capsys, last_step=4)


def test_ids_are_embedded_by_a_run_and_its_export(file, tmp_path):
    workdir = tmp_path / "run"
    loop.train(config_for(file), workdir)
    model = byol_jax.load(workdir)
    assert "projector" not in model.state.online_params  # z is the embedding
    table = model.variables["params"]["user"]["embedding"]
    row = list(model.config["user_ids"]).index("u3")
    features = model.embed({"user": ["u3"]})
    np.testing.assert_array_equal(features, table[row : row + 1])
    np.testing.assert_array_equal(model.project({"user": ["u3"]}), features)
    encoder_lib.save(model, tmp_path / "own")
    np.testing.assert_array_equal(byol_jax.load(tmp_path / "own").embed({"user": ["u3"]}), features)
    for given, message in (
        ({"user": ["u99"]}, "the user 'u99' is not in the training data"),
        ({"user": "u1"}, "takes lists of ids"),
        ({"user": {"id": [99]}}, "with id from 0 to 11"),
        ({"person": ["u1"]}, "takes .*user.*item"),
        ({"user": ["u1"], "item": ["i1", "i2"]}, "different numbers of users and items"),
    ):
        with pytest.raises(DataError, match=message):
            model.embed(given)


def test_a_file_that_has_changed_is_refused(run, file, tmp_path):
    _, workdir, _ = run
    changed = tmp_path / "all.csv"
    changed.write_text(file.read_text() + "u0,i1\n")
    with imported("recommend") as recommend:
        flags.FLAGS(["recommend", f"--checkpoint={workdir}", f"--data=csv:{changed}"])
        with pytest.raises(DataError, match="has changed since the run began"):
            recommend.main()


def test_ids_are_not_read_as_formulas():
    picture = drawing.texts({"item": ["item a$b_$c"]})["item"]
    assert picture.shape[0] == 1 and picture.min() < 0.5


def test_recommendations(run, file, tmp_path, capsys):
    _, workdir, model = run
    with pytest.raises(DataError, match="needs the neighbours of a user"):
        model.embed({"user": ["u1"]})
    with imported("recommend") as recommend:
        flags.FLAGS(["recommend", f"--checkpoint={workdir}", "--baselines=random,popularity"])
        recommend.main()
        flags.FLAGS.unparse_flags()
        flags.FLAGS(
            ["recommend", f"--checkpoint={workdir}", f"--output={tmp_path / 'top.csv'}", "--top=20"]
        )
        recommend.main()
        flags.FLAGS.unparse_flags()
        flags.FLAGS(["recommend", f"--checkpoint={workdir}", "--users=u1"])
        with pytest.raises(ConfigError, match="--users is for --output"):
            recommend.main()
    with imported("evaluate") as evaluate:
        flags.FLAGS(["evaluate", f"--checkpoint={workdir}", "--protocol=label_free"])
        assert evaluate.main() == 0
        flags.FLAGS.unparse_flags()
    out = capsys.readouterr().out
    assert f"test: {USERS} users, step 4" in out and "NDCG@10" in out
    details = json.loads((workdir / "eval" / "recommend-test.json").read_text())["details"]
    assert set(details) == {"byol", "random", "popularity"}
    with (tmp_path / "top.csv").open() as opened:
        rows = list(csv.DictReader(opened))
    with file.open() as opened:
        known = {(row["who"], row["what"]) for row in csv.DictReader(opened)}
    chosen = {(row["user"], row["item"]) for row in rows}
    assert not chosen & known
    everything = {(f"u{user}", row["what"]) for user in range(USERS) for row in [*rows_of(file)]}
    assert chosen == everything - known  # 20 is more than there are


def rows_of(file):
    with file.open() as opened:
        yield from csv.DictReader(opened)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"source": "folder:x"}, ConfigError, "must be csv:FILE"),
        ({"columns": "who"}, ConfigError, "must name the columns of users, items"),
        ({"columns": "who,who"}, ConfigError, "must name the columns of users, items"),
        ({"columns": "who,where"}, DataError, "has no column 'where'"),
        ({"walks": 3}, ConfigError, "set both, or neither"),
        (
            {"encoder.name": "dense", "encoder.features": None},
            ConfigError,
            "encoder.name must be lightgcn",
        ),
        ({"init.encoder": "x"}, ConfigError, "init.encoder=x is not for users and items"),
        ({"train_split": "all"}, ConfigError, "has no split 'all'"),
    ],
)
def test_mistakes_are_one_line(file, tmp_path, change, error, message):
    config = config_for(file)
    config.update_from_flattened_dict(
        {k if "." in k else f"data.{k}": v for k, v in change.items()}
    )
    with pytest.raises(error, match=message) as raised:
        loop.train(config, tmp_path)
    assert "\n" not in str(raised.value)
