"""Train and test residual networks: the flags, and nothing else.

    python main.py --config=configs/digits.py
    python main.py --config=configs/resnet50.py --config.model.shortcut=C --workdir=runs/r50c
    python main.py --mode=evaluate --workdir=runs/r50c

Exit status: 0 done, 1 an error that the message explains, 2 wrong usage, 128 + signal number when
stopped by SIGINT (130) or SIGTERM (143) after saving; run the same command again to continue.
"""

import logging
import os
import signal
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from configs import fields
from errors import UserError

HELP_WORDS = ("--help", "-help", "-h", "--helpfull")
WORKDIR_RECIPE = "workdir.py"
NOT_RECIPES = ("__init__", "common", "fields", "workdir")
# What reading a config file and its flags may raise.
CONFIG_ERRORS = (
    flags.Error,
    AttributeError,
    ImportError,
    KeyError,
    SyntaxError,
    TypeError,
    ValueError,
)
MODES = ("train", "evaluate", "summary")
COMPILATION_CACHE = Path.home() / ".cache" / "residual-networks" / "xla"

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Recipe, e.g. configs/resnet50.py or configs/cifar10.py:resnet110."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", "", "Folder of the run; by default a name under runs/ made from the config."
)
_MODE = flags.DEFINE_enum(
    "mode", "train", MODES, "train (and test), evaluate a workdir, or print the network's summary."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", "", "host:port of process 0, for a run of several processes."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", 0, "Number of processes of the run.")
_MULTIHOST = flags.DEFINE_bool(
    "multihost", False, "Several hosts in an environment that JAX recognises (TPU pod slice)."
)
_PROCESS_ID = flags.DEFINE_integer("process_id", -1, "Number of this process, from 0.")


def default_workdir(name, config):
    """`runs/<config>-<network>-seed<seed>`, e.g. `runs/digits-resnet20-seed0`."""
    file, _, arg = name.partition(":")
    family = "resnet" if config.model.residual else "plain"
    network = f"{family}{config.model.depth}"
    options = [token for token in arg.split(",") if token and not token[-1].isdigit()]
    stem = Path(file).stem
    parts = [stem] if stem == network else [stem, network]
    return str(Path("runs", "-".join([*parts, *options, f"seed{config.seed}"])))


