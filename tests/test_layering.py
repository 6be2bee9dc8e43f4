"""Who may import whom. Reads the source with `ast`, so nothing is imported and imports inside functions count too.

kernels <- core of unipercept <- pipelines, datasets <- unipercept/api.py <- app <- unipercept/cli.py
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = {
    "unipercept": "unipercept",
    **{name: f"unipercept.{name}" for name in ("app", "datasets", "kernels", "pipelines")},
}

# What each ring may import of the others; errors.py is plain vocabulary that even kernels raise.
MAY_IMPORT = {
    "errors": set(),
    "kernels": {"errors"},
    "core": {"errors", "kernels"},
    "pipelines": {"errors", "kernels", "core"},
    "datasets": {"errors", "kernels", "core"},
    "api": {"errors", "kernels", "core", "pipelines", "datasets"},
    "app": {"errors", "kernels", "core", "pipelines", "datasets", "api"},
    "cli": {"errors", "kernels", "core", "pipelines", "datasets", "api", "app"},
}
OUTER_MODULES = {
    "unipercept.errors": "errors",
    "unipercept.api": "api",
    "unipercept.encode_chunk": "api",  # the two that do the work of api.encode() over a tree
    "unipercept.encode_job": "api",
    "unipercept.perceive_chunk": "api",  # that of api.perceive()
    "unipercept.perception": "api",  # joins datasets, pipelines and training
    "unipercept.forecasting": "api",  # joins tables and the network
    "unipercept.cli": "cli",
    "unipercept.cli_forecast": "cli",
    "unipercept.cli_learning": "cli",
    "unipercept.cli_machine": "cli",
    "unipercept.cli_parts": "cli",
    "unipercept.cli_recordings": "cli",
    "unipercept.cli_weather": "cli",
    "unipercept.cli_weather_network": "cli",
    "unipercept.__main__": "cli",
}
IMPORTED_ON_USE = {"av", "decord", "gradio", "librosa", "matplotlib", "open3d", "plotly"}


def source_files() -> list[tuple[str, Path]]:
    """Every module of the project by its full name; links are not followed, so each comes once."""
    found = []
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            if folder == "unipercept" and parts[0] in FOLDERS:
                continue
            name = ".".join([package, *parts]).removesuffix(".__init__")
            found.append((name, path))
    return found


MODULES = dict(source_files())


@cache
def trees() -> dict[str, ast.Module]:
    """The source of every module, parsed."""
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


@cache
def on_load() -> dict[str, set[str]]:
    """What every module imports as soon as it is imported."""
    return {name: set(imports_on_load(tree)) for name, tree in trees().items()}


def libraries(module: str) -> set[str]:
    """First names of what it imports then."""
    return {name.split(".")[0] for name in on_load()[module]}


def ring(module: str) -> str:
    """The ring that a module lies in."""
    for outer, name in OUTER_MODULES.items():
        if module == outer or module.startswith(f"{outer}."):
            return name
    second = module.split(".")[1] if "." in module else ""
    return second if second in FOLDERS and second != "unipercept" else "core"


def imports(tree: ast.AST) -> Iterator[str]:
    """Full names of what a module imports, wherever it does so; `from a import b` gives a.b where that is a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide the full name"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                yield submodule if submodule in MODULES or node.module == "unipercept" else str(node.module)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                yield name.value


def imports_on_load(tree: ast.Module) -> Iterator[str]:
    """Names that are imported as soon as the module is: not those inside functions or for type checkers alone."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) or is_for_type_checkers(node):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield str(node.module)
        waiting.extend(ast.iter_child_nodes(node))


def is_for_type_checkers(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")


def violations(module: str, tree: ast.Module) -> list[str]:
    """What a module imports from rings that it may not know."""
    own = ring(module)
    targets = [name for name in imports(tree) if name.split(".")[0] == "unipercept"]
    return [name for name in targets if ring(name) != own and ring(name) not in MAY_IMPORT[own]]


def test_imports_point_inwards() -> None:
    wrong = {name: violations(name, tree) for name, tree in trees().items() if name != "unipercept"}
    assert not {f"{name} ({ring(name)}) must not import": found for name, found in wrong.items() if found}


def test_the_package_itself_loads_nothing_of_the_outer_rings() -> None:
    """Its front-door names are imported when first used, and by type checkers."""
    loaded = {name for name in on_load()["unipercept"] if name.startswith("unipercept")}
    assert {ring(name) for name in loaded} <= {"errors", "kernels", "core"}


def test_heavy_libraries_are_imported_on_use() -> None:
    """The web demo's page is gradio: its modules may load it, and nothing but functions loads them."""
    for module in MODULES:
        allowed = {"gradio"} if module.startswith("unipercept.app.web.") else set()
        assert not libraries(module) & (IMPORTED_ON_USE - allowed), module


def test_modules_that_load_gradio_are_loaded_by_their_like_and_in_functions_alone() -> None:
    with_gradio = {module for module in MODULES if "gradio" in libraries(module)}
    assert with_gradio
    for module, names in on_load().items():
        assert module.startswith("unipercept.app.web.") or not names & with_gradio, module


def test_triton_is_loaded_by_gpu_modules_alone() -> None:
    for module in MODULES:
        assert "triton" not in libraries(module) or module.split(".")[-1].startswith("gpu"), module


def test_names_are_imported_from_where_they_are_defined() -> None:
    """`from unipercept import perceive` would pull in the outer rings behind the checker's back."""
    for module, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "unipercept":
                names = {alias.name for alias in node.names} - {"__version__"}
                assert {f"unipercept.{name}" for name in names} <= set(MODULES), module


def test_every_module_is_found() -> None:
    assert {"unipercept", "unipercept.errors", "unipercept.pipelines", "unipercept.kernels"} <= set(MODULES)
    assert {ring(name) for name in MODULES} == set(MAY_IMPORT)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("unipercept.kernels.grn", "from unipercept.embedding import EmbeddingMap"),
        ("unipercept.train", "def fit():\n    from unipercept.pipelines import audio"),
        ("unipercept.pipelines.audio", "import unipercept.datasets.synthetic"),
        ("unipercept.datasets.ett", "from unipercept import pipelines"),
        ("unipercept.api", "import importlib\nimportlib.import_module('unipercept.app.report')"),
        ("unipercept.app.report", "from unipercept.cli import main"),
    ],
)
def test_an_outward_import_is_noticed(module: str, source: str) -> None:
    assert violations(module, ast.parse(source))


def test_an_import_on_load_is_told_from_one_on_use() -> None:
    source = "import a\nclass C:\n    import b\n    def f(self):\n        import c\nif TYPE_CHECKING:\n    import d\ntry:\n    import e\nfinally:\n    pass"
    assert sorted(imports_on_load(ast.parse(source))) == ["a", "b", "e"]


def test_open3d_is_loaded_in_one_place():
    """With the libusb that it needs: imported plainly, it works only where the system has one, or after another did."""
    loaders = [name for name, path in source_files() if 'import_optional("open3d"' in path.read_text(encoding="utf-8")]
    assert loaders == ["unipercept.open3d_library"]
