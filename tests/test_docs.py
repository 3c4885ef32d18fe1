"""What README.md, CONTRIBUTING.md and docs/ say works: commands, flags, programs, links.

Every command of a `bash` block runs at a small scale (`substituted`), or stands in NOT_RUN with the
reason. `python` blocks run too.
"""

import re
import shlex
import zlib
from pathlib import Path

import pytest

from tests.support import ilsvrc
from tests.support.forked_commands import ForkedCommands
from tests.support.markdown import code_blocks

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

NOT_RUN = {  # how a command begins: why it does not run here
    "bash .ci/run": "runs these tests",
    "gcloud": "needs a TPU slice",
    "pip install": "installs packages; .ci/run does it",
    "python -m analysis.localization": "tests/analysis/test_localization.py has it, smaller",
    "python -m benchmarks.detection": "needs torch",
    "python main.py --config=configs/detection": "tests/detection/test_task.py has it, smaller",
    "python main.py --mode=evaluate --config=configs/detection": "needs COCO",
    "python main.py --mode=evaluate --workdir=runs/coco": "needs COCO",
    "python predict.py --workdir=runs/coco": "tests/detection/test_task.py has it, smaller",
    "python -m pytest": "runs these tests",
    "python main.py --config=configs/resnet50.py --workdir=/shared/r50 --coord": "waits for others",
    "python predict.py --weights=maskrcnn.safetensors": "tests/detection/ has it, smaller",
    "python prepare_data.py cifar10": "needs the genuine archive",
    "python prepare_data.py fashion_mnist": "needs the genuine archives",
    "ruff": ".ci/run does it",
    "srun": "needs Slurm",
}

# Options that make a command small. Of an option given twice, programs take the last.
RUN = """--config.num_steps=2 --config.batch_size=4 --config.log_every=1 --config.checkpoint_every=2
    --config.eval_every=2 --config.tensorboard=False --config.optim.learning_rate=0.001
    --config.optim.warmup_steps=1 --config.model.width=4 --config.eval.precise_bn_batches=2 """
DIGITS = """--config.model.depth=8 --config.dataset=digits --config.data.validation_size=0
    --config.data.image_size=8 --config.eval.batch_size=100"""
PHOTOS = """--config.model.depth=18 --config.dataset=folder:{tmp}/photos --config.data_dir={tmp}
    --config.data.test_split=val --config.data.image_size=64 --config.data.num_threads=1
    --config.augment.resize_min=64 --config.augment.resize_max=96 --config.eval.batch_size=4
    --config.eval.resize=64 --config.eval.scales=(64,) --config.model.dtype=float32"""
GRID = (
    "--dataset=digits --steps=2 --width=4 --batch_size=32 --seeds=0 --runs={tmp}/grid --out={tmp}"
)
SMALL = {  # of a program, or of its package
    "paper.table1": "--depths 18 --out={tmp}",
    **dict.fromkeys(
        ("paper.table4", "paper.table5", "paper.table8", "paper.report"), "--out={tmp}"
    ),
    "paper.figure7": f"{GRID} --depths 8 --images=16",
    "paper.identity_mappings": f"{GRID} --depth 8 --tables 2",
    "paper.construction": f"{GRID} --depths 8 14 --learning_rates 0.1",
    "paper": f"{GRID} --depths 8",
    **dict.fromkeys(("analysis.cam", "analysis.confusion"), "--out={tmp}"),
    "analysis.transfer": """--data={tmp}/photos --steps=2 --batch_size=4 --rates 0.001
        --methods probe --held_out=0.2 --runs={tmp}/{new} --out={tmp}/{new} --field=model.depth=18
        --field=model.width=4 --field=data.image_size=32 --field=eval.resize=32
        --field=eval.batch_size=4 --field=data.test_split=val
        --init_from={tmp}/weights.safetensors""",
    "analysis.class_folders": """--dataset=digits --counts 2 2 --source_images=2 --tested=1
        --out={tmp}/{new}""",
    "analysis.depth": "--depths 18 --seeds 0 --images=4 --out={tmp}",
    "analysis.gradients": "--runs=1 --images=4 --out={tmp}",
    "analysis.invariance": "--max_shift=2 --images=4 --out={tmp}",
    "analysis": "--images=4 --out={tmp}",
    "prepare_data": "--data_dir={tmp}/{new}",
}
NAMES = {  # in the documentation: here
    r"\bruns/[\w.-]+": "{tmp}/run",
    r"\bphoto\.jpg$": "{tmp}/photo.jpg",
    r"^folder/$": "{tmp}/photos/val",
    r"resnet50\.safetensors": "{tmp}/weights.safetensors",
    r"folder:.*": "folder:{tmp}/photos",
    r"^--html$": "--html={tmp}/runs.html",
    r"^DIR$": "{tmp}/archives",
    r"^OLD_DATA_DIR$": "{tmp}/tfrecord",
}


def commands():
    """Every command of every bash block, each once, in plain words."""
    lines = [
        line
        for page in PAGES
        for block in code_blocks(page, "bash")
        for line in block.replace("\\\n", "").splitlines()
    ]
    split = [shlex.join(shlex.split(line, comments=True)).split(" '&&' ") for line in lines]
    return list(dict.fromkeys(command for found in split for command in found if command))


def in_text():
    """Every `python …` in the text between the blocks."""
    text = "".join(re.sub(r"^```.*?^```$", "", p.read_text(), flags=re.S | re.M) for p in PAGES)
    return re.findall(r"`(python [^`]+)`", text)


