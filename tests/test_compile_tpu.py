"""Compiling for a TPU slice: exchanges in the program, errors; slow: an actual compilation."""

import importlib.util
import json

import pytest
from programs import Program

from multipath_jax import compile_tpu
from multipath_jax.errors import UserError

PROGRAM = """
  %a = bf16[4,8]{1,0:T(8,128)} all-gather(%x), channel_id=1, frontend_attributes={chain_id="0"}
  %b = bf16[4,8]{1,0:T(8,128)S(1)} all-gather(%y), channel_id=1, frontend_attributes={chain_id="0"}
  %c = f32[10]{0} all-reduce(%z), replica_groups={{0,1}}, to_apply=%sum
  %d = (f32[2]{0}, f32[3]{0}) all-reduce(%p, %q), replica_groups={{0,1}}, to_apply=%sum
  %e = (f32[16]{0}, f32[4]{0}) reduce-scatter-start(%r), dimensions={0}
  %f = f32[4]{0} reduce-scatter-done(%e)
  %g = f32[7]{0} add(%all-reduce.1, %c)
"""


def test_exchanges_are_counted_once_with_their_bytes():
    assert compile_tpu.exchanges(PROGRAM) == {
        "all-gather": (1, 4 * 8 * 2),
        "all-reduce": (2, 4 * (10 + 2 + 3)),
        "reduce-scatter": (1, 4 * 16),
    }


def test_a_data_set_that_is_not_there_takes_no_memory():
    found = compile_tpu.described("imagenet256")
    assert (found.num_classes, found.image_shape) == (1000, (256, 256, 3))
    assert len(found.train.labels) == 1_281_167
    assert found.train.images.base.nbytes <= 8
    with pytest.raises(UserError, match="cifar10, cifar100, imagenet256"):
        compile_tpu.described("digits")


def run(*arguments):
    """Runs the program; returns exit status and output."""
    return Program(compile_tpu.__file__, *arguments, XLA_FLAGS="").end(1200)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "usage: --config="),
        (["--config=cifar:BaseCNN", "--topology=v3:2x2"], "must be of v4, v5e"),
        (["--config=cifar:BaseCNN", "--topology=v5e:no"], "is not available"),
        (["--config=cifar:BaseCNN", "--config.trails=2"], "'trials'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message):
    status, said = run(*arguments)
    assert status == 2, said
    assert message in said.splitlines()[-1]
    assert "Traceback" not in said


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed (extra [tpu])"
)
def test_a_step_compiles_for_a_slice(tmp_path):
    out = tmp_path / "found.json"
    flags = ["--config.mesh.path=2", "--config.batch_size=64", f"--json={out}"]
    status, said = run("--config=cifar:ResNet8-2-CC", "--topology=v5e:2x2", *flags)
    assert status == 0, said
    found = json.loads(out.read_text())
    assert found["mesh"] == {"data": 2, "path": 2}
    assert 0 < found["memory"] < 1 << 30
    # One for each of the three routers that follow the first, which opens the paths.
    assert found["exchanged"]["reduce-scatter"]["count"] == 3
    assert found["exchanged"]["all-gather"]["count"] == 3
