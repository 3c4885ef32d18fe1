"""From the words of a command line to a config."""

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from configs.fields import FIELDS, Range
from errors import UsageError, UserError, first_line

NOT_RECIPES = ("__init__", "base", "command_line", "detectors", "fields", "recipes")


def help_lines() -> Iterator[str]:
    """One line or two on every field of a config, for --help."""
    for name, (default, text, allowed) in FIELDS.items():
        yield f"  --config.{name}={default}: {text}"
        if allowed and not isinstance(allowed, Range):
            yield f"      one of {', '.join(allowed)}"


def recipe(name: str) -> ConfigDict:
    """What `get_config` of a config file returns; the file is Python code and is run.

    Args:
      name: FILE or FILE:ARGUMENT.

    Raises:
      UserError: there is no such file, it refuses its argument, or it does not run.
    """
    file, _, argument = name.partition(":")
    if not Path(file).is_file():
        known = sorted(str(p) for p in Path("configs").rglob("*.py") if p.stem not in NOT_RECIPES)
        raise UserError(
            f"--config={name}: there is no file {file}; the recipes here: {', '.join(known)}."
        )
    spec = importlib.util.spec_from_file_location("recipe", file)
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.get_config(argument) if argument else module.get_config()
    except UserError:
        raise
    except Exception as error:  # whatever somebody's own file raises
        raise UserError(f"--config={name}: the file ends with {first_line(error)}.") from error


def with_fields(config: ConfigDict, argv: Sequence[str]) -> ConfigDict:
    """The config with the values of `--config.FIELD=VALUE`.

    Args:
      config: complete.
      argv: the command's name and what it has left of its arguments.

    Raises:
      UsageError: there is an argument that is no field of a config.
      UserError: there is no such field, or the value does not fit it.
    """
    values = flags.FlagValues()
    try:
        holder = config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, sys_argv=argv
        )
        unexpected = values(argv)[1:]
    except flags.UnrecognizedFlagError as error:
        raise UsageError(f"{error}\nSee `python main.py --help`.") from error
    except (AttributeError, KeyError) as error:
        raise UserError(f"no such field of the config: {error}; --help lists them all.") from error
    except (flags.Error, TypeError, ValueError) as error:
        raise UserError(f"{error}\nSee `python main.py --help`.") from error
    if unexpected:
        raise UsageError(f"unexpected argument {unexpected[0]!r}; see --help")
    return holder.value


def default_workdir(name: str, config: ConfigDict) -> str:
    """`runs/<config>-<network>-<options>-seed<seed>`, e.g. `runs/digits-resnet20-seed0`.

    Args:
      name: of the recipe, FILE or FILE:ARGUMENT.
      config: with its fields set.
    """
    file, _, argument = name.partition(":")
    network = f"{'resnet' if config.model.residual else 'plain'}{config.model.depth}"
    options = [token for token in argument.split(",") if token and not token[-1].isdigit()]
    parts = dict.fromkeys([Path(file).stem, network, *options, f"seed{config.seed}"])
    return str(Path("runs", "-".join(parts)))
