"""The paper's tables and figures as commands, at tiny scale."""

import importlib
import re
import types
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import pytest

import train
from data.normalization import normalize
from errors import UserError
from input_pipeline import open_data
from paper import (
    degradation,
    experiment,
    figure1,
    figure7,
    from_workdirs,
    identity_mappings,
    report,
    table1,
    table3,
    table4,
    table5,
    table6,
)
from run import command, files, logs
from run.mesh import make_mesh
from testing import opened_run
from tests.support.published import published

COMMANDS = [
    *("figure1", "figure4", "figure6", "figure7", "identity_mappings", "report"),
    *("construction", "learning_identity"),
    *(f"table{i}" for i in range(1, 15)),
]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(f"paper.{name}").main(["--help"])
    assert stopped.value.code == 0
    assert f"python -m paper.{name}" in capsys.readouterr().out


def options(**fields):
    p = experiment.parser("test", "", depths=[8])
    args = p.parse_args([])
    return types.SimpleNamespace(**vars(args) | fields)


def test_a_scaled_schedule_keeps_its_shape_and_says_so():
    entry = experiment.Entry("resnet20", "resnet20")
    config, notes = experiment.configure(options(steps=640), entry, seed=3)
    assert (config.num_steps, config.optim.boundaries, config.seed) == (640, (320, 480), 3)
    assert any("640 steps of 128 instead of 64000 of 128" in note for note in notes)
    config, _ = experiment.configure(options(scale=0.5), entry, seed=0)
    assert (config.num_steps, config.optim.boundaries) == (32_000, (16_000, 24_000))
    config, notes = experiment.configure(options(), entry, seed=0)
    assert config.num_steps == 64_000
    assert not any("steps" in note for note in notes)


def test_length_must_be_positive():
    with pytest.raises(UserError, match="--steps, --scale"):
        experiment.configure(options(steps=0), experiment.Entry("a", "resnet20"), seed=0)


def test_a_folder_takes_either_kind_of_network():
    args = options(dataset="folder:x", networks="imagenet", image_size=64, steps=60)
    config, notes = experiment.configure(args, experiment.Entry("plain18", "plain18"), seed=0)
    assert (config.model.stem, config.model.residual, config.data.image_size) == (
        "imagenet",
        False,
        64,
    )
    assert (config.augment.resize_min, config.augment.resize_max) == (73, 137)
    assert "folder:x instead of tfds:imagenet2012" in notes
    assert (config.data.validation_split, config.data.validation_size) == ("val", 0)
    config, _ = experiment.recipe("digits", "plain18", "imagenet")
    assert (config.dataset, config.data.resident, config.data.test_split) == (
        "digits",
        False,
        "test",
    )
    held_out = options(dataset="folder:x", networks="imagenet", validation_size=5)
    config, _ = experiment.configure(held_out, experiment.Entry("plain18", "plain18"), seed=0)
    assert (config.data.validation_split, config.data.validation_size) == ("", 5)
    args = options(dataset="folder:x", steps=60)
    config, _ = experiment.configure(args, experiment.Entry("plain20", "plain20"), seed=0)
    assert (config.model.stem, config.data.resident, config.data.image_size) == ("cifar", False, 32)


def test_the_curve_is_of_the_test_split_and_training_never_sees_it(data_dir):
    entry = experiment.Entry("resnet8", "resnet8")
    config, _ = experiment.configure(options(dataset="digits", data_dir=data_dir), entry, seed=0)
    mesh = make_mesh(jax.devices()[:1])
    ours = open_data(config, mesh)
    plain = config.copy_and_resolve_references()
    plain.data.update(validation_split="", validation_size=0)
    theirs = open_data(plain, mesh)

    def pixels(data, split):
        batches = list(data.evaluation(split))
        return np.concatenate([b["image"][b["valid"]] for b in batches])

    np.testing.assert_array_equal(pixels(ours, "validation"), pixels(theirs, "test"))
    np.testing.assert_array_equal(pixels(ours, "train"), pixels(theirs, "train"))
    np.testing.assert_array_equal(*(d.facts.normalization.mean for d in (ours, theirs)))


@pytest.fixture(scope="module")
def grid(tmp_path_factory, data_dir):
    """A finished figure 1: its arguments, folder of results and content."""
    folder = tmp_path_factory.mktemp("paper")
    argv = ["--dataset=digits", "--depths", "8", "--seeds", "0", "1", "--steps", "4"]
    argv += ["--batch_size", "32", "--width", "4"]
    argv += [f"--runs={folder / 'runs'}", f"--out={folder / 'out'}", f"--data_dir={data_dir}"]
    return argv, folder, published(figure1, argv)