def main(argv):
    """Runs one mode; every error that a user can cause ends in one message and status 1."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; see --help")
    config = _CONFIG.value
    if config is None:
        raise app.UsageError("--config is missing, e.g. --config=configs/digits.py")
    workdir = _WORKDIR.value or default_workdir(_config_name(sys.argv), config)
    _set_up_jax()

    from run import processes

    with processes.ended_by_errors():
        _run_mode(config, workdir)


def _run_mode(config, workdir):
    if _MODE.value == "train":
        _train(config, workdir)
    elif _MODE.value == "evaluate":
        import evaluate

        # With a recipe of its own, init_from is what to test; with a workdir's, how it started.
        recipe = Path(_config_name(sys.argv).partition(":")[0]).name
        weight_file = bool(config.init_from) and recipe not in ("", WORKDIR_RECIPE)
        evaluate.run(config, workdir, weight_file=weight_file)
    else:
        _print_summary(config)


def _set_up_jax():
    import jax

    from run import allocator, processes

    allocator.keep_freed_memory()
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        jax.config.update("jax_compilation_cache_dir", str(COMPILATION_CACHE))
    processes.join(
        _COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value, multihost=_MULTIHOST.value
    )
    if jax.process_index() > 0:  # one voice is enough
        logging.getLogger("residual").setLevel(logging.WARNING)


def _train(config, workdir):
    import train

    try:
        result = train.train(config, workdir)
    except train.Interrupted as interrupted:
        print(f"{interrupted}; run the same command to continue from {workdir}.")
        sys.exit(128 + interrupted.signum)
    print(
        f"Test accuracy {100 * result['accuracy']:.2f} % "
        f"(top-1 error {100 * result['top1_error']:.2f} %, {result['images']} images). "
        f"Everything is in {workdir}: metrics.jsonl, curves.png, checkpoints/"
        + (", TensorBoard events." if config.tensorboard else ".")
    )


def _print_summary(config):
    import input_pipeline
    import models
    from models import summary

    try:
        facts = input_pipeline.open_data(config, input_pipeline.make_mesh()).facts
        num_classes, shape = facts.num_classes, facts.image_shape
    except UserError as error:  # a network can be looked at before its data are there
        num_classes = 1000 if config.model.stem == "imagenet" else 10
        shape = (config.data.image_size, config.data.image_size, 3)
        print(
            f"{error}\nWithout the data, this assumes {num_classes} classes and {shape} images.\n"
        )
    model = models.create(config.model, num_classes)
    print(summary.format_table(summary.summary(model, shape)))


def _config_name(argv):
    for i, word in enumerate(argv):
        flag, _, value = word.lstrip("-").partition("=")
        if flag == "config" and word.startswith("-"):
            return value or "".join(argv[i + 1 : i + 2])
    return ""


def _with_workdir_config(argv):
    """Adds `--config` for a workdir that knows its own, so that --workdir alone is enough."""
    if _config_name(argv):
        return argv
    for i, word in enumerate(argv):
        flag, _, value = word.lstrip("-").partition("=")
        if flag == "workdir" and word.startswith("-"):
            workdir = value or "".join(argv[i + 1 : i + 2])
            recipe = Path(__file__).parent / "configs" / WORKDIR_RECIPE
            return [*argv[:1], f"--config={recipe}:{workdir}", *argv[1:]]
    return argv


def _help():
    """The text of --help: what there is to run, the flags, every field of a config."""
    rows = "\n".join(f"  --config.{name}: {text}" for name, text in fields.HELP.items())
    return f"{__doc__}\n{flags.FLAGS.main_module_help()}\n\nFields of a config:\n{rows}"


def _parse(argv):
    if any(word in HELP_WORDS for word in argv[1:]):
        print(_help())
        sys.exit(0)
    _check_config_file(_config_name(argv))
    try:
        return flags.FLAGS(argv)
    except CONFIG_ERRORS as error:
        # absl wraps an error of get_config into a whole traceback; its last line is the message.
        recipes_own = f"{UserError.__module__}.{UserError.__name__}: "
        message = _innermost(error).rpartition(recipes_own)[2].strip()
        if isinstance(error, AttributeError | KeyError):
            message = f"no such field of the config: {message}"
        # A wrong flag is wrong usage; what a config refuses, its fields and values, is not.
        usage = isinstance(error, flags.Error) and not any(
            sign in str(error) for sign in ("--config.", recipes_own)
        )
        kind = app.UsageError if usage else UserError
        raise kind(f"{message}\nSee `python main.py --help`.") from error


def _innermost(error):
    """The words of an error that other errors may be wrapped around."""
    inside = error.args[0] if error.args else ""
    return _innermost(inside) if isinstance(inside, Exception) else str(inside)


def _check_config_file(name):
    path = Path(name.partition(":")[0])
    if name and not path.is_file():
        known = sorted(str(p) for p in Path("configs").glob("*.py") if p.stem not in NOT_RECIPES)
        raise UserError(
            f"--config={name}: there is no file {path}; the recipes here: {', '.join(known)}."
        )


def run(argv):
    """Parses the flags and runs; returns the exit status."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING, stream=sys.stderr)
    logging.getLogger("residual").setLevel(logging.INFO)
    # While it trains, train.py has its own way with signals; elsewhere there is nothing to save.
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))
    try:
        main(_parse(_with_workdir_config(argv)))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except app.UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    sys.stdout.reconfigure(errors="backslashreplace")  # a workdir's name can be any bytes
    sys.exit(run(sys.argv))