def program(command):
    """What a command starts, `('main.py',)` or `('-m', 'paper.table1')`; None if not ours."""
    python, *words = shlex.split(command)
    words = tuple(words[: 1 + ("-m" in words[:1])])
    path = f"{words[1].replace('.', '/')}.py" if len(words) > 1 else "".join(words)
    return words if python == "python" and (ROOT / path).is_file() else None


@pytest.fixture(scope="module")
def run(tmp_path_factory, data_dir):
    """Runs `python …` in the repository; it must succeed. Returns the output."""
    tmp = tmp_path_factory.mktemp("docs")
    environment = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TFDS_DATA_DIR": data_dir,
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    results = {path: path.stat().st_mtime_ns for path in (ROOT / "results").iterdir()}
    with ForkedCommands(ROOT, environment, tmp / "output.txt") as run:
        yield run
    for path in (ROOT / "results").iterdir():
        assert results.get(path) == path.stat().st_mtime_ns, f"{path}: a command here wrote it"


@pytest.fixture(scope="module")
def tmp(run, tmp_path_factory):
    """A folder with what stands in for NAMES: photos, a small run, its weights."""
    tmp = tmp_path_factory.mktemp("stand-ins")
    for split in ("train", "val"):
        for synset, files in ilsvrc.train_files().items():
            folder = tmp / "photos" / split / synset
            folder.mkdir(parents=True)
            for name, content in files.items():
                (folder / name).write_bytes(content)
    (tmp / "photo.jpg").write_bytes(ilsvrc.encoded(1, "photo.JPEG"))
    small = (RUN + PHOTOS).format(tmp=tmp).split()
    workdir, weights = f"--workdir={tmp}/run", f"--output={tmp}/weights.safetensors"
    run("main.py", "--config=configs/resnet50.py:quick", workdir, *small)
    run("export.py", "--format=safetensors", workdir, weights)
    return tmp


def substituted(command, tmp):
    """The words of a command with the names and the scale of this test."""
    words = shlex.split(command)[1:]
    for name, here in NAMES.items():
        words = [re.sub(name, here.format(tmp=tmp), word) for word in words]
    recipe = next((i for i, word in enumerate(words) if word.startswith("--config=")), None)
    if recipe is not None:
        cifar = re.search("cifar|mnist|digits", words[recipe])
        extra = RUN + (DIGITS if cifar else PHOTOS) + " --workdir={tmp}/{new}"
        if not any(word.startswith("--mode") for word in words):
            words[recipe] += ",quick" if ":" in words[recipe] else ":quick"
    else:
        name = program(command)[-1].removesuffix(".py")
        extra = SMALL.get(name, SMALL.get(name.partition(".")[0], ""))
    return [*words, *extra.format(tmp=tmp, new=zlib.crc32(command.encode())).split()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", [c for c in commands() if not c.startswith(tuple(NOT_RUN))], ids=lambda c: c[:90]
)
def test_command_works(command, run, tmp):
    assert program(command), "no program of this repository, and not in NOT_RUN"
    if "imagenet2012" in command and not (tmp / "archives").exists():
        ilsvrc.rewrite_as_tfrecord(ilsvrc.prepare(tmp), tmp / "tfrecord")
    run(*substituted(command, tmp))


@pytest.mark.slow
@pytest.mark.parametrize(
    "page", [p for p in PAGES if code_blocks(p, "python")], ids=lambda p: p.name
)
def test_python_blocks_work(page, run, tmp):
    for block in code_blocks(page, "python"):
        code = block.replace('"depth": 50', '"depth": 18, "width": 4').replace("=1000", "=3")
        code = code.replace("resnet50.safetensors", f"{tmp}/weights.safetensors")
        (tmp / "block.py").write_text(re.sub(r"\((\d), \d+, \d+, 3\)", r"(\1, 32, 32, 3)", code))
        run(str(tmp / "block.py"))


@pytest.mark.slow
def test_every_flag_and_field_is_known(run):
    helps = {("main.py",): run("main.py", "--help")}
    for command in [*in_text(), *filter(program, commands())]:
        start = program(command)
        assert start, f"{command}: no program of this repository"
        for flag in set(re.findall(r" --([\w.]+)", command)) - {"help"}:
            if start not in helps:
                helps[start] = run(*start, "--help")
            known = rf"--(\[no\])?{re.escape(flag)}\b"
            assert re.search(known, helps[start]), f"{command}: --{flag}"
    for page in PAGES:
        for field in re.findall(r"`((?:model|optim|augment|data|eval)\.\w+)[`=]", page.read_text()):
            a_file = field.endswith((".json", ".safetensors"))
            known = a_file or re.search(rf"--config\.{field}\b", helps["main.py",])
            assert known, f"{page.name}: {field}"


def test_not_run_holds_nothing_else():
    assert not [start for start in NOT_RUN if not any(c.startswith(start) for c in commands())]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_file_names_lead_somewhere(page):
    text = page.read_text()
    for target, heading in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", text):
        path = (page.parent / target) if target else page
        assert path.exists(), target
        headings = re.findall(r"^#+ (.*)$", path.read_text(), re.M) if heading else []
        slugs = [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings]
        assert not heading or heading in slugs, f"{target}#{heading}"
    for name in re.findall(r"`([\w/]+/[\w.]*\.(?:py|md|json|svg))(?::\w+)?`", text):
        assert (ROOT / name).exists() or (page.parent / name).exists(), name
