"""Who may import whom. The rules are read off the source, so that they hold for files not yet written."""

import ast
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

# Top to bottom; a module imports from its own layer and from those below. A new top-level module
# takes its place here and in the layout that CONTRIBUTING.md shows.
LAYERS = [
    {"__main__", "cli"},
    {"demo", "golden", "compat"},
    {"evaluation"},
    {"serve", "watch"},
    {"look"},
    {"export"},
    {"converting"},
    {"calibrating"},
    {"loading"},
    {"model"},
    {"chat", "stages", "prefix", "rows"},
    {"answer", "batch", "drafts", "session", "speculation", "prompt_limits"},
    {"vision", "projector", "decoder", "generation", "inputs", "constrained"},
    {"checkpoints"},
    {"binder"},
    {"linear", "quantize", "kv_cache"},
    {"backend"},
    {"kernels"},
    {"kv_store"},
    {"ops"},
    {"config", "precisions", "trace", "cores", "memory", "pages", "paths", "errors"},
    {"ahead"},
]
CHOOSER = "backend"  # it chooses between `ops` and `kernels`, and imports the latter only when it is used

HEAVY = ["numpy", "numba", "llvmlite", "PIL", "sentencepiece", "safetensors", "tqdm", "threadpoolctl", "gguf"]
IMPORT_NAME = {"pillow": "PIL", "paho-mqtt": "paho"}


@dataclass(frozen=True)
class Import:
    """`importer` (a module of the package) imports `target` at `line`; lazily means inside a function."""

    importer: str
    target: str
    line: int
    lazy: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def sources() -> dict[str, Path]:
    """{module name: file} of the whole package; the kernels come in through the link."""
    found = {}
    for folder in (ROOT / "mvlm_np", ROOT / "kernels"):
        for path in folder.rglob("*.py"):
            if folder.name == "mvlm_np" and "kernels" in path.relative_to(folder).parts:
                continue  # Python 3.13 follows the link, earlier ones do not
            parts = [*path.relative_to(ROOT).with_suffix("").parts]
            if folder.name == "kernels":
                parts.insert(0, "mvlm_np")
            found[".".join(parts).removesuffix(".__init__")] = path
    return found


SOURCES = sources()
TOOLS = {".".join(p.relative_to(ROOT).with_suffix("").parts): p for p in (ROOT / "tools").rglob("*.py")}
OURS = SOURCES | TOOLS


