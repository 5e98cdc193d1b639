"""Bad command lines: one-line errors, exit statuses, and no files left."""

import json
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
DIGITS, CIFAR = "--config=digits", "--config=cifar"

# Imports the program once, and runs each command line in a fork, to save time.
SERVER = """
import json, os, sys
from multipath_jax import main
from multipath_jax.utils import progress
progress.SOON = 1e6  # else a slow machine says what it is at
for line in open(sys.argv[1]):
    read, write = os.pipe()
    if os.fork() == 0:
        os.dup2(write, 1)
        os.dup2(write, 2)
        sys.argv = ["main", *json.loads(line)]
        if sys.argv[1:2] == ["NO HOME"]:
            del sys.argv[1]
            os.environ["HOME"] = "~"  # what a home folder that is not known comes to
        try:
            main.run()
        except SystemExit as end:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code)  # to clear up after JAX takes most of a second
    os.close(write)
    said = os.fdopen(read).read()
    status = os.waitstatus_to_exitcode(os.wait()[1])
    print(json.dumps([status, said]), flush=True)
"""

CASES = {
    "nothing": ([], "--config=digits"),
    "no config": (["--workdir=RUN"], "--config is missing"),
    "no workdir": ([DIGITS], "--workdir is missing"),
    "no flag": ([DIGITS, "--workdir=RUN", "train"], "'train'"),
    "unknown flag": ([DIGITS, "--wrkdir=RUN"], "workdir"),
    "unknown mode": ([DIGITS, "--workdir=RUN", "--mode=test"], "<train|eval>"),
    "unknown key": ([DIGITS, "--workdir=RUN", "--config.lerning_rate=1"], "schedule.learning_rate"),
    "unknown nested key": ([DIGITS, "--workdir=RUN", "--config.model.nam=X"], "'model.name'"),
    "no number": ([DIGITS, "--workdir=RUN", "--config.batch_size=many"], "batch_size=many"),
    "unknown recipe": (["--config=imagnet", "--workdir=RUN"], "are imagenet, imagenet_r18_2cc, "),
    "unknown recipe after a space": (
        ["--config", "digit", "--workdir=RUN"],
        "'digit'; the recipes",
    ),
    "a recipe's argument": (
        ["--config=digitz:VGG16", "--workdir=RUN"],
        "'digitz'; the recipes are",
    ),
    "no config at all": (["--workdir=RUN", "--config"], "--config"),
    "no config file": (["--config=configs/digitz.py", "--workdir=RUN"], "recipes are digits, "),
    "no config file after a space": (["--config", "mine.py", "--workdir=RUN"], "mine.py cannot be"),
    "no config file by a recipe's name": (
        ["--config=configs/cifar.py:VGG16", "--workdir=RUN"],
        "No such file or directory); --config=cifar is the recipe",
    ),
    "config leads nowhere": (
        ["--config=FOLDER/dangling.py", "--workdir=RUN"],
        "is a broken link to",
    ),
    "config is a folder": (["--config=FOLDER", "--workdir=RUN"], "directory"),
    "config has an argument": ([DIGITS + ":BaseCNN", "--workdir=RUN"], "TypeError"),
    "config has a syntax error": (["--config=FOLDER/syntax.py", "--workdir=RUN"], "SyntaxError"),
    "config has a typing error": (
        ["--config=FOLDER/typo.py", "--workdir=RUN"],
        "'schedule.learning_rate'",
    ),
    "config is a dict": (
        ["--config=FOLDER/dict.py", "--workdir=RUN"],
        "returns a dict; begin it with",
    ),
    "config is nothing": (
        ["--config=FOLDER/nothing.py", "--workdir=RUN"],
        "returns nothing; begin it",
    ),
    "config is another": (
        ["--config=FOLDER/other.py", "--workdir=RUN"],
        "lacks the keys accumulate",
    ),
    "config has keys of its own": (
        ["--config=FOLDER/more.py", "--workdir=RUN"],
        "no config key 'own'",
    ),
    "config opens nothing": (["--config=FOLDER/opens.py", "--workdir=RUN"], "No such file"),
    "config imports nothing": (["--config=FOLDER/imports.py", "--workdir=RUN"], "numpi"),
    "cifar's option": ([CIFAR + ":BaseCNN,epoch=9", "--workdir=RUN"], "has no option 'epoch'"),
    "cifar's epochs": ([CIFAR + ":BaseCNN,epochs=9", "--workdir=RUN"], "epochs=200|350"),
    "unknown network": ([DIGITS, "--workdir=RUN", "--config.model.name=BaseCNN-2-CD"], "BaseCNN-"),
    "batch of zero": ([DIGITS, "--workdir=RUN", "--config.batch_size=0"], "at least 1"),
    "batch too large": ([DIGITS, "--workdir=RUN", "--config.batch_size=4096"], "4096"),
    "boundaries past the end": (
        [DIGITS, "--workdir=RUN", "--config.train_for=1 epoch"],
        "past the end",
    ),
    "no duration": ([DIGITS, "--workdir=RUN", "--config.train_for=1 week"], "is not a duration"),
    "workdir is a file": ([DIGITS, "--workdir=FOLDER/typo.py"], "is not a folder"),
    "workdir in a file": ([DIGITS, "--workdir=FOLDER/typo.py/run"], "cannot be written"),
    "nothing to evaluate": (["--mode=eval", "--workdir=RUN"], "has no checkpoint"),
    "restart in evaluation": (
        ["--mode=eval", "--workdir=RUN", "--restart"],
        "--restart has no effect with --mode=eval",
    ),
    "checkpoint in training": (
        [DIGITS, "--workdir=RUN", "--checkpoint=latest"],
        "--checkpoint has no effect in training",
    ),
    "test split in training": (
        [DIGITS, "--workdir=RUN", "--test_split"],
        "--test_split has no effect in training",
    ),
    "no checkpoint to start from": (
        [DIGITS, "--workdir=RUN", "--config.init_from=FOLDER"],
        "has no checkpoint",
    ),
    "workdir has a backslash": ([DIGITS, "--workdir=RUN\\here"], "has a backslash"),
    "workdir cannot be made": ([DIGITS, "--workdir=/proc/run"], "cannot be written"),
    "workdir leads nowhere": (
        [DIGITS, "--workdir=FOLDER/dangling.py/run"],
        "FOLDER/dangling.py is a broken link to FOLDER/gone",
    ),
    "workdir is an address": (
        [DIGITS, "--workdir=hf://a/b"],
        "workdir=hf://a/b: no access to hf://",
    ),
    "workdir is a file's address": (
        [DIGITS, "--workdir=file:///a"],
        "workdir=file:///a: no access",
    ),
    "workdir to evaluate is an address": (
        ["--mode=eval", "--workdir=hf://a/b"],
        "no access to hf://",
    ),
    "cache cannot be made": (
        [DIGITS, "--workdir=RUN", "--config.compilation_cache=/proc/x"],
        "compilation_cache: /proc/x cannot be written",
    ),
    "home is not known": (["NO HOME", DIGITS, "--workdir=~/run"], "~/run: there is no such home"),
    "user is not known": ([DIGITS, "--workdir=~nobody_here/run"], "there is no such home folder"),
    "a source of images": (["--config=folder", "--workdir=RUN"], "--config.dataset.source=DIR"),
    "no seed for every trial": (
        [DIGITS, "--workdir=RUN", "--config.seed=4294967295", "--config.trials=2"],
        "at most 4294967294",
    ),
}
# Invalid values of the config, each with a part of the error message. Values that are refused by
# `config.keys.validate` alone are in `training/test_config.py`.
VALUES = {
    "batch_size=-64": "at least 1",
    "seed=-1": "from 0 to 4294967295",
    "profile=1-99999": "reaches past the",
    "checkpoint_every=often": "is not a duration",
    "eval_every=-1 epochs": "is not a duration",
    "schedule.boundaries=9 epochs, 8 epochs": "must be increasing",
    "schedule.kind=cosine": "takes no boundaries",
    "schedule.warmup=slow": "is not a duration",
    "schedule.warmup=10 epochs": "must end before",
    "accumulate=5": "does not divide among 5 micro-batches",
    "dataset.shift=-1": "at least 0",
    "dataset.size=-1": "at least 0",
    "dataset.crop=9": "choose at most 8",
    "dataset.workers=-1": "at least 0",
    "dataset.source=FOLDER": "needs dataset.size",
    "dataset.ten_crop=True": "needs dataset.crop",
    "dataset.name=digitz": "digitz",
    "model.name=BaseCNN-0-CC": "BaseCNN-0-CC",
    "model.name=ResNet21-2-CC": "6k+2",
    "model.options=execution": "name=value",
    "model.options=exekution=grouped": "exekution",
    "model.options=execution=sideways": "sideways",
    "model.options=shortcut=behind": "none of projection, identity, centered",
    "model.options=num_classes=11": "num_classes",
    "mesh.data=3": "do not make up the 2 devices",
    "mesh.data=0": "do not make up the 2 devices",
    "mesh.path=4": "do not make up the 2 devices",
    "mesh.path=0": "must be at least 1",
    "init_from=torchvision://resnet18": "init_from=torchvision://resnet18: no access to",
    "init_from=FOLDER/dangling.py": "is a broken link to",
    "init_from=~nobody_here/run": "no such home folder",
    "dataset.data_dir=hf://a": "dataset.data_dir=hf://a: no access to hf://",
    "dataset.data_dir=FOLDER/dangling.py": "is a broken link to",
    "dataset.data_dir=FOLDER/typo.py": "cannot be read",
    "dataset.data_dir=/proc/x": "cannot be written",
    "dataset.source=gs://a": "dataset.source=gs://a: must be a path on this machine",
    "compilation_cache=hf://a": "compilation_cache=hf://a: no access to hf://",
    "compilation_cache=FOLDER/typo.py": "cannot be written",
}
CASES |= {
    value: ([DIGITS, "--workdir=RUN", f"--config.{value}"], said) for value, said in VALUES.items()
}
# Invalid flags of runs with several processes.
CASES |= {
    "no address": ([DIGITS, "--workdir=RUN", "--distributed=nowhere"], "HOST:PORT"),
    "no number of processes": ([DIGITS, "--workdir=RUN", "--distributed=h:1"], "--num_processes"),
    "a number but no address": ([DIGITS, "--workdir=RUN", "--process_id=0"], "HOST:PORT"),
    "a process too many": (
        [DIGITS, "--workdir=RUN", "--distributed=h:1", "--process_id=2", "--num_processes=2"],
        "not from 0 to 1",
    ),
}

