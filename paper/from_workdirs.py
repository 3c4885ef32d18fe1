"""What tables 4 and 5 share: testing given workdirs with a protocol, each only once."""

import argparse

from tqdm import tqdm

import evaluate
import restored
from configs import workdir as workdir_config
from paper import result

PAPER_SCALES = (224, 256, 384, 480, 640)
# What makes two tests the same.
QUESTION = ("protocol", "scales", "split", "dataset", "networks")


def parser(description):
    """Options of a command that tests existing workdirs."""
    p = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    p.add_argument("--workdirs", nargs="+", required=True, help="folders of finished runs")
    p.add_argument("--protocol", default="multiscale", choices=("center", "10crop", "multiscale"))
    p.add_argument("--scales", type=int, nargs="+", help="shorter sides; default: the config's")
    p.add_argument("--split", default="test", help="test, validation or train")
    p.add_argument("--dataset", help="default: the one that the first workdir was trained on")
    p.add_argument("--data_dir", help="default: the first workdir's")
    p.add_argument("--batch_size", type=int, help="images per evaluation step")
    p.add_argument("--out", default="results", help="folder of the JSON and Markdown")
    return p


def each(args, name):
    """Tests every workdir by itself; `<out>/<name>.json` spares what it holds already."""
    known = (result.read(args.out, name) or {}).get("measured", [])
    return [
        _tested(args, folder, (), known)
        for folder in tqdm(args.workdirs, desc=name, unit="network", disable=None)
    ]


def together(args, name):
    """Tests all workdirs as one ensemble."""
    known = (result.read(args.out, name) or {}).get("measured")
    first, *others = args.workdirs
    return _tested(args, first, tuple(others), [known] if known else [])


def _tested(args, folder, others, known):
    config = workdir_config.get_config(folder)
    config.eval.update(protocol=args.protocol, split=args.split, ensemble=others)
    if args.scales:
        config.eval.scales = tuple(args.scales)
    if args.batch_size:
        config.eval.batch_size = args.batch_size
    config.update(dataset=args.dataset or config.dataset)
    config.update(data_dir=config.data_dir if args.data_dir is None else args.data_dir)
    members = [restored.load(path) for path in (folder, *others)]
    question = evaluate.question(config, members)
    for one in known:
        if all(one.get(key) == question[key] for key in QUESTION):
            return one
    name = f"{'resnet' if members[0].model.residual else 'plain'}{members[0].model.depth}"
    if members[0].model.residual and members[0].model.depth == 34:
        name += members[0].model.shortcut
    return evaluate.run(config, folder) | {"name": name, "workdir": str(folder)}


def notes(args, measured):
    """What differs from the paper's test."""
    found = [f"{one['dataset']} {one['split']} instead of ImageNet" for one in measured[:1]]
    if args.protocol != "multiscale":
        found.append(f"{args.protocol} instead of multi-scale testing")
    elif tuple(measured[0]["scales"]) != PAPER_SCALES:
        found.append(f"shorter sides {measured[0]['scales']} instead of {list(PAPER_SCALES)}")
    if measured[0]["dataset"] == "tfds:imagenet2012":
        found = found[1:]
    return found