@pytest.mark.slow
def test_a_training_command_writes_what_a_reader_needs(grid):
    _, folder, content = grid
    head = content["header"]
    assert head["seeds"] == [0, 1]
    assert {"jax", "flax", "python"} <= set(head["versions"])
    assert {"date", "device"} <= set(head)
    assert head["command"].startswith("python -m paper.figure1 --dataset=digits --depths 8")
    assert any("4 channels" in note for note in head["scaled"])
    workdirs = [run["workdir"] for run in content["runs"]]
    assert sorted((folder / "runs/digits").iterdir()) == [Path(w) for w in workdirs]
    finals = [logs.final_line(w) for w in workdirs]
    errors = [100 * f["top1_error"] for f in finals]
    assert content["summary"]["plain8"]["values"] == errors
    row = dict(zip(content["tables"][0]["columns"], content["tables"][0]["rows"][0], strict=True))
    assert row["test error (%)"] == f"{np.mean(errors):.2f} ± {np.std(errors, ddof=1):.2f}"
    assert "difference" not in row
    curves = content["runs"][0]["curves"]
    assert [step for step, _ in curves["validation"]] == [1, 2, 3, 4]
    assert curves["validation"][-1][1] == pytest.approx(errors[0], abs=1e-3)
    assert "<svg" in (folder / "out/figure1.svg").read_text()
    assert "plain8" in (folder / "out/figure1.md").read_text()


def test_a_finished_grid_is_not_trained_again(grid, monkeypatch):
    argv, _, content = grid

    def fail(*args):
        raise AssertionError("trained again")

    monkeypatch.setattr(train, "make_run", fail)
    assert published(figure1, argv)["runs"] == content["runs"]


@pytest.mark.slow
def test_the_training_error_of_a_table_is_of_clean_images(grid):
    _, _, content = grid
    for run in content["runs"]:
        opened = opened_run.load(run["workdir"])
        data = open_data(opened.config, make_mesh(jax.devices()[:1]))
        batches = list(data.evaluation("train"))
        images, labels, valid = (
            np.concatenate([b[k] for b in batches]) for k in ("image", "label", "valid")
        )
        x = normalize(images[valid], *opened.facts.normalization)
        logits, _ = opened.model.apply(opened.variables, x, train=False)
        error = float(np.mean(np.argmax(logits, -1) != labels[valid]))
        assert run["training"]["top1_error"] == pytest.approx(error, abs=1 / len(x))
        assert run["training"]["images"] == len(x) == 898
    clean = [100 * run["training"]["top1_error"] for run in content["runs"]]
    assert content["summary"]["plain8"]["train"]["values"] == clean


def test_a_run_has_one_name_whatever_command_asks_for_it():
    def name(entry, **changed):
        return experiment.workdir_of(experiment.configure(options(**changed), entry, 0)[0], "runs")

    [plain, residual] = degradation.entries(("plain", "resnet"), [56])
    of_table3 = {e.name: name(e) for e in table3.entries([56])}
    of_followup = {e.name.partition(" ")[2]: name(e) for e in identity_mappings.entries(56, (1, 2))}
    assert of_table3["resnet56A"] == name(residual) == of_followup["original"]
    assert of_table3["plain56"] == name(plain) == of_followup["plain (shortcut 0, f 1)"]
    assert len({*of_table3.values(), *of_followup.values()}) == 16  # option C is shared, too
    on_imagenet = {"dataset": "tfds:imagenet2012", "networks": "imagenet"}
    [plain] = degradation.entries(("plain",), [34])
    assert name(table3.entries([34])[0], **on_imagenet) == name(plain, **on_imagenet)
    [one] = degradation.entries(("plain",), [20])
    names = {name(one), name(one, steps=640), name(one, width=8), name(one, validation_size=10)}
    rates = [experiment.configure(options(), one, 0, rate)[0] for rate in (0.1, 0.03)]
    assert [experiment.workdir_of(c, "runs") in names for c in rates] == [True, False]
    assert len(names) == 4


def test_a_small_set_is_averaged_and_padded_in_proportion():
    entry = experiment.Entry("resnet20", "resnet20")
    args = options(dataset="fashion_mnist", image_size=14)
    config, notes = experiment.configure(args, entry, seed=0)
    assert (config.data.image_size, config.augment.pad) == (14, 2)
    smaller, _ = experiment.configure(options(dataset="digits", image_size=14), entry, seed=0)
    assert smaller == experiment.configure(options(dataset="digits"), entry, seed=0)[0]
    assert any("averaged to 14×14" in note for note in notes)


