"""What the tables say of given runs: nothing is trained here."""

import importlib

import pytest

import models
from configs import recipes
from paper import degradation, experiment, identity_mappings, numbers, table1, table3, table6
from tests.support.published import published


def run_of(name, error, seed=0, train_error=1.0):
    final = {"loss": 1.0, "top1_error": error / 100, "top5_error": error / 200, "images": 100}
    training = final | {"loss": train_error / 10, "top1_error": train_error / 100}
    curves = {"train": [[1, 50.0], [2, 99.0]], "validation": [[2, error]]}
    run = {"name": name, "seed": seed, "workdir": "x", "final": final, "curves": curves}
    return run | {"training": training}


def test_what_depth_adds():
    runs = [run_of("plain20", 9, train_error=3), run_of("plain56", 13, train_error=8)]
    runs += [run_of("resnet20", 8, train_error=2), run_of("resnet56", 7, train_error=1)]
    runs += [run_of("plain20", 9, 1, 4), run_of("plain56", 9, 1, 4), run_of("resnet20", 8, 1, 2)]
    [table] = degradation.depth_tables(runs, [56, 20])
    assert table["rows"] == [
        ["plain", "20 → 56", "+2.50", "+0.2500", "+2.00", *["1 of 2"] * 3],
        ["residual", "20 → 56", "-1.00", "-0.1000", "-1.00", *["0 of 1"] * 3],  # one seed of both
    ]
    assert degradation.depth_tables(runs, [20]) == []
    assert degradation.compared("digits").endswith("Test errors stand beside and decide nothing")
    assert "Test errors of residual networks are compared" in degradation.compared("fashion_mnist")
    names = ["plain20", "resnet20"]
    [on_cifar] = degradation.tables(names, experiment.summarise(runs))
    assert on_cifar["rows"][1][-2:] == [8.75, "-0.75"]  # resnet20: 8 − 8.75
    [elsewhere] = degradation.tables(names, experiment.summarise(runs), same_data=False)
    assert "difference" not in elsewhere["columns"]
    assert elsewhere["rows"][0][1:3] == ["3.50 ± 0.71", "0.3500 ± 0.0707"]


def test_rates_are_told_apart():
    runs = [run_of("plain20, rate 0.1", 9), run_of("plain56, rate 0.1", 13, train_error=8)]
    runs += [run_of("plain20, rate 0.03", 9), run_of("plain56, rate 0.03", 9)]
    [table] = degradation.depth_tables(runs, [20, 56], [", rate 0.1", ", rate 0.03"])
    assert [row[:3] for row in table["rows"]] == [
        ["plain, rate 0.1", "20 → 56", "+7.00"],
        ["plain, rate 0.03", "20 → 56", "+0.00"],
    ]


def test_failure_is_reported_as_the_paper_does(monkeypatch, tmp_path):
    errors = {
        "original": (6, 7, 8),
        "1x1 conv shortcut": (12, 90, 90),
        "dropout shortcut": (25, 30, 12),
    }

    def trained(args, entries):
        runs = [
            run_of(f"resnet110 {name}", error, seed)
            for name, of_seeds in errors.items()
            for seed, error in enumerate(of_seeds)
        ]
        return runs, []

    monkeypatch.setattr(experiment, "train_grid", trained)
    content = published(identity_mappings, [f"--out={tmp_path}", "--seeds", "0", "1", "2"])
    assert content["tables"][0]["columns"][1] == "training error (%)"
    rows = {row[0]: row[2:] for row in content["tables"][0]["rows"]}
    assert rows["original"] == ["7.00", "0 of 3", 6.61, "+0.39"]
    assert rows["1x1 conv shortcut"] == ["fail", "2 of 3", 12.22, None]
    assert rows["dropout shortcut"] == ["fail", "2 of 3", "fail", None]
    assert rows["exclusive gating, b = 0"] == ["not run", None, "fail", None]
    assert "median of 3 instead of five runs" in content["header"]["scaled"]


