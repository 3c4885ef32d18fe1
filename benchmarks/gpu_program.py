"""The real train step compiled for a GPU on a machine that has none: what its kernels move.

    python -m benchmarks.gpu_program            # needs jax[cuda13] (Python 3.12 or newer), no GPU

XLA compiles for the card that a target file describes (`benchmarks/h100.txtpb`). Printed are, for
this repository and for plain Flax modules: kernels of each kind, bytes that they read and write,
temporary memory, the time that the bytes need at the card's bandwidth, and passes, which are bytes
moved over bytes of the outputs of all convolutions. Bytes are counted as `benchmarks.hlo` says,
each array whole; nothing here was run or timed on a card.
"""

import json
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from jax.experimental import topologies

from benchmarks import reports
from benchmarks.hlo import Program, size_of
from benchmarks.whole_step import Row, WholeStep
from errors import UserError
from run import command, files

TARGET = Path(__file__).with_name("h100.txtpb")
BANDWIDTH = 3.35e12  # bytes/s, data sheet of the H100 SXM
RESULTS = Path(__file__).with_suffix(".json")
# No card to try kernels on. What tuning chooses changes their speed, not what they read and write.
OPTIONS = {"xla_gpu_autotune_level": "0"}
FORMS: dict[str, dict[str, Any]] = {
    "unrolled": {},
    "scan_blocks": {"scan_blocks": True},
    "remat": {"remat": "block"},
    "scan_blocks, remat": {"scan_blocks": True, "remat": "block"},
}
FLAX = "Flax modules"
ROWS = (
    "resnet50:256:bfloat16",
    "resnet50:256:float32",
    "resnet152:256:bfloat16",
    "resnet20:128:bfloat16",
    "resnet20:128:float32",
)
PROGRAMS = [(text, form) for text in ROWS for form in (FLAX, *FORMS)]


def gpu_devices(target: Path = TARGET) -> list[jax.Device]:
    """The one device of a target file, to compile for and not to run on.

    Raises:
      UserError: JAX's CUDA plug-in is not installed, or cannot read the file.
    """
    try:
        described = topologies.get_topology_desc(
            target.stem, "cuda", target_config=target.read_text(), topology="1x1x1"
        )
    except (RuntimeError, NotImplementedError, OSError) as error:
        raise UserError(
            f"{target}: JAX cannot compile for it ({error}); install jax[cuda13] with Python 3.12 "
            "or newer; a GPU is not needed."
        ) from error
    return list(described.devices)


def compiled(
    row: Row, form: str, size: int = 0, options: Mapping[str, str] = OPTIONS, **fields: Any
) -> Any:
    """The compiled train step (`jax.stages.Compiled`) of a form of ours, or of Flax's modules."""
    shared: dict[str, Any] = {"size": size, "devices": gpu_devices(), "options": dict(options)}
    if form == FLAX:
        return WholeStep.of_flax(row, **shared, **fields).lower().compile()
    return WholeStep.of(row, **shared, **FORMS[form], **fields).lower().compile()


def measure(row: Row, form: str, size: int = 0, **fields: Any) -> dict[str, Any]:
    """What `RESULTS` holds of one program; `size` and `fields` are those of `Row.recipe`."""
    started = time.perf_counter()
    step = compiled(row, form, size, **fields)
    program = Program(step.as_text())
    kernels = list(program.kernels())
    sums: dict[str, Counter[str]] = {}
    for k in kernels:
        part = {"kernels": k.times, "read": k.times * k.read, "written": k.times * k.written}
        sums.setdefault(f"{k.phase}: {k.kind}", Counter()).update(part)
    phases: Counter[str] = Counter()
    for k in kernels:
        phases[k.phase] += k.moved
    return {
        **row._asdict(),
        "form": form,
        "kinds": {name: dict(sums[name]) for name in sorted(sums)},
        "kernels": sum(k.times for k in kernels),
        "moved": sum(k.moved for k in kernels),
        "phases": dict(phases),
        "activations": sum(
            size_of(k.results[0]) * k.times
            for k in kernels
            if k.phase == "forward" and k.kind == "convolution"
        ),
        "temporary": step.memory_analysis().temp_size_in_bytes,
        "free_sums": program.free_sums(),
        "seconds": time.perf_counter() - started,
        "measured": reports.environment(),
    }


