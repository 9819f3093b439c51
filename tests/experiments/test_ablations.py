"""The rows of docs/ablations.md are valid runs that differ; how they are run, and their cells."""

import json

import pytest
from absl import flags

from byol_jax.cli import config_flag
from byol_jax.errors import UserError
from byol_jax.runs import config as config_lib
from byol_jax.runs import tree
from byol_jax.runs.resolve import resolve
from experiments.ablations import page, results
from experiments.ablations.rows import RECIPE, TABLES, Row


def settings(table, row):
    """The resolved settings of a row, by key."""
    recipe = [flag.format(recipe="RUN") for flag in row.flags]
    argv = ["pretrain", f"--config={table.preset}", *table.flags, *recipe]
    argv.append("--config.data.source=folder:IMAGES")
    values = flags.FlagValues()
    config_flag.define(flag_values=values, sys_argv=argv)
    values(argv)
    config = values["config"].value
    config_lib.use_other_encoder(config, values["config"].parser.preset)
    return tree.flat(resolve(config)[0])


@pytest.mark.parametrize("name", TABLES)
def test_every_row_is_a_run_of_its_own(name):
    table = TABLES[name]
    assert len({row.name for row in table.rows}) == len(table.rows)
    found = [settings(table, row) for row in table.rows]
    for index, row in enumerate(found):
        equal = [table.rows[i].name for i, other in enumerate(found[:index]) if other == row]
        assert not equal, f"{table.rows[index].name} and {equal} have the same settings"


def test_cells_have_the_median_and_range_of_the_seeds_without_the_probes_loss():
    run = {"logistic": 0.5, "knn": 0.4, "loss": 3.0, "probe_loss": 2.0}
    run |= {"projection_std": 0.9, "projection_rank": 12.0, "collapsed_at": None}
    assert page.cells(RECIPE, [run])[2] is None  # not measured before training
    assert page.cells(RECIPE, [run])[5:] == [1.0, 0.9, 12.0, ""]
    other = run | {"logistic": 0.7, "untrained": 0.2, "collapsed_at": 90}
    what, given, untrained, logistic, _, loss, *_, collapse = page.cells(
        Row("a", "A", ("-x",)), [run, other]
    )
    assert (what, given, loss, collapse) == ("A", "`-x`", 1.0, "reported at step 90 (1 of 2 seeds)")
    assert tuple(untrained) == (0.2, 0.2, 0.2) and tuple(logistic) == (0.6, 0.5, 0.7)


def test_a_row_that_fails_costs_no_other_its_result(tmp_path):
    def run(row, seed):
        if row.name == "b" and not mended:
            raise UserError("no disk")
        return {"logistic": len(row.name) + int(seed)}

    output, rows = tmp_path / "table.json", [Row(name, "") for name in "abc"]
    output.write_text(json.dumps({"a": {"0": "kept"}}))
    mended = False
    with pytest.raises(UserError, match="2 of 5 runs failed"):
        results.complete(output, rows, ["0", "1"], run, jobs=2)
    found = json.loads(output.read_text())
    assert found["a"] == {"0": "kept", "1": {"logistic": 2}} and set(found) == {"a", "c"}
    mended = True
    results.complete(output, rows, ["0", "1"], run)
    assert json.loads(output.read_text())["b"] == {"0": {"logistic": 1}, "1": {"logistic": 2}}
