"""The layers of effnet_fast, and a checker that reads every import out of the source."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Low to high; a module imports from its own layer and those below. "" is the package itself, whose
# __init__ gathers the public names.
LAYERS = (
    ("limits", "reference", "backends", "kernels", "_C"),
    ("ops",),
    ("modules",),
    ("architecture", "weights", "checkpoints", "preprocess", "profile", "heatmap"),
    ("models", "mobilenet", "resnet"),
    ("graph_engine", "scaling", "cam"),
    ("engine",),
    ("",),
    ("stock", "tables", "cli"),
)
HEIGHT = {name: height for height, layer in enumerate(LAYERS) for name in layer}
OUTSIDE = ("tests", "bench", "examples")  # they import effnet_fast, never the other way
OPTIONAL = (  # imported only where they are needed
    "torchvision", "timm", "safetensors", "triton", "onnxruntime", "openvino", "torch_tensorrt",
)  # fmt: skip
WITH_TRITON = ("effnet_fast.kernels", "effnet_fast.ops.on_triton")  # these import it at once,
WITHOUT_TRITON = ("effnet_fast.kernels.limits",)  # but for what anyone may ask of the kernels


@dataclass(frozen=True)
class Import:
    """One imported dotted name, where, and whether `import effnet_fast` would execute it."""

    name: str
    line: int
    at_import: bool


def is_typing_only(node: ast.stmt) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).split(".")[-1] == "TYPE_CHECKING"


def walk(body: list[ast.stmt], at_import: bool) -> Iterator[tuple[ast.stmt, bool]]:
    """Every statement that can run, with whether it runs at import; TYPE_CHECKING blocks cannot."""
    for node in body:
        yield node, at_import
        if is_typing_only(node):
            yield from walk(node.orelse, at_import)  # type: ignore[attr-defined]
            continue
        inside = at_import and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        for block in ("body", "orelse", "finalbody"):
            yield from walk(getattr(node, block, []), inside)
        for part in (*getattr(node, "handlers", ()), *getattr(node, "cases", ())):
            yield from walk(part.body, inside)


def imports(source: str, package: str) -> Iterator[Import]:
    """The imports of a file in `package`, relative ones resolved; `from a import b` gives a.b."""
    for node, at_import in walk(ast.parse(source).body, True):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, at_import)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: 1 - node.level or None] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                yield Import(f"{origin}.{alias.name}", node.lineno, at_import)


def layer_of(dotted: str) -> str:
    """effnet_fast.ops.depthwise -> ops; a name that is no module belongs to the package, ""."""
    name = dotted.split(".")[1] if "." in dotted else ""
    return name if name in HEIGHT else ""


def brings_triton(dotted: str) -> bool:
    def within(modules: tuple[str, ...]) -> bool:
        return any(f"{dotted}.".startswith(f"{module}.") for module in modules)

    return within(WITH_TRITON) and not within(WITHOUT_TRITON)


def complaints_about(module: str, is_package: bool, source: str) -> Iterator[str]:
    """What is wrong with the imports of effnet_fast's module `module`, "" where nothing is."""
    own = module.split(".")[1] if "." in module else ""
    if own not in HEIGHT:
        yield f"{module}: not in the table of layers; add it to tests/t0/layers.py"
        return
    package = module if is_package else module.rpartition(".")[0]
    for found in imports(source, package):
        top = found.name.split(".")[0]
        where = f"{module}:{found.line} imports {found.name}"
        if top in OUTSIDE:
            yield f"{where}: {top} is outside the library"
        elif own == "kernels":
            outside = top not in ("triton", *sys.stdlib_module_names)
            if outside and layer_of(found.name) != "kernels":
                yield f"{where}: kernels import triton and each other only"
        elif top == "effnet_fast":
            target = layer_of(found.name)
            if HEIGHT[target] > HEIGHT[own]:
                yield f"{where}: {target or 'the package itself'} is above {own}"
            elif found.at_import and brings_triton(found.name) and not brings_triton(module):
                yield f"{where} at module level, which imports triton"
        elif top in OPTIONAL and found.at_import:
            yield f"{where} at module level"


def complaints(root: Path) -> list[str]:
    """Every breach of the layering in the tree at `root`."""
    found: list[str] = []
    for folder, package in (("effnet_fast", "effnet_fast"), ("kernels", "effnet_fast.kernels")):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            is_package = parts[-1] == "__init__"
            module = ".".join([package, *(parts[:-1] if is_package else parts)])
            found += complaints_about(module, is_package, path.read_text())
    return found
