"""Testing: one or several networks over a split, every image exactly once.

    python main.py --mode=evaluate --workdir=runs/x --config.eval.protocol=10crop

What is measured, and by which protocol, is the task's (`training.task`).
"""

import datetime
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from data import corrupt
from input_pipeline import open_data
from run import provenance
from run.agreement import agreed
from run.checkpoint import checksums
from run.mesh import make_mesh
from run.workdir import Workdir
from testing import fitting
from testing.opened_run import OpenedRun
from training import task
from training.check import check
from training.start import adopted


def run(
    config: ConfigDict, workdir: str, mesh: Mesh | None = None, weight_file: bool = False
) -> dict[str, Any]:
    """Tests a workdir (and `config.eval.ensemble`) and writes the result into it.

    The network, its weights and its normalisation come from the workdir; `config` says what to test
    on and how (`dataset`, `data_dir`, `data`, `eval`). With `weight_file` the weights are those of
    `config.init_from`, the network is `config.model` (as `training.start.adopted` changes it), and
    the workdir only takes the result.

    Returns:
      What `evaluation.json` holds: `measure`'s values with protocol, split, networks and device.

    Raises:
      UserError: a workdir holds no finished checkpoint, the classes differ, or the protocol cannot
        work on these images.
    """
    mesh = mesh or make_mesh()
    config = adopted(config) if weight_file else config
    trained = config if weight_file else Workdir(workdir).read_config()
    config = _evaluation_config(config, trained, mesh)
    check(config, mesh.size)
    data, runs = agreed(lambda: _opened(config, workdir, mesh, weight_file), _description)
    result = task.tested(config, runs, data, mesh)
    corrupt.warn_of(result)
    result |= question(config, runs)
    result |= {"date": datetime.date.today().isoformat(), "device": provenance.device()}
    result |= {"jax": jax.__version__}
    if jax.process_index() == 0:
        folder = Workdir(workdir)
        folder.write(folder.evaluation, result, indent=2)
        number, protocol = len(result["networks"]), result["protocol"]
        who = result["networks"][0]["workdir"] if number == 1 else f"ensemble of {number}"
        said = task.of(config).said(result)
        print(f"{who}, {result['dataset']} {result['split']}, {protocol}: {said}.")
    return result


def _opened(config, workdir, mesh, weight_file):
    """The data to test on and the runs to test, which fit them."""
    others = [task.opened(folder, config.task) for folder in config.eval.ensemble]
    runs = [] if weight_file else [task.opened(workdir, config.task)]
    data = open_data(config, mesh)
    if weight_file:
        runs = [task.from_weight_file(config, data.facts)]
    runs += others
    fitting.check(runs, data, config)
    return data, runs


def _description(opened):
    data, runs = opened
    return data.facts.to_dict() | {
        f"network {i}": {"weights": checksums(one.variables)} | one.facts.to_dict()
        for i, one in enumerate(runs)
    }


def _evaluation_config(config, trained, mesh):
    """The run's config with the questions of `config`; the training batch need not fit the mesh."""
    merged = trained.copy_and_resolve_references()
    merged.update(dataset=config.dataset, data_dir=config.data_dir)
    merged.data.update(config.data)
    merged.eval.update(config.eval)
    merged.optim.accumulate_steps = 1
    merged.model.bn_group_size = 0  # of the training batch; precise BN takes the network's own
    merged.augment.update(mixup=0.0, cutmix=0.0, repeats=1)  # what wants a batch of its own size
    if merged.batch_size % mesh.size:
        merged.batch_size = mesh.size * max(1, merged.batch_size // mesh.size)
    return merged


def question(config: ConfigDict, runs: Sequence[OpenedRun]) -> dict[str, Any]:
    """What a result is an answer to: protocol, images and networks."""
    return {
        "protocol": config.eval.protocol,
        "scales": list(config.eval.scales) if config.eval.protocol == "multiscale" else None,
        "precise_bn": config.eval.precise_bn,
        "dataset": config.dataset,
        "split": config.eval.split,
        "networks": [
            {"workdir": one.workdir, **{n: one.config.model[n] for n in ("depth", "residual")}}
            | {"step": one.step}
            for one in runs
        ],
    }
