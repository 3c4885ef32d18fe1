"""The programs under `benchmarks/` at tiny scale: what they compute and write, not how fast."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

import models
from benchmarks import (
    compile_time,
    input_throughput,
    loop_overhead,
    memory,
    reports,
    scaling,
    step_time,
)
from benchmarks.whole_step import Row, WholeStep
from errors import UserError
from tests.support import markdown

ROOT = Path(__file__).parents[2]


def test_a_report_keeps_what_people_wrote_below(tmp_path, capsys):
    path = tmp_path / "x.md"
    lines = reports.table(("a", "b"), [(1, "two")])
    assert lines == ["| a | b |", "|---|---|", "| 1 | two |"]
    path.write_text(f"old\n{reports.NOTES}\n\nby hand\n")
    reports.write(path, "Title", "python -m x", lines)
    text = path.read_text()
    assert text.startswith("# Title\n\n    python -m x\n\n| a | b |")
    assert text.endswith("## What was tried\n\nby hand\n") and "old" not in text
    reports.write(path, "Title", "python -m x", lines)
    assert path.read_text() == text
    assert "| 1 | two |" in capsys.readouterr().out


def test_an_environment_names_versions_and_load():
    text = reports.environment()
    assert f"jax {jax.__version__}" in text and "load average" in text and "cores of" in text


def test_an_error_of_the_user_is_a_message(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["scaling", "--images_per_s", "resnet50:256"])
    assert reports.run(scaling.main) == 1
    assert "resnet50:256" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["resnet20", "resnet20:x", "resnet20:1:float32:2"])
def test_a_row_is_network_batch_dtype(text):
    with pytest.raises(UserError, match="NETWORK:BATCH"):
        Row.parse(text)
    assert Row.parse("resnet20:8") == Row("resnet20", 8, "float32")
    assert Row.parse("resnet20:8:bfloat16").recipe()[0].model.dtype == "bfloat16"
    with pytest.raises(UserError, match="plain20"):
        Row("plain20", 8).recipe()


def test_operations_are_those_of_table_1():
    config, size, classes = Row("resnet50", 2).recipe()
    costs = step_time.layer_costs(models.create(config.model, classes), (2, size, size, 3))
    assert sum(ops for ops, *_ in costs) / 2 / 2 == pytest.approx(3.858e9, rel=0.01)
    assert len(costs) == 54  # 53 convolutions and the head
    # Two layers, three and two passes: bound by operations, by bytes.
    operations, seconds, with_bn = step_time.roofline(
        [(100, 1, 5), (10, 50, 7)], peak=10, bandwidth=20, itemsize=4
    )
    assert operations == 2 * 100 + 3 * 10
    assert seconds == pytest.approx(2 * 10 + 3 * 10)
    assert with_bn == pytest.approx(seconds + step_time.BN_PASSES * 5 * 4 / 20)


@pytest.mark.slow
def test_compile_time_extrapolates_openly():
    assert compile_time.extrapolated([20, 110, 218], [11, 56, 110], 1202) == pytest.approx(602)
    measured = compile_time.measure(8, True, 1)
    assert measured.trace > 0 and measured.compile > 0
    times = {(depth, False): [compile_time.Seconds(1, depth / 2)] for depth in (20, 110, 218)}
    times |= {(20, True): [compile_time.Seconds(1, 9)], (1202, True): [compile_time.Seconds(1, 10)]}
    seconds, ratios = markdown.tables(compile_time.report(times))
    (extrapolated,) = (r for r in seconds if "extrapolated from 20, 110, 218" in r.values())
    assert {"ResNet-1202", "unrolled", "602", "54.7"} <= set(extrapolated.values())
    for other, ratio in (("ResNet-20 unrolled", "1.000"), ("ResNet-20 scanned", "1.100")):
        assert ratio in markdown.row(ratios, f"ResNet-1202 scanned / {other}").values()


def test_the_largest_batch_is_where_the_line_ends():
    line = memory.Line.through((4, 140), (8, 180))
    assert line == memory.Line(fixed=100, per_image=10)
    assert [line.largest_batch(limit) for limit in (90, 109, 110, 205)] == [0, 0, 1, 10]
    assert memory.growth([(110, 2.0), (218, 2.5), (1202, 6.0)]) == (1202 / 110, 3.0)


def test_a_device_that_does_not_say_what_it_holds_is_asked_for():
    with pytest.raises(UserError, match="--memory"):
        memory.device_limit()


def test_the_overhead_is_the_median_of_the_turns():
    with loop_overhead.terminal():
        assert sys.stderr.isatty()
    config = loop_overhead.recipe("resnet8", steps=4, log_every=2, checkpoint_every=4)
    (turns,) = markdown.tables(loop_overhead.report(config, 4, [2.2, 1.0, 1.1], [2.0, 1.0, 1.0]))
    assert list(markdown.row(turns, "median").values())[1:] == ["275.00", "250.00", "+10.0%"]


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("main", {"jax", "flax", "orbax"}),
        ("main, train", set()),
    ],
)
def test_imports_stay_lean(module, absent):
    """Slow packages are imported where they are used, not when the program starts."""
    absent |= {"tensorflow_datasets", "matplotlib", "tensorboardX", "grain", "sklearn", "pandas"}
    code = f"import sys, {module}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert not absent & set(done.stdout.split())


def test_all_reduced_bytes_are_gradients_statistics_and_four_sums():
    step = WholeStep.of(Row("resnet8", 2))
    leaves = jax.tree.leaves((step.state.params, step.state.batch_stats))
    expected = 4 * (sum(leaf.size for leaf in leaves) + 4)  # loss, errors, images, masked images
    assert scaling.all_reduced_bytes(step.trace().jaxpr.jaxpr) == expected


def test_scaling_tables():
    assert scaling.sent_bytes(100, 1) == 0
    assert scaling.sent_bytes(100, 4) == 150
    ethernet, nvlink = scaling.LINKS[0], scaling.LINKS[-1]
    assert scaling.communication_s(12.5e9, 2, ethernet) == 1
    assert scaling.communication_s(12.5e9, 16, nvlink) is None
    assert scaling.efficiency(3, 1) == 0.75
    limit = scaling.fastest_device(1e8, ethernet, 32)
    seconds = scaling.communication_s(1e8, 1024, ethernet)
    assert scaling.efficiency(32 / limit, seconds) == pytest.approx(scaling.EFFICIENT)

    rate = scaling.Rate.parse("resnet50:32:100", "a test")
    lines = scaling.report([rate], {"resnet50": 1e8, "resnet152": 2e8}, 500.0)
    _, growing, _ = markdown.tables(lines)
    most = markdown.row(growing, "1,024")
    assert (most["global batch"], most["sent per device, MB"]) == ("32,768", "200")
    assert most["compute, ms"] == "320.0"
    assert most[f"{ethernet.name}: ms, efficiency"] == "15.98, 95.2%"
    assert (most["input, images/s"], most["input, MB/s"]) == ("102,400", "11,821")
    assert most["decoding cores"] == "205"
    assert any(line.startswith("Measured:") and rate.source in line for line in lines)
    assert "a test" in rate.source
    unmeasured = lines[lines.index("## resnet152") :]
    assert any("Not measured" in line for line in unmeasured[:3])
    for bad in ("resnet50:32", "resnet50:0:5", "resnet50:32:0", "vgg:32:5"):
        with pytest.raises(UserError, match=bad):
            scaling.Rate.parse(bad, "a test")


def test_rates_come_from_the_records_of_step_time():
    record = {"network": "resnet50", "batch": 8, "dtype": "float32", "measured": "2026, cpu"}
    records = [
        {**record, "contender": step_time.OURS, "images_per_s": 2.0},
        {**record, "contender": step_time.SCANNED, "images_per_s": 3.0},
        {**record, "contender": step_time.PEER, "images_per_s": 9.0},
        {**record, "contender": step_time.OURS, "network": "resnet20", "images_per_s": 9.0},
    ]
    (rate,) = scaling.measured_rates(records)
    assert (rate.network, rate.batch, rate.images_per_s) == ("resnet50", 8, 3.0)
    assert "2026, cpu" in rate.source
    assert scaling.measured_rates([]) == []
    assert scaling.decoded_per_core(input_throughput.REPORT.read_text()) > 0
    assert scaling.decoded_per_core("nothing") is None
