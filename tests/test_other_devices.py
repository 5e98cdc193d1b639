"""A run can be evaluated and used on any number of devices, not only that of training."""

import contextlib
import os
import re

import pytest
from etils import epath
from PIL import Image
from programs import Program
from weights import random_like

from multipath_jax import checkpoints as ckpt
from multipath_jax import predict
from multipath_jax.config.keys import default_config
from multipath_jax.runs import load_run
from multipath_jax.training.setup import Setup

# Runs both in one process, since each takes seconds to start.
PROGRAMS = """
import sys
import jax
from multipath_jax import main, predict
workdir, picture, count = sys.argv[1:]
assert jax.device_count() == int(count)
assert predict.main([f"--workdir={workdir}", picture]) == 0
sys.argv = ["main", "--mode=eval", f"--workdir={workdir}"]
main.run()
"""


@pytest.fixture(scope="module")
def spread(tmp_path_factory, data_dir):
    """A run with random weights whose two paths were on two devices."""
    workdir = epath.Path(tmp_path_factory.mktemp("spread"))
    config = default_config()
    config.update_from_flattened_dict(
        {"model.name": "BaseCNN-2-CC", "dataset.data_dir": os.fspath(data_dir), "mesh.path": 2}
    )
    setup = Setup(config)
    with contextlib.closing(ckpt.Checkpoints(workdir)) as checkpoints:
        ckpt.write_config(workdir, config)
        ckpt.write_description(workdir, setup.description)
        checkpoints.save(3, random_like(setup.abstract_carry, seed=0), 50.0)
    return workdir


@pytest.mark.slow
@pytest.mark.parametrize("count", [3, 1])
def test_evaluation_and_prediction_on_other_devices(spread, tmp_path, capsys, count):
    """Neither count is a multiple of the two paths, and 3 does not divide the batch size of 128."""
    run, picture = load_run(spread), tmp_path / "picture.png"
    image = run.dataset.test.images[5, :, :, 0]
    Image.fromarray(image).save(picture)
    expected = run.evaluate()
    capsys.readouterr()  # discards the progress message of slow machines
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "load_run", lambda *_: run)
        assert predict.main([f"--workdir={spread}", str(picture)]) == 0
    table = capsys.readouterr().out
    flags = f"--xla_force_host_platform_device_count={count} --xla_backend_optimization_level=0"
    script = tmp_path / "programs.py"
    script.write_text(PROGRAMS)
    status, said = Program(script, spread, picture, count, XLA_FLAGS=flags).end()
    assert status == 0, said
    assert table in said
    found = dict(re.findall(r"^(\w[\w ]*) ([\d.]+)(?: %)?$", said, re.MULTILINE))
    # The loss is printed with four decimals, the error with two.
    assert float(found["loss"]) == pytest.approx(expected["loss"], abs=1.1e-4)
    assert float(found["error"]) == pytest.approx(expected["error"], abs=0.0051)
    assert "the data differ from those of training" not in said
