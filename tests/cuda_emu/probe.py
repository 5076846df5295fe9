"""Judges emulated modules in processes of their own: one may crash, hang, or write anywhere.

:class:`Prober` keeps a server that has imported torch and forks for every module, so that a verdict
costs what its checks cost. With ``sanitize=True`` the server runs under the sanitizers' libraries.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

SECONDS = 60  # of CPU time for one module: what takes longer hangs
ROOT = Path(__file__).resolve().parents[2]


def checks(orders: int) -> dict[str, Callable[[ModuleType], None]]:
    """What a module can be judged by: of each family of ops the tests of tests/ops, small cases.

    Each in the first ``orders`` orders of threads.
    """
    import torch

    from tests.cases import DEPTHWISE, POINTWISE
    from tests.cuda_emu.backend import ORDERS, in_every_order
    from tests.cuda_emu.exact import check_halves, check_infinities
    from tests.cuda_emu.far_apart import check_far_apart
    from tests.ops import test_backward as backward
    from tests.ops import test_forward as forward
    from tests.ops import test_strides as strides

    names = ("odd-tall", "same-k5", "stride2-odd", "c-9", "c-not-8", "1-row", "batch-17", "sliced")
    cases = [c for c in DEPTHWISE if c.name in (*names, "mean>>std", "batch-0")]
    # Rows of several tiles.
    wide = next(replace(c, name="wide", w=80) for c in DEPTHWISE if c.name == "odd-wide")
    every = {"backend": "cuda"}

    def all_of(
        *tests: partial[None], dtypes: tuple[torch.dtype, ...] = (torch.bfloat16, torch.float32)
    ) -> Callable[[ModuleType], None]:
        def run(native: ModuleType) -> None:
            for test in tests:
                for dtype in dtypes:
                    bound = partial(test, dtype=dtype, **every)
                    in_every_order(native, bound, ORDERS[:orders])

        return run

    def on_cases(test: Callable[..., None], **arguments: object) -> list[partial[None]]:
        return [partial(test, case=c, **arguments) for c in cases]

    products = {c.name: c for c in POINTWISE}
    odd, mean = products["odd"], products["mean>>std"]

    # Several work items per image, so that there is a second stage.
    large = next(c for c in DEPTHWISE if c.name == "b0-stage1")

    return {
        "depthwise": all_of(
            *on_cases(forward.test_depthwise_training),
            *on_cases(forward.test_depthwise_inference, act="silu"),
        ),
        # What is copied by boxes, alone.
        "inference": all_of(
            *on_cases(forward.test_depthwise_inference, act="silu"), dtypes=(torch.bfloat16,)
        ),
        "strides": all_of(
            *(partial(strides.test_depthwise, shape=s) for s in strides.SHAPES),
            dtypes=(torch.bfloat16,),
        ),
        "depthwise_bwd": all_of(
            *on_cases(backward.test_depthwise_bwd, prologue=True),
            *on_cases(backward.test_depthwise_bwd, prologue=False),
            partial(backward.test_depthwise_bwd, case=wide, prologue=True),
        ),
        "pointwise": all_of(
            *(
                partial(test, case=case)
                for case in (odd, mean)
                for test in (
                    forward.test_pointwise_training,
                    backward.test_pointwise_bwd_project,
                    backward.test_pointwise_bwd_expand,
                )
            ),
            partial(forward.test_pointwise_inference, case=odd, variant="expand"),
            partial(forward.test_pointwise_inference, case=odd, variant="project"),
            dtypes=(torch.bfloat16,),
        ),
        "squeeze_excite": all_of(
            *on_cases(forward.test_se_pool_and_gate),
            partial(forward.test_se_pool_and_gate, case=large),
            partial(backward.test_se_bwd_reduce, case=large),
            *on_cases(backward.test_se_bwd_reduce),
            partial(forward.test_se_gate, t=7, n=5, c=260, r=10),
            *(
                partial(backward.test_se_gate_bwd, n=n, c=c, r=r, act="silu")
                for n, c, r in ((3, 50, 1), (5, 24, 30), (0, 8, 2), (17, 130, 9), (131, 24, 53))
            ),
        ),
        "batch_norm": all_of(
            *on_cases(forward.test_bn_residual),
            partial(backward.test_gradient_on_load, case=large),
            *on_cases(forward.test_bn_finalize, momentum=0.1),
            *on_cases(backward.test_gradient_on_load),
            partial(backward.test_gradient_through_other_activations, act="relu6"),
            partial(backward.test_bn_bwd_coef, c=130, training=True),
        ),
        "far_apart": check_far_apart,
        "infinities": check_infinities,
        "halves": check_halves,
    }


class Prober:
    """Verdicts on modules, one at a time, by a server of its own."""

    def __init__(self, *, sanitize: bool = False) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        env.pop("TRITON_INTERPRET", None)  # the cases as they are, not thinned for the interpreter
        if sanitize:
            libraries = [
                subprocess.run(
                    ["g++", f"-print-file-name={name}.so"],
                    stdout=subprocess.PIPE, text=True, check=True,
                ).stdout.strip()
                for name in ("libasan", "libubsan")
            ]  # fmt: skip
            env["LD_PRELOAD"] = " ".join(libraries)
            # Python and torch keep what they allocate; a fiber's frames are not to be moved.
            env["ASAN_OPTIONS"] = "detect_leaks=0:detect_stack_use_after_return=0"
            env["UBSAN_OPTIONS"] = "print_stacktrace=0"
        self.server = subprocess.Popen(
            # What the sanitizers see does not depend on the order of threads.
            [sys.executable, "-m", "tests.cuda_emu.probe", "1" if sanitize else "3"],
            cwd=ROOT, env=env, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def close(self) -> None:
        """End the server."""
        self.server.communicate()

    def complaint(self, module: Path, check: str) -> str:
        """What ``check`` holds against ``module``; empty if nothing."""
        assert self.server.stdin is not None
        assert self.server.stdout is not None
        print(json.dumps([str(module), check]), file=self.server.stdin, flush=True)
        answer: str = json.loads(self.server.stdout.readline())
        return answer


def _judge(module: str, check: Callable[[ModuleType], None], output: int) -> None:
    """In the forked process: ends it, with the complaint on ``output``."""
    os.dup2(output, 2)  # the sanitizers' reports
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        import torch

        from tests.cuda_emu.build import load

        torch.manual_seed(0)  # as tests/conftest.py does before every test
        check(load(Path(module)))
    except BaseException as error:
        last = traceback.format_exception_only(error)[-1]
        os.write(output, last.encode())
        os._exit(1)
    os._exit(0)


def _serve(orders: int) -> None:
    """Judge what standard input names, one JSON line each; answer likewise."""
    import torch

    from tests.cases import DEPTHWISE
    from tests.cuda_emu.backend import poisoned_memory
    from tests.ops.test_forward import test_depthwise_training

    torch.set_num_threads(1)
    known = checks(orders)
    # What an op's first call imports takes three seconds: here, not in every child.
    with poisoned_memory():
        test_depthwise_training(case=DEPTHWISE[0], dtype=torch.float32, backend="reference")
    gc.freeze()  # a child that looks through all this for garbage would copy it
    for line in sys.stdin:
        module, check = json.loads(line)
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reader)
            _judge(module, known[check], writer)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            said = pipe.read().decode(errors="replace").strip()
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status):
            said = f"killed by {signal.Signals(os.WTERMSIG(status)).name}. {said}"
        elif status != 0 and not said:
            said = f"exit status {os.WEXITSTATUS(status)}"
        print(json.dumps(said if status != 0 else ""), flush=True)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