def test_every_rejected_design_is_a_network():
    names = {1: numbers.IDENTITY_MAPPINGS_TABLE1, 2: numbers.IDENTITY_MAPPINGS_TABLE2}
    for number, rows in identity_mappings.ROWS.items():
        assert list(rows) == list(names[number])
    entries = identity_mappings.entries(20, (1, 2))
    assert len({e.name for e in entries}) == len(entries) == 15
    built = set()
    for entry in entries:
        config = recipes.cifar(entry.network)
        config.model.update(entry.model)
        built.add(models.create(config.model, 10))
    assert len(built) == 15
    [first, *_] = identity_mappings.entries(164, (2,))
    assert recipes.cifar(first.network).model.block == "bottleneck"


def test_table3_trains_every_option(monkeypatch, tmp_path):
    seen = []

    def trained(args, entries):
        seen.extend(entries)
        return [run_of(entry.name, 10) for entry in entries], []

    monkeypatch.setattr(experiment, "train_grid", trained)
    content = published(table3, ["--dataset=digits", "--depths", "20", f"--out={tmp_path}"])
    assert content["title"] == "Table 3: identity and projection shortcuts on digits"
    assert [(e.name, e.model.get("shortcut")) for e in seen] == [
        ("plain20", None),
        ("resnet20A", "A"),
        ("resnet20B", "B"),
        ("resnet20C", "C"),
    ]
    rows = {row[0]: row for row in content["tables"][0]["rows"]}
    assert rows["resnet20B"][1:4] == ["1.00", "10.00", "5.00"]
    assert rows["resnet34B"][1:] == ["not run", "not run", "not run", 24.52, 7.46]
    assert [e.name for e in table3.entries([34, 50, 101])][-2:] == ["resnet50", "resnet101"]


@pytest.mark.parametrize("name", ["figure4", "table2"])
def test_figure4_says_its_data_its_training_error_and_its_command(monkeypatch, tmp_path, name):
    def trained(args, entries):
        return [run_of(entry.name, 10, train_error=3) for entry in entries], []

    monkeypatch.setattr(experiment, "train_grid", trained)
    argv = ["--dataset=digits", f"--out={tmp_path}"]
    content = published(importlib.import_module(f"paper.{name}"), argv)
    assert content["title"] == "Figure 4 and table 2: plain and residual networks on digits"
    assert content["header"]["command"].startswith(f"python -m paper.{name} --dataset=digits")
    first = dict(zip(content["tables"][0]["columns"], content["tables"][0]["rows"][0], strict=True))
    assert (first["network"], first["training error (%)"]) == ("plain20", "3.00")
    assert first["top-1 test error (%)"] == "10.00"
    assert "difference" not in first
    drawn = (tmp_path / f"{name}.svg").read_text()
    for words in ("training batches, augmented", "training images as they are", "test (mean"):
        assert words in drawn
    assert any("Thin dashed" in remark for remark in content["remarks"])


@pytest.mark.slow
def test_counts_are_the_published_ones():
    found = table1.count(18)
    assert found["parameters"] == 11_689_512
    assert found["multiply_adds"] == pytest.approx(1.814e9, rel=1e-3)
    assert found["stages"]["stage4"]["output"] == [7, 7, 512]
    bottlenecks = table1.count(50)  # 16 convolutions 3×3 of 56² × 9 × 64² each
    outside = 16 * 56**2 * 9 * 64**2 + 112**2 * 49 * 3 * 64 + 2048 * 1000
    assert bottlenecks["in_1x1"] == bottlenecks["multiply_adds"] - outside
    first, *others = table1.block_table(table1.block_weights())["rows"]
    assert first[1:4] == [256, "69,632", "1.00 ×"]
    assert [row[2:4] for row in others] == [
        ["73,728", "1.06 ×"],
        ["1,179,648", "16.94 ×"],
    ]
    plain = table1.count(18, residual=False)
    assert plain["parameters"] == 11_515_688
    rows = table1.tables({"resnet18": found})[0]["rows"]
    assert rows[0][-2:] == ["1.8", "+0.8 %"]
    assert table6.parameters("resnet20") == "269,722"
    narrow, wide = table6.tables(experiment.summarise([run_of("resnet20", 8)]), width=8)[0]["rows"][
        :2
    ]
    assert narrow[1] == "68,050" and wide[1] == "464,154"  # resnet32 was not run: the paper's
