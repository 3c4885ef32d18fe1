"""What a GPU would run: the program that XLA compiles for one, where JAX has its CUDA plug-in."""

import importlib.metadata
import importlib.util
import json

import pytest
from jax.experimental import topologies

from benchmarks import gpu_program, reports
from benchmarks.hlo import Program, size_of
from benchmarks.whole_step import Row
from errors import UserError
from tests.support import families, markdown

PLUGINS = importlib.metadata.entry_points(group="jax_plugins")
HAS_CUDA = any(plugin.name.startswith("xla_cuda") for plugin in PLUGINS)
HAS_TPU = importlib.util.find_spec("libtpu") is not None
compiles = pytest.mark.skipif(not HAS_CUDA, reason="needs jax[cuda13], Python 3.12 or newer")
ROW, SMALL = Row("resnet18", 2), {"size": 32, "width": 8}

TEXT = """HloModule jit_step, is_scheduled=true

%fused (param_0.1: f32[8,4,4,16], param_1.1: f32[16]) -> (f32[16], bf16[8,4,4,16]) {
  %param_0.1 = f32[8,4,4,16]{3,2,1,0} parameter(0)
  %param_1.1 = f32[16]{0} parameter(1)
  %sum = f32[16]{0} reduce(%param_0.1, %param_1.1), dimensions={0,1,2}, to_apply=%add
  %half = bf16[8,4,4,16]{3,2,1,0} convert(%param_0.1)
  ROOT %both = (f32[16]{0}, /*index=1*/bf16[8,4,4,16]{3,2,1,0}) tuple(%sum, %half)
}

%sliced (p: f32[10,64], i: s32[], new: f32[1,64]) -> f32[10,64] {
  %i = s32[] parameter(1)
  %new = f32[1,64]{1,0} parameter(2)
  %p = f32[10,64]{1,0} parameter(0)
  %zero = s32[] constant(0)
  ROOT %put = f32[10,64]{1,0} dynamic-update-slice(%p, %new, %i, %zero)
}

%body (state: (s32[], f32[10,64], f32[1,64])) -> (s32[], f32[10,64], f32[1,64]) {
  %state = (s32[], f32[10,64]{1,0}, f32[1,64]{1,0}) parameter(0)
  %at = s32[] get-tuple-element(%state), index=0
  %all = f32[10,64]{1,0} get-tuple-element(%state), index=1
  %one = f32[1,64]{1,0} get-tuple-element(%state), index=2
  %next = f32[10,64] fusion(%all, %at, %one), calls=%sliced, metadata={op_name="F"}
  ROOT %out = (s32[], f32[10,64]{1,0}, f32[1,64]{1,0}) tuple(%at, %next, %one)
}

ENTRY %main (a: f32[8,4,4,16], b: f32[16], s: (s32[], f32[10,64], f32[1,64])) -> f32[16] {
  %a = f32[8,4,4,16]{3,2,1,0} parameter(0)
  %b = f32[16]{0} parameter(1)
  %s = (s32[], f32[10,64]{1,0}, f32[1,64]{1,0}) parameter(2)
  %mixed = (f32[16], bf16[8,4,4,16]) fusion(%a, %b), calls=%fused, metadata={op_name="B"}
  %half = bf16[8,4,4,16]{3,2,1,0} get-tuple-element(%mixed), index=1
  %conv = (bf16[8,4,4,16], u8[4096]) custom-call(%half, %b), TARGET, m={op_name="F"}
  %loop = (s32[], f32[10,64]) while(%s), body=%body, config={"known_trip_count":{"n":"5"}}
  %free = f32[16]{0} scatter(%b, %b, %b), unique_indices=false, to_apply=%add
  %put = f32[16]{0} scatter(%b, %b, %b), unique_indices=true, to_apply=%add
  ROOT %end = f32[16]{0} get-tuple-element(%mixed), index=0
}
"""
TEXT = TEXT.replace("TARGET", 'custom_call_target="__cudnn$convForward"')
TEXT = TEXT.replace('"F"', '"jit(step)/jvp(f)/x"').replace('"B"', '"jit(step)/transpose(jvp(f))/x"')


