"""Compiles csrc, CUDA kernels and pybind11 bridge, into a Python module that runs on the CPU.

    PYTHONPATH=. python -m tests.cuda_emu.build FOLDER [--sanitize]

prints the path of the module; :func:`load` imports it. Every object is kept in the folder under a
hash of its text, its headers and its flags, so a second build compiles what changed.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import hashlib
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
INCLUDE = re.compile(r'^\s*#\s*include\s+"([^"]+)"', re.MULTILINE)
COMMON = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-gnu-unique", "-Wall", "-Wextra"]
COMMON += ["-DEFFNET_FAST_CUDA_ARCHS=90"]
# nvcc judges them: g++ would complain of its pragmas, its attributes and copies of a bf16's bits.
KERNEL = ["-w"]
# What every kernel starts with. Compiled once: it is a third of the time of an edited kernel.
EMULATOR = "cuda_emulator.h"
PLAIN = ["-O1"]
OPTIMIZED = ["-O2"]  # the emulator itself, where kernels of few instructions spend their time
EDITED = ["-O0"]  # compiled once, run on small cases
# -O0: with -O1 the sanitizers make g++ take five times as long, 21 s for one file of kernels.
SANITIZE = ["-O0", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
BRIDGE = ["-O0"]  # pybind11's templates take 20 s with -O2, and nothing here is timed

#: The texts that take part, by their name relative to csrc or to this folder.
Sources = Mapping[str, str]


def why_not() -> str | None:
    """Why the emulator cannot be built on this machine, or None."""
    if platform.machine() != "x86_64" or sys.platform != "linux":
        return f"the emulator's fibers are for x86-64 Linux, not {platform.machine()}"
    if shutil.which("g++") is None:
        return "g++ is not in PATH"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed"
    if cuda_includes() is None:
        return "CUDA's headers are not here (nvcc in $CUDA_HOME/bin or PATH, or pip's packages)"
    return None


def cuda_includes() -> Path | None:
    """The folder that holds cuda_runtime.h: of nvcc's toolkit, else of pip's packages."""
    home = os.environ.get("CUDA_HOME")
    nvcc = (shutil.which("nvcc", path=f"{home}/bin") if home else None) or shutil.which("nvcc")
    folders = []
    if nvcc:
        command = [nvcc, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull]
        said = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False).stderr
        folders = [Path(p) for p in re.findall(r'"-I([^"]+)"', said)]
    site = Path(sysconfig.get_path("purelib"))
    folders += [p.parent for p in sorted(site.glob("nvidia/**/include/cuda_runtime.h"))]
    return next((p for p in folders if (p / "cuda_runtime.h").exists()), None)


def sources() -> dict[str, str]:
    """Every file of csrc's bridge and kernels, and of the emulator."""
    found = [*CSRC.glob("*.cpp"), *CSRC.glob("*.h"), *(CSRC / "cuda").iterdir()]
    texts = {str(p.relative_to(CSRC)): p.read_text() for p in sorted(found) if p.is_file()}
    return texts | {p.name: p.read_text() for p in sorted(HERE.glob("*.[ch]*"))}


def _closure(name: str, texts: Sources, seen: set[str]) -> set[str]:
    """``name`` and all files of ours that it includes."""
    if name in texts and name not in seen:
        seen.add(name)
        for included in INCLUDE.findall(texts[name]):
            beside = str(Path(name).parent / included)
            _closure(included if included in texts else beside, texts, seen)
    return seen


