"""Builds the native module effnet_fast._C: g++ for the bridge and the CPU part, nvcc for csrc/cuda.

Nothing here needs torch, so one build serves every torch version. Environment variables:

  EFFNET_FAST_CUDA        1: CUDA is required; 0: no CUDA; unset: CUDA if nvcc is found
  EFFNET_FAST_CUDA_ARCHS  compute capabilities to compile for, such as "90;100"
  CUDA_HOME               toolkit whose bin/nvcc is tried before PATH
  CXX, CXXFLAGS           C++17 compiler (default g++) and extra flags for it
"""

import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

import pybind11
from ninja.ninja_syntax import Writer, escape_path
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
# Kept between builds so that ninja redoes only what changed: nvcc compiles every .cu six times.
BUILD = ROOT / "build" / f"native-{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
ARCHS = (80, 86, 89, 90, 100, 120)  # A100, RTX 30, RTX 40 and L4, H100 and H200, B200, RTX 50

CXX_SOURCES = ("module.cpp", "cpu*_bridge.cpp", "cpu/*.cpp", "cpu/training/*.cpp")
# Compiled once per instruction set.
KERNEL_SOURCES = ("cpu/kernels/*.cpp", "cpu/training/kernels/*.cpp")
BF16_SOURCES = ("bf16.cpp",)  # those to which AVX512_BF16 matters
CUDA_CXX_SOURCES = ("cuda_bridge.cpp",)
CUDA_SOURCES = ("cuda/*.cu",)
HEADERS = ("*.h", "cpu/*.h", "cpu/*/*.h", "cpu/training/kernels/*.h", "cuda/*.h", "cuda/*.cuh")
AVX512 = ("-mavx2", "-mfma", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
# csrc/cpu/isa.h's, with the flags of g++ and clang.
ISAS = {
    "x86_64": {
        "sse42": ("-msse4.2",),
        "avx2": ("-mavx2", "-mfma"),
        "avx512": AVX512,
        "avx512bf16": (*AVX512, "-mavx512bf16"),
    },
    "aarch64": {"neon": ()},
}.get(platform.machine(), {"scalar": ()})
COMPILE = "-MMD -MF $out.d -c $in -o $out"


@dataclass(frozen=True)
class Cuda:
    """The CUDA compiler, the folders of its headers, and the architectures to compile for."""

    nvcc: str
    includes: tuple[str, ...]
    archs: tuple[int, ...]


def say(text: str) -> None:
    """One line about what the build decided; pip shows it with -v."""
    print(f"effnet_fast: {text}", flush=True)


def fail(text: str) -> SystemExit:
    """What to raise for an error that needs no Python traceback."""
    return SystemExit(f"effnet_fast: error: {text}")


def find(*patterns: str) -> list[Path]:
    """Files of csrc, relative to it, in a fixed order."""
    return [p.relative_to(CSRC) for pattern in patterns for p in sorted(CSRC.glob(pattern))]


def ask(*command: str) -> str:
    """stdout and stderr of a command that must succeed."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    if done.returncode != 0:
        said = done.stdout.strip()
        raise fail(f"{shlex.join(command)} failed (status {done.returncode}):\n{said}")
    return done.stdout


def find_nvcc() -> str | None:
    """nvcc's path: CUDA_HOME's if it is there, else the first in PATH, else that of pip's packages.

    Those (nvidia-cuda-nvcc, -runtime and -cccl) share site-packages/nvidia/cu<major>, in the
    environment that pip installs into, also where the build is isolated; the newest counts.
    """
    home = os.environ.get("CUDA_HOME")
    named = (shutil.which("nvcc", path=f"{home}/bin") if home else None) or shutil.which("nvcc")
    if named is not None:
        return named
    folders = {Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")}
    found = {nvcc for folder in folders for nvcc in folder.glob("nvidia/cu*/bin/nvcc")}
    usable = [nvcc for nvcc in found if os.access(nvcc, os.X_OK)]
    return str(max(usable, key=lambda nvcc: nvcc.parts[-3])) if usable else None


def find_cuda() -> Cuda | None:
    """The CUDA toolkit to build with, or None for a CPU-only module."""
    wish = os.environ.get("EFFNET_FAST_CUDA", "")
    if wish not in ("", "0", "1"):
        raise fail(f"EFFNET_FAST_CUDA is {wish!r}; expected 1, 0 or unset")
    if wish == "0":
        say("EFFNET_FAST_CUDA=0: building the CPU part only")
        return None
    nvcc = find_nvcc()
    if nvcc is None:
        where = "nvcc is neither in $CUDA_HOME/bin nor in PATH nor among pip's packages"
        if wish == "1":
            raise fail(
                f"EFFNET_FAST_CUDA=1, but {where}; install CUDA's toolkit, or pip's "
                "nvidia-cuda-nvcc, -runtime and -cccl of one version, or set CUDA_HOME"
            )
        say(f"{where}: building the CPU part only (EFFNET_FAST_CUDA=1 makes this an error)")
        return None
    # nvcc may be a wrapper far from its toolkit; its own dry run names the folders it uses.
    dry = ask(nvcc, "--dryrun", "-c", "-x", "cu", os.devnull, "-o", os.devnull)
    named = [line for line in dry.splitlines() if "INCLUDES=" in line]
    includes = tuple(re.findall(r'"-I([^"]+)"|"-isystem" "([^"]+)"', "\n".join(named)))
    cuda = Cuda(nvcc, tuple(a or b for a, b in includes), choose_archs(nvcc))
    say(f"CUDA with {nvcc} for {', '.join(f'sm_{arch}' for arch in cuda.archs)}")
    return cuda


def gpus_present() -> tuple[int, ...]:
    """Compute capabilities of this machine's GPUs as nvidia-smi tells them; none if it cannot."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return ()
    command = [smi, "--query-gpu=compute_cap", "--format=csv,noheader"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    found = re.findall(r"^(\d+)\.(\d)$", done.stdout if done.returncode == 0 else "", re.MULTILINE)
    return tuple(sorted({10 * int(major) + int(minor) for major, minor in found}))


def choose_archs(nvcc: str) -> tuple[int, ...]:
    """The user's own list; else the GPUs of this machine; else ARCHS: those that nvcc knows."""
    known = {int(arch) for arch in re.findall(r"compute_(\d+)", ask(nvcc, "--list-gpu-arch"))}
    wish = os.environ.get("EFFNET_FAST_CUDA_ARCHS", "")
    if not wish:
        here = [arch for arch in gpus_present() if arch >= min(ARCHS)]
        # A GPU newer than this nvcc runs the PTX of the newest architecture, so all are built.
        if here and known.issuperset(here):
            say("for the GPUs of this machine; EFFNET_FAST_CUDA_ARCHS names others")
            return tuple(here)
        chosen = tuple(arch for arch in ARCHS if arch in known)
        if not chosen:
            raise fail(f"{nvcc} knows none of {ARCHS}, only {sorted(known)}; CUDA 11.1 is too old")
        return chosen
    if not re.fullmatch(r"\d+(;\d+)*", wish):
        raise fail(f"EFFNET_FAST_CUDA_ARCHS is {wish!r}; expected numbers such as '90;100'")
    chosen = tuple(sorted({int(arch) for arch in wish.split(";")}))
    if not known.issuperset(chosen):
        unknown = sorted(set(chosen) - known)
        raise fail(f"EFFNET_FAST_CUDA_ARCHS: {nvcc} knows {sorted(known)}, not {unknown}")
    return chosen


def find_cxx() -> list[str]:
    """The C++ compiler as words of a command line, its presence and Python's headers checked."""
    cxx = shlex.split(os.environ.get("CXX", "g++"))
    if not cxx or shutil.which(cxx[0]) is None:
        raise fail(
            f"the C++ compiler {shlex.join(cxx)!r} is not in PATH; install a C++17 compiler "
            "(Debian: apt-get install g++) or name one in CXX"
        )
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not header.exists():
        raise fail(f"{header} is missing; install Python's headers (Debian: python3-dev)")
    return cxx


def cxx_commands(cxx: list[str], cuda: Cuda | None) -> tuple[str, str]:
    """Compile and link commands of the C++ compiler, in ninja's $in and $out."""
    words = [*cxx, "-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    words += ["-fopenmp", f"-I{CSRC}"]
    # As system headers they are left out of the dependencies: an isolated build's pybind11 lies in
    # a temporary folder that is gone by the next one.
    for folder in (pybind11.get_include(), sysconfig.get_path("include")):
        words += ["-isystem", folder]
    for folder in cuda.includes if cuda else ():
        words += ["-isystem", folder]
    if cuda:
        words.append(f"-DEFFNET_FAST_CUDA_ARCHS={','.join(map(str, cuda.archs))}")
    words += shlex.split(os.environ.get("CXXFLAGS", ""))
    return f"{shlex.join(words)} {COMPILE}", f"{shlex.join(cxx)} -shared -fopenmp $in -o $out"


def nvcc_commands(cuda: Cuda) -> tuple[str, str]:
    """Compile and link commands of nvcc: code for each architecture, PTX of the newest."""
    words = [cuda.nvcc, "-std=c++17", "-O3", "--threads=2", f"-I{CSRC}"]
    words.append("-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra")
    for arch in cuda.archs:
        words += ["-gencode", f"arch=compute_{arch},code=sm_{arch}"]
    words += ["-gencode", f"arch=compute_{cuda.archs[-1]},code=compute_{cuda.archs[-1]}"]
    # nvcc knows where its libcudart_static lies; the symbols of that stay inside the module, away
    # from the libcudart that torch loads.
    link = [cuda.nvcc, "-shared", "-cudart", "static", "-Xlinker=--exclude-libs,ALL"]
    link.append("-Xcompiler=-fopenmp")
    # Of pip's packages nvcc would look in lib64, which they do not have.
    link += [f"-L{lib}" for lib in [Path(cuda.nvcc).parents[1] / "lib"] if lib.is_dir()]
    return f"{shlex.join(words)} {COMPILE}", f"{shlex.join(link)} $in -o $out"


def write_ninja(file: Path, target: Path, cxx: list[str], cuda: Cuda | None) -> None:
    """Write the build.ninja that makes `target` out of csrc."""
    compilers = {"cxx": cxx_commands(cxx, cuda)}
    sources = [("cxx", path) for path in find(*CXX_SOURCES)]
    if cuda:
        compilers["nvcc"] = nvcc_commands(cuda)
        sources += [("cxx", path) for path in find(*CUDA_CXX_SOURCES)]
        sources += [("nvcc", path) for path in find(*CUDA_SOURCES)]
    with file.open("w") as stream:
        ninja = Writer(stream, width=100)
        for name, (compile_, _) in compilers.items():
            ninja.rule(name, compile_, f"{name} $in", depfile="$out.d", deps="gcc")
        _, link = compilers["nvcc" if cuda else "cxx"]
        ninja.rule("link", link, "link $out")
        objects = []
        for name, path in sources:
            objects.append(f"{path}.o")
            ninja.build(escape_path(objects[-1]), name, escape_path(str(CSRC / path)))
        compile_, _ = compilers["cxx"]
        for isa, flags in ISAS.items():
            # Their loops are vectorised by hand, and meant to contract to FMA.
            own = [*flags, f"-DEFFNET_FAST_ISA={isa}", "-fno-tree-vectorize", "-ffp-contract=fast"]
            own.append("-Wno-maybe-uninitialized")  # GCC 12 says so of its own intrinsics
            ninja.rule(isa, f"{compile_} {shlex.join(own)}", f"{isa} $in", depfile="$out.d",
                       deps="gcc")  # fmt: skip
            for path in find(*KERNEL_SOURCES):
                if isa == "avx512bf16" and path.name not in BF16_SOURCES:
                    continue  # avx512's are taken
                objects.append(f"{path}.{isa}.o")
                ninja.build(escape_path(objects[-1]), isa, escape_path(str(CSRC / path)))
        ninja.build(escape_path(str(target)), "link", [escape_path(name) for name in objects])


class BuildNative(build_ext):
    """Hands the extension to ninja."""

    def build_extension(self, ext: Extension) -> None:
        target = Path(self.get_ext_fullpath(ext.name)).resolve()
        target.parent.mkdir(parents=True, exist_ok=True)
        BUILD.mkdir(parents=True, exist_ok=True)
        built = BUILD / target.name
        write_ninja(BUILD / "build.ninja", built, find_cxx(), find_cuda())
        # Beside the interpreter too: without build isolation the environment may not be active.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        ninja = shutil.which("ninja", path=path)
        if ninja is None:
            raise fail("ninja is not in PATH; pip install ninja")
        if subprocess.run([ninja, "-C", str(BUILD)]).returncode != 0:
            raise fail(
                "the native module did not compile; the compiler's own message is above"
                " (EFFNET_FAST_CUDA=0 builds without CUDA)"
            )
        shutil.copy2(built, target)


setup(
    packages=[*find_packages(include=["effnet_fast*"]), "effnet_fast.data", "effnet_fast.kernels"],
    package_dir={"effnet_fast.kernels": "kernels"},
    package_data={"effnet_fast": ["py.typed", "*.pyi"], "effnet_fast.data": ["*.txt"]},
    ext_modules=[
        Extension(
            "effnet_fast._C",
            sources=[
                f"csrc/{path}"
                for path in find(*CXX_SOURCES, *KERNEL_SOURCES, *CUDA_CXX_SOURCES, *CUDA_SOURCES)
            ],
            depends=[f"csrc/{path}" for path in find(*HEADERS)],  # so that an sdist holds them
        )
    ],
    cmdclass={"build_ext": BuildNative},
)
