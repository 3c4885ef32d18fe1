"""Train and test residual networks: the flags, and nothing else.

    python main.py --config=configs/digits.py
    python main.py --config=configs/resnet50.py --config.model.shortcut=C --workdir=runs/r50c
    python main.py --config=configs/resnet50.py --mode=summary
    python main.py --mode=evaluate --workdir=runs/r50c
    python main.py --mode=runs FOLDER --html

Exit status: 0 done, 1 an error that the message explains, 2 wrong usage, 128 + signal number when
stopped by SIGINT (130), SIGTERM (143) or SIGHUP (129) after saving; run the same command again to
continue.
"""

from run import interrupt

if __name__ == "__main__":
    interrupt.ends_at_once()

import sys
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict

from configs import command_line
from errors import UsageError
from run import command, files
from run.workdir import Workdir

FLAGS = flags.FlagValues()
flags.DEFINE_bool("help", False, "Show this text.", FLAGS)
flags.DEFINE_string("config", "", "Recipe: FILE or FILE:ARGUMENT, e.g. configs/resnet50.py.", FLAGS)
flags.DEFINE_string("workdir", "", "Folder of the run; by default a name under runs/.", FLAGS)
flags.DEFINE_enum(
    "mode", "train", ["train", "evaluate", "summary", "runs"], "What to do; see above.", FLAGS
)
flags.DEFINE_string("coordinator_address", "", "host:port of process 0, for several.", FLAGS)
flags.DEFINE_integer("num_processes", 0, "Number of processes of the run.", flag_values=FLAGS)
flags.DEFINE_integer("process_id", -1, "Number of this process, from 0.", flag_values=FLAGS)
flags.DEFINE_list("local_device_ids", [], "GPUs of this process, e.g. 0 or 0,1.", FLAGS)
flags.DEFINE_integer(
    "join_seconds", 0, "How long all processes may take to come (0: 120).", 0, flag_values=FLAGS
)
flags.DEFINE_bool("multihost", False, "Several hosts that JAX recognises (TPU pod slice).", FLAGS)
flags.DEFINE_string("html", "", "With --mode=runs: a page with the curves (runs.html).", FLAGS)
flags.DEFINE_alias("h", "help", flag_values=FLAGS)


def main(argv: Sequence[str]) -> None:
    """Parses the flags and runs one mode."""
    if parsed := parse(argv):
        from run import agreement, startup  # JAX takes seconds to import: not for --help

        config, workdir, weight_file = parsed
        startup.set_up_jax(
            FLAGS.join_seconds,
            deterministic=config.deterministic,
            coordinator_address=FLAGS.coordinator_address,
            num_processes=FLAGS.num_processes,
            process_id=FLAGS.process_id,
            multihost=FLAGS.multihost,
            local_device_ids=FLAGS.local_device_ids,
        )
        agreement.same_command(FLAGS.mode, workdir, config)
        MODES[FLAGS.mode](config, workdir, weight_file)


def parse(argv: Sequence[str]) -> tuple[ConfigDict, str, bool] | None:
    """The config, the workdir, and whether the config's weight file is what to test.

    Returns None when the flags only asked for help or the list of runs, which is printed.

    Raises:
      UsageError: an unknown flag, or a wrong value of one.
      UserError: a recipe that does not exist or refuses its argument, or a wrong field of it.
    """
    FLAGS.unparse_flags()
    FLAGS.set_gnu_getopt(True)
    try:
        argv = ["--html=runs.html" if word == "--html" else word for word in argv]
        rest = FLAGS(argv, known_only=True)
    except flags.Error as error:
        raise UsageError(f"{error}\nSee `python main.py --help`.") from error
    if FLAGS.help:
        rows = "\n".join(command_line.help_lines())
        print(f"{__doc__}\n{FLAGS.get_help()}\n\nFields of a config:\n{rows}")
        return None
    if FLAGS.mode == "runs":
        _runs(*rest[1:])
        return None
    if FLAGS.config:
        config = command_line.recipe(FLAGS.config)
    elif FLAGS.workdir:
        config = Workdir(FLAGS.workdir).read_config()
    else:
        raise UsageError("--config is missing, e.g. --config=configs/digits.py")
    config = command_line.with_fields(config, rest)
    workdir = FLAGS.workdir or command_line.default_workdir(FLAGS.config, config)
    return config, workdir, bool(FLAGS.config and config.init_from)


def _runs(folder: str = "runs", *more: str) -> None:
    from run import overview

    if more or folder.startswith("-"):
        raise UsageError(f"unexpected argument {(more or [folder])[0]!r}; see --help")
    runs, unreadable = overview.find(folder)
    print("\n".join(overview.listing(runs, unreadable)))
    if FLAGS.html:
        print(f"Written: {files.write_text(FLAGS.html, overview.page(runs, unreadable))}")


def _train(config, workdir, weight_file):
    import train
    from training import task

    result = train.train(config, workdir)
    print(
        f"Test {task.of(config).said(result)}. "
        f"Everything is in {workdir}: metrics, curves, checkpoints"
        + (", TensorBoard events." if config.tensorboard else ".")
    )


def _evaluate(config, workdir, weight_file):
    import evaluate

    evaluate.run(config, workdir, weight_file=weight_file)


def _summary(config, workdir, weight_file):
    import input_pipeline
    import models
    from models import summary

    num_classes, image_shape = input_pipeline.classes_and_shape(config)
    model = models.create(config.model, num_classes)
    if config.task != "classification":
        print("The backbone alone, which the layers of detection or segmentation follow:\n")
        model = model.clone(num_classes=0)
    print(summary.format_table(summary.summary(model, image_shape)))


MODES = {"train": _train, "evaluate": _evaluate, "summary": _summary}

if __name__ == "__main__":
    sys.exit(command.run(main, sys.argv))