def summary(records: Iterable[Mapping[str, Any]]) -> list[str]:
    """One line per program, and below it the programs that were not compiled."""
    header = ["network", "program", "kernels", "GB moved", "ms at 3.35 TB/s", "images/s there"]
    header += ["passes forward", "backward", "temporary, GiB", "sums in free order"]
    rows: list[Sequence[object]] = []
    for r in records:
        seconds = r["moved"] / BANDWIDTH
        passes = [
            f"{r['phases'].get(phase, 0) / r['activations']:.1f}" if r["activations"] else ""
            for phase in ("forward", "backward")
        ]
        rows.append(
            [
                f"{r['network']}, {r['batch']}, {r['dtype']}",
                r["form"],
                r["kernels"],
                f"{r['moved'] / 1e9:.2f}",
                f"{1e3 * seconds:.2f}",
                f"{r['batch'] / seconds:,.0f}",
                *passes,
                f"{r['temporary'] / 2**30:.2f}",
                len(r["free_sums"]),
            ]
        )
    done = {(r["network"], r["batch"], r["dtype"], r["form"]) for r in records}
    missing = [f"{text} {form}" for text, form in PROGRAMS if (*Row.parse(text), form) not in done]
    return [*reports.table(header, rows), "", f"Not compiled: {'; '.join(missing) or 'none'}."]


def kinds(record: Mapping[str, Any]) -> list[str]:
    """The kernels of one program by phase and kind."""
    rows = [
        (
            name,
            part["kernels"],
            f"{part['read'] / 1e9:.3f}",
            f"{part['written'] / 1e9:.3f}",
            f"{1e3 * (part['read'] + part['written']) / BANDWIDTH:.2f}",
        )
        for name, part in record["kinds"].items()
    ]
    title = f"## {record['network']}, {record['batch']}, {record['dtype']}, {record['form']}"
    header = ["phase and kind", "kernels", "GB read", "GB written", "ms"]
    where = f"Compiled in {record['seconds']:.0f} s. {record['measured']}"
    return ["", title, "", *reports.table(header, rows), "", where, *record["free_sums"]]


def _place(record):
    """Where a program stands among `PROGRAMS`; others come last."""
    row = (record["network"], record["batch"], record["dtype"], record["form"])
    wanted = [(*Row.parse(text), form) for text, form in PROGRAMS]
    return wanted.index(row) if row in wanted else len(wanted)


def report(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """The summary, then every program."""
    return [*summary(records), *(line for record in records for line in kinds(record))]


def main(argv: Sequence[str] | None = None) -> None:
    """Compiles, keeps the records and writes the report after each program."""
    parser = command.Parser("python -m benchmarks.gpu_program", __doc__)
    parser.add_argument("--rows", nargs="+", default=ROWS, help="NETWORK:BATCH[:DTYPE]")
    parser.add_argument("--forms", nargs="+", default=[FLAX, *FORMS], choices=[FLAX, *FORMS])
    parser.add_argument("--size", type=int, default=0, help="of images; 0: 224, or 32 for 6n+2")
    parser.add_argument("--results", type=Path, default=RESULTS, help="records; report beside it")
    options = parser.parse_args(argv)
    # Nothing is run: the plug-in leaves out its check of a driver, and a card stays free.
    jax.config.update("jax_platforms", "cpu")
    identity = ("network", "batch", "dtype", "form")
    records = json.loads(options.results.read_text()) if options.results.exists() else []
    for text in options.rows:
        for form in options.forms:
            new = measure(Row.parse(text), form, options.size)
            records = sorted(reports.updated(records, [new], identity), key=_place)
            files.write_text(options.results, json.dumps(records, indent=1) + "\n")
            path = options.results.with_suffix(".md")
            lines = report(records)
            reports.write(path, "The train step compiled for a GPU", parser.prog, lines)


if __name__ == "__main__":
    sys.exit(reports.run(main))