DEFAULT = "from multipath_jax.config.keys import default_config\n"
CONFIGS = {
    "syntax.py": "def get_config(:\n",
    "imports.py": "import numpi\n",
    "typo.py": f"{DEFAULT}def get_config():\n  c = default_config()\n  c.learning_rate = 1.0\n",
    "dict.py": "def get_config():\n  return {'batch_size': 64}\n",
    "nothing.py": f"{DEFAULT}def get_config():\n  default_config().batch_size = 64\n",
    "other.py": "import ml_collections\n"
    "def get_config():\n  return ml_collections.ConfigDict({'batch_size': 64})\n",
    "more.py": f"{DEFAULT}def get_config():\n"
    "  c = default_config().unlock()\n  c.own = 1\n  return c\n",
    "opens.py": "def get_config():\n  return open('/nowhere/config.yaml')\n",
}


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """The folder in which all cases were run, and the exit status and output of each."""
    folder = tmp_path_factory.mktemp("main")
    for name, text in CONFIGS.items():
        (folder / name).write_text(text)
    (folder / "dangling.py").symlink_to(folder / "gone")
    data = f"--config.dataset.data_dir={folder / 'tfds'}"
    lines = []
    for name, (arguments, _) in CASES.items():
        run = str(folder / "runs" / name.replace(" ", "_"))
        filled = [part.replace("RUN", run).replace("FOLDER", str(folder)) for part in arguments]
        known = any(part in (DIGITS, CIFAR) for part in filled) and "data_dir" not in str(filled)
        lines.append(json.dumps(filled + [data] * known))
    (folder / "commands").write_text("\n".join(lines) + "\n")
    found = subprocess.run(
        [sys.executable, "-c", SERVER, str(folder / "commands")],
        cwd=folder,
        capture_output=True,
        text=True,
        check=True,
    )
    return folder, dict(zip(CASES, map(json.loads, found.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_and_status_2(answers, name):
    folder, found = answers
    status, said = found[name]
    assert said.startswith("error: ")
    assert said.count("\n") == 1, said
    assert CASES[name][1].replace("FOLDER", str(folder)) in said
    assert status == 2


def test_bad_input_writes_nothing(answers):
    folder, _ = answers
    written = {path.name for path in folder.iterdir()} - {"tfds", "commands", "dangling.py"}
    assert written <= {*CONFIGS, "__pycache__", "runs"}
    runs = folder / "runs"
    assert not runs.exists() or not list(runs.iterdir())