def imports_of(module: str, tree: ast.AST, lazy: bool = False) -> Iterator[Import]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue  # names in annotations: nothing is imported when the code runs
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(module, alias.name, node.lineno, lazy)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}:{node.lineno}: relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield Import(module, whole if whole in OURS else str(node.module), node.lineno, lazy)
        yield from imports_of(module, node, lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


TREES = {name: ast.parse(path.read_text("utf-8")) for name, path in OURS.items()}
IMPORTS = [i for name in SOURCES for i in imports_of(name, TREES[name])]
# The package's own __init__ names the public API and stands outside the layers: it loads it on first use.
INNER = [i for i in IMPORTS if i.target in SOURCES and "mvlm_np" not in (i.importer, i.target)]
OUTER = [i for i in IMPORTS if i.target.split(".")[0] not in {*sys.stdlib_module_names, "mvlm_np"}]


def box(module: str) -> str:
    """mvlm_np.inputs.image -> inputs"""
    return module.split(".")[1]


def layer(module: str) -> int:
    for depth, boxes in enumerate(LAYERS):
        if box(module) in boxes:
            return depth
    pytest.fail(f"{module} has no place among the layers of {Path(__file__).name}")


def dependencies(group: str | None = None) -> set[str]:
    """Import names of the run-time dependencies, or of an extra's."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = project["optional-dependencies"][group] if group else project["dependencies"]
    names = {w.split(">")[0].split("=")[0].strip() for w in wanted}
    return {IMPORT_NAME.get(name, name) for name in names}


def python(*args: str) -> str:
    """Standard output of a new interpreter that sees the checkout."""
    done = subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_reader_of_imports_sees_every_form() -> None:
    tree = ast.parse("import a.b\ndef f():\n    from mvlm_np import ops, __version__\n")
    found = [(i.target, i.lazy) for i in imports_of("m", tree)]
    assert found == [("a.b", False), ("mvlm_np.ops", True), ("mvlm_np", True)]


def test_every_module_has_its_place() -> None:
    shown = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
    for module in SOURCES.keys() - {"mvlm_np"}:
        layer(module)
        assert box(module) in shown, f"CONTRIBUTING.md does not say where {module} stands"


def test_every_folder_of_modules_is_a_package() -> None:
    assert [p for p in SOURCES.values() if not (p.parent / "__init__.py").exists()] == []


def test_imports_point_down_only() -> None:
    assert [str(i) for i in INNER if layer(i.target) < layer(i.importer)] == []


def test_there_are_no_circles() -> None:
    graph: dict[str, set[str]] = {}
    for i in INNER:
        graph.setdefault(i.importer, set()).add(i.target)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_only_what_chooses_a_backend_imports_kernels_and_only_when_used() -> None:
    into = [i for i in INNER if box(i.target) == "kernels" and box(i.importer) != "kernels"]
    compiled = [i for i in into if i.target != "mvlm_np.kernels.pack"]  # pack is free of Numba
    assert [str(i) for i in compiled if box(i.importer) != CHOOSER or not i.lazy] == []


NUMBAS = "mvlm_np.kernels.code"  # what is compiled by Numba; imported only when something is compiled


def test_numba_stays_in_the_code_of_the_kernels() -> None:
    using = [i for i in OUTER if i.target.split(".")[0] in {"numba", "llvmlite"}]
    assert [str(i) for i in using if not i.importer.startswith(NUMBAS)] == []
    into = [i for i in INNER if i.target.startswith(NUMBAS) and not i.importer.startswith(NUMBAS)]
    assert [str(i) for i in into if not i.lazy] == []


def test_the_package_imports_only_what_it_declares() -> None:
    declared = dependencies() | {"llvmlite"}  # llvmlite comes with Numba, at the version that Numba wants
    optional = set().union(*map(dependencies, ("dask", "evaluate", "gguf", "hub", "mqtt", "onnx")))
    serving = dependencies("serve")  # what all of `serve` that speaks HTTP is written with
    undeclared = [
        str(i)
        for i in OUTER
        if (name := i.target.split(".")[0]) not in declared
        and not (i.lazy and name in optional)
        and not (box(i.importer) == "serve" and name in serving)
    ]
    assert undeclared == []
    web = {i.importer for i in OUTER if i.target.split(".")[0] in serving}
    assert [str(i) for i in INNER if i.target in web and box(i.importer) != "serve" and not i.lazy] == []


def test_tools_import_no_tests_and_scripts_no_scripts() -> None:
    """Tests may import tools. What two scripts need lies in tools/parts, and training in tools/demo."""
    scripts = {name for name, path in TOOLS.items() if path.parent.name == "tools"}
    found = [i for name in TOOLS for i in imports_of(name, TREES[name])]
    assert [str(i) for i in found if i.target in scripts or i.target.split(".")[0] == "tests"] == []


def private_names(tree: ast.AST) -> tuple[set[str], dict[str, int]]:
    """The names with an underscore that a module defines, and those it uses of other things: {name: line}."""
    defined, used = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            defined.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            defined.add(node.attr)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) != "self":
            used[node.attr] = node.lineno
        elif isinstance(node, ast.ImportFrom):
            used |= {alias.name: node.lineno for alias in node.names}

    def private(name: str) -> bool:
        return name.startswith("_") and not name.startswith("__") and name != "_"

    return {*filter(private, defined)}, {name: line for name, line in used.items() if private(name)}


def test_the_reader_of_private_names_sees_every_form() -> None:
    code = """
from m import _a, b
class _C:
    def _d(self): self._e = b._f + self._inherited
_g = __file__
"""
    assert private_names(ast.parse(code)) == ({"_C", "_d", "_e", "_g"}, {"_a": 2, "_f": 4})


def test_private_names_stay_in_their_modules() -> None:
    """In the package and in the tools; a test may look inside what it tests."""
    names = {module: private_names(tree) for module, tree in TREES.items()}
    everywhere = set().union(*(defined for defined, _ in names.values()))
    assert [
        f"{module}:{line} uses {name}"
        for module, (defined, used) in names.items()
        for name, line in used.items()
        if name in everywhere - defined
    ] == []


def test_package_inits_import_nothing_but_the_standard_library() -> None:
    """`import mvlm_np.errors` runs mvlm_np/__init__.py too, so what stands there is paid by everyone."""
    inits = {name for name, path in SOURCES.items() if path.name == "__init__.py"} - {"mvlm_np.cli"}
    eager = [i for i in IMPORTS if i.importer in inits and not i.lazy]
    ours = [i for i in eager if i.target.split(".")[0] not in sys.stdlib_module_names]
    assert [str(i) for i in ours] == []


@pytest.mark.parametrize(
    "start",
    ["import mvlm_np", "from mvlm_np.cli import main; main(['--help'])"],
    ids=["import mvlm_np", "mvlm --help"],
)
def test_starting_loads_nothing_heavy(start: str) -> None:
    watched = [*HEAVY, "torch", "huggingface_hub", "mvlm_np.model"]
    code = f"""
import sys
try:
    {start}
except SystemExit as end:
    assert not end.code, end.code
print("loaded:", [name for name in {watched} if name in sys.modules])
"""
    assert python("-c", code).splitlines()[-1] == "loaded: []"


def test_the_public_names_come_on_first_use() -> None:
    code = "import mvlm_np; print(mvlm_np.load.__module__, mvlm_np.MobileVLM.__module__)"
    assert python("-c", code).split() == ["mvlm_np.loading", "mvlm_np.model"]


def test_everything_but_the_code_of_the_kernels_imports_without_numba_and_extras() -> None:
    modules = sorted(m for m in SOURCES if not m.startswith(NUMBAS))
    blocked = ["numba", "llvmlite", "gguf", "huggingface_hub", "onnx", "paho", "pyarrow", "torch"]
    code = f"""
import importlib, sys
sys.modules.update(dict.fromkeys({blocked}))
for name in {modules}:
    if not name.endswith("__main__"):
        importlib.import_module(name)
"""
    python("-c", code)