@contextmanager
def _alone(target: Path) -> Iterator[None]:
    """No other thread or process makes ``target`` meanwhile: whoever comes second finds it made."""
    with open(target.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Builder:
    """Builds modules in one folder; objects are shared between them."""

    def __init__(self, folder: Path, jobs: int = 2) -> None:
        reason = why_not()
        if reason is not None:
            raise RuntimeError(reason)
        import pybind11

        self.folder, self.jobs = folder, jobs
        (folder / "objects").mkdir(parents=True, exist_ok=True)
        system = [cuda_includes(), pybind11.get_include(), sysconfig.get_path("include")]
        self.system = [word for path in system for word in ("-isystem", str(path))]

    def _tree(self, texts: Sources) -> Path:
        """The texts on disk, for the compiler to find."""
        digest = hashlib.sha256(repr(sorted(texts.items())).encode()).hexdigest()[:16]
        tree = self.folder / "trees" / digest
        tree.mkdir(parents=True, exist_ok=True)
        with _alone(tree):
            for name, text in texts.items():
                path = tree / name
                if not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_text(text)
        return tree

    def _made(self, suffix: str, parts: object, command: Callable[[], list[str]]) -> Path:
        """What g++ makes by ``command``; of the same ``parts`` only once."""
        digest = hashlib.sha256(repr((self.system, parts)).encode()).hexdigest()[:24]
        target = self.folder / "objects" / f"{digest}.{suffix}"
        with _alone(target):
            if not target.exists():
                draft = target.with_suffix(".draft")
                self._run(["g++", *command(), "-o", str(draft)])
                draft.rename(target)
        return target

    def _compiled(self, name: str, texts: Sources, tree: Path, flags: list[str]) -> Path:
        """The object of a unit; the emulator's header, compiled."""
        kernel, header = name.endswith(".cu"), name == EMULATOR
        files = _closure(name, texts, _closure(EMULATOR, texts, set()) if kernel else set())
        parts = name, flags, [(f, texts[f]) for f in sorted(files)]
        words = [*COMMON, *flags, f"-I{tree}", *self.system]

        def command() -> list[str]:
            if kernel:
                # g++ takes the compiled header beside the one it is told of, which is not there.
                compiled = self._compiled(EMULATOR, texts, tree, flags).with_suffix("")
                words.extend(["-include", str(compiled), "-x", "c++"])
            return [*words, *(["-x", "c++-header"] if header else ["-c"]), str(tree / name)]

        return self._made("h.gch" if header else "o", parts, command)

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"{' '.join(command)}\n{done.stderr[-4000:]}")

    def build(
        self,
        edit: Callable[[dict[str, str]], None] | None = None,
        *,
        sanitize: bool = False,
        kernels: Collection[str] | None = None,
    ) -> Path:
        """The module made of the sources as they are, or after ``edit`` changed their texts.

        With ``kernels`` only those files of csrc/cuda, by their names, are compiled of the edited
        texts: the others, which whoever gives this does not run, are as they were.
        """
        texts = as_they_are = sources()
        if edit is not None:
            texts = dict(as_they_are)
            edit(texts)
        edited = {name for name in texts if texts[name] != as_they_are.get(name)}
        mode = SANITIZE if sanitize else PLAIN
        new, old = (texts, self._tree(texts)), (as_they_are, self._tree(as_they_are))
        files = [name for name in texts if name.endswith(".cu")]
        touched = [f for f in files if edited & _closure(f, texts, set())]
        if kernels is not None:
            touched = [f for f in touched if Path(f).name in kernels]
        # These first: of a function that several objects hold the linker takes the first.
        units = dict.fromkeys(touched, (*new, KERNEL + (mode if sanitize else EDITED)))
        units["bridge.cpp"] = (*new, BRIDGE)  # before the kernels, since it takes longest
        units |= {f: (*old, KERNEL + mode) for f in files if f not in units}
        emulator = [p.name for p in HERE.glob("*.cpp") if p.name not in units]
        units |= dict.fromkeys(sorted(emulator), (*new, SANITIZE if sanitize else OPTIMIZED))
        with ThreadPoolExecutor(self.jobs) as pool:
            jobs = [pool.submit(self._compiled, name, *how) for name, how in units.items()]
            objects = [job.result() for job in jobs]
        digest = hashlib.sha256(repr(objects).encode()).hexdigest()[:16]
        target = self.folder / "modules" / digest / "_C.so"
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target):
            if not target.exists():
                draft = target.with_suffix(".draft")
                link = ["g++", "-shared", *(SANITIZE[2:] if sanitize else []), *map(str, objects)]
                self._run([*link, "-o", str(draft)])
                draft.rename(target)
        return target


def load(path: Path) -> Any:
    """Import the module, with the emulator's own functions (emulator_*) added to it."""
    spec = importlib.util.spec_from_file_location("effnet_fast_emulated._C", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    emulator = ctypes.CDLL(str(path))
    functions = {
        "emulator_set_order": lambda name: emulator.emulator_set_order(name.encode()),
        "emulator_set_clusters": lambda has: emulator.emulator_set_clusters(ctypes.c_bool(has)),
        "emulator_set_boxes": lambda has: emulator.emulator_set_boxes(ctypes.c_bool(has)),
        "emulator_expect_nan": emulator.emulator_expect_nan,
        "emulator_device": emulator.emulator_device,
        "emulator_launch_device": emulator.emulator_launch_device,
    }
    vars(module).update(functions)
    return module


def main() -> None:
    """Build into the folder given and print the module's path."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--sanitize", action="store_true")
    chosen = parser.parse_args()
    print(Builder(chosen.folder).build(sanitize=chosen.sanitize))


if __name__ == "__main__":
    main()