def test_kernels_and_their_bytes_are_read_from_the_text():
    program = Program(TEXT)
    found = {k.name: k for k in program.kernels()}
    array = 8 * 4 * 4 * 16
    mixed, conv, put = found["mixed"], found["conv"], found["next"]
    assert (mixed.kind, mixed.phase) == ("sums", "backward")
    assert (mixed.read, mixed.written) == (4 * array + 64, 64 + 2 * array)
    assert (conv.kind, conv.phase) == ("convolution", "forward")
    assert (conv.read, conv.written) == (2 * array + 64, 2 * array)  # without its workspace
    assert (put.times, put.read, put.written, put.phase) == (5, 4 + 256, 256, "forward")
    assert put.moved == 5 * 516
    assert set(found) == {"mixed", "conv", "next", "free", "put"}
    assert size_of("(pred[3,2]{1,0}, (bf16[4]{0}, f32[]))") == 6 + 8 + 4


def test_a_scatter_that_adds_has_a_free_order():
    (found,) = Program(TEXT).free_sums()
    assert found.startswith("free: scatter")


def test_a_report_says_what_was_not_compiled(tmp_path):
    record = {
        **Row("resnet50", 256, "bfloat16")._asdict(),
        **{"form": "unrolled", "kernels": 2, "moved": 6.7e9, "activations": 1e9, "seconds": 3.0},
        "kinds": {"forward: sums": {"kernels": 2, "read": 3.35e9, "written": 3.35e9}},
        **{"phases": {"forward": 6.7e9}, "temporary": 2**30, "free_sums": [], "measured": "here"},
    }
    lines = gpu_program.report([record])
    (row,), second = markdown.tables(lines)
    assert row["program"] == "unrolled" and row["ms at 3.35 TB/s"] == "2.00"
    assert row["images/s there"] == "128,000" and row["passes forward"] == "6.7"
    assert markdown.row(second, "forward: sums")["ms"] == "2.00"
    (missing,) = [line for line in lines if line.startswith("Not compiled")]
    assert "resnet50:256:bfloat16 scan_blocks" in missing
    assert "resnet50:256:bfloat16 unrolled" not in missing


def test_records_are_those_of_the_report():
    records = json.loads(gpu_program.RESULTS.read_text())
    text = gpu_program.RESULTS.with_suffix(".md").read_text()
    assert "\n".join(gpu_program.report(records)) in text
    goal = [r for r in records if (r["form"], r["network"]) == ("unrolled", "resnet50")]
    assert min(r["moved"] for r in goal) <= 85e9
    assert not any(r["free_sums"] for r in records if r["form"] != gpu_program.FLAX)


def test_without_the_plug_in_it_says_what_to_install(tmp_path, monkeypatch):
    def absent(*_, **__):
        raise RuntimeError("Unknown backend cuda")

    monkeypatch.setattr(gpu_program.topologies, "get_topology_desc", absent)
    with pytest.raises(UserError, match=r"jax\[cuda13\]"):
        gpu_program.gpu_devices()


@compiles
@pytest.mark.slow
def test_a_small_step_compiles_for_the_card_and_has_no_sum_in_free_order(tmp_path):
    ours = gpu_program.measure(ROW, "unrolled", **SMALL)
    flax = gpu_program.measure(ROW, gpu_program.FLAX, **SMALL)
    assert ours["free_sums"] == [] and len(flax["free_sums"]) == 1
    assert ours["kinds"]["forward: convolution"]["kernels"] == 20
    assert ours["moved"] > ours["activations"] > 0
    loops = gpu_program.measure(Row("resnet20", 2), "scan_blocks", size=8, width=4)
    assert loops["free_sums"] == [] and loops["moved"] > 0
    reports.write(tmp_path / "x.md", "Title", "command", gpu_program.report([ours, flax, loops]))


@compiles
@pytest.mark.slow
@pytest.mark.parametrize("family", families.FAMILIES)
def test_no_family_has_a_sum_in_free_order_on_a_gpu(family, tmp_path):
    """Neither in the compiled program nor in the machine code (PTX) of XLA's own kernels."""
    options = gpu_program.OPTIONS | {"xla_dump_to": str(tmp_path), "xla_dump_emitter_re": ".*"}
    step = families.step(family, devices=gpu_program.gpu_devices(), options=options)
    assert Program(step.lower().compile().as_text()).free_sums() == []
    code = "".join(path.read_text() for path in tmp_path.glob("*.ptx"))
    assert ".visible .entry" in code
    assert not [line for line in code.splitlines() if line.strip().startswith(("atom.", "red."))]


@pytest.mark.skipif(not HAS_TPU, reason="needs jax[tpu]")
@pytest.mark.slow
@pytest.mark.parametrize("family", families.FAMILIES)
def test_no_family_has_a_sum_in_free_order_on_a_tpu(family):
    topology = topologies.get_topology_desc("v5e:2x2", "tpu")
    step = families.step(family, devices=topology.devices)
    assert Program(step.lower().compile().as_text()).free_sums() == []