def test_figure7_draws_only_what_learned(tmp_path):
    def one(error):
        return {"layers": ["a", "b"], "std": [1.0, 2.0], "seed": 0, "error": error, "chance": 0.9}

    series = {
        "plain20": figure7._over_seeds([one(0.1), one(0.3)]),
        "plain110": figure7._over_seeds([one(0.9), one(0.8)]),
        "resnet20": figure7._over_seeds([one(None)]),
    }
    assert [name for name, s in series.items() if s["learned"]] == ["plain20", "resnet20"]
    [table] = figure7.tables(series, ["plain20", "resnet20"])
    assert table["rows"][1] == ["plain110", 2, "1.50 ± 0.00", "1.50 ± 0.00", "85.00 ± 7.07", "no"]
    figure7.draw(series, ["plain20", "resnet20"], str(tmp_path))
    assert "plain110" not in (tmp_path / "figure7.svg").read_text()


@pytest.mark.slow
def test_figure7_is_the_spread_of_bn_outputs(grid):
    _, _, content = grid
    workdir = content["runs"][0]["workdir"]
    found = figure7.responses(workdir, images=50)
    run = opened_run.load(workdir)
    data = open_data(run.config, make_mesh(jax.devices()[:1]))
    images = next(iter(data.evaluation("test")))["image"][:50]
    x = normalize(images, *run.facts.normalization)
    _, state = run.model.apply(
        run.variables,
        x,
        train=False,
        capture_intermediates=lambda module, _: isinstance(module, nn.BatchNorm),
        mutable=["intermediates"],
    )
    kept = state["intermediates"]
    expected = [np.std(np.asarray(kept["stem_bn"]["__call__"][0], np.float64))]
    for stage in ("stage1", "stage2", "stage3"):
        for norm in ("bn1", "bn2"):
            out = kept[stage]["block1"][norm]["__call__"][0]
            expected.append(np.std(np.asarray(out, np.float64)))
    assert found["layers"][:2] == ["stem_conv", "stage1/block1/conv1"]
    np.testing.assert_allclose(found["std"], expected, rtol=1e-4)


@pytest.mark.slow
def test_figure7_and_table4_from_workdirs_and_the_report(grid, monkeypatch, capsys):
    _, folder, finished = grid
    out = str(folder / "out")
    workdirs = [run["workdir"] for run in finished["runs"]]
    content = published(figure7, ["--workdirs", workdirs[0], "--images=50", f"--out={out}"])
    assert len(content["series"][Path(workdirs[0]).name]["std"]) == 7

    argv = ["--workdirs", *workdirs, "--protocol=center", f"--out={out}"]
    first = published(table4, argv)
    pair = published(table5, argv)
    assert len(pair["measured"][0]["networks"]) == 2

    def fail(*args):
        raise AssertionError("tested again")

    monkeypatch.setattr(from_workdirs.evaluate, "run", fail)
    assert published(table4, argv)["tables"] == first["tables"]
    assert published(table5, argv)["tables"] == pair["tables"]
    (folder / "out/table5.json").unlink()  # stopped before the end: the workdir has its last test
    assert published(table5, argv)["tables"] == pair["tables"]

    report.main([f"--results={out}"])
    assert "4 parts run, 14 not run" in capsys.readouterr().out
    page = (folder / "out/report.html").read_text()
    markdown = (folder / "out/report.md").read_text()
    for title in (figure1.TITLE, table1.TITLE, table6.TITLE, identity_mappings.TITLE):
        assert title.replace("'", "&#x27;") in page
        assert title in markdown
    own = page.partition("</nav>")[2]
    own = re.sub("<section id='questions'>.*?</section>", "", own, flags=re.S)
    assert own.count("src='data:image/svg+xml;base64,") == 2
    assert "http://" not in page
    suggested = "python -m paper.table6 --dataset=digits --depths 20 56"
    assert f"not run; for example: <code>{suggested}</code>" in page
    ids = re.findall(r"\bid='([^']+)'", page)
    assert len(ids) == len(set(ids))


def test_results_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        files.write_text(tmp_path / "file" / "x.json", "{}")


def test_errors_end_in_one_line(capsys):
    def main(argv):
        raise UserError("no such thing")

    assert command.run(main, []) == 1
    assert capsys.readouterr().err.strip().endswith("error: no such thing")
