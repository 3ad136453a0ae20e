"""What a result came from: the source files a stage imports, their digest, the versions of the packages that matter.

DVC hashes the dependencies it is told of and traces no imports. `import_closure` reads the imports with `ast`, so that
one function decides three things: what dvc.yaml must name (a test compares), the fingerprint under which a killed stage
may resume, and the code digest that the report prints. What decides no result is left out of all three.
"""

from __future__ import annotations

import ast
import importlib.metadata
from functools import cache
from pathlib import Path

from pipeline_lib.core.artifacts import digest, sha256_file

PACKAGES = ("torch", "torchvision", "open_clip_torch", "timm", "transformers", "numpy", "pillow", "scikit-learn")
OWN = ("pipeline_lib", "stages")
DECIDES_NOTHING = (
    "pipeline_lib/__init__.py",  # how idle threads wait, when garbage is collected, what Ctrl-C during an import says
    "pipeline_lib/params",  # refuses a params.yaml that does not fit together, and prints its reference
    "pipeline_lib/terminal.py",  # command lines, progress bars, how an error reads
    "pipeline_lib/tracking",  # what MLflow is told
    "stages/__init__.py",  # prose, and that import
)
"""Files and folders whose code changes no output: in no stage's deps and in no fingerprint. An edit there re-runs
nothing, and a half-finished epoch goes on.
"""


@cache
def _imported(source: str) -> frozenset[str]:
    """Return the names of the modules (or things in them) that a source text imports anywhere."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def _own_imports(path: Path, root: Path) -> set[Path]:
    """Return the files of this project that `path` imports anywhere (top level or inside functions)."""
    found = set()
    for name in _imported(path.read_text(encoding="utf-8")):
        if name.split(".")[0] in OWN:
            module = root / Path(*name.split("."))
            found |= {p for p in (module.with_suffix(".py"), module / "__init__.py") if p.is_file()}
    return found


def decides(path: Path) -> bool:
    """Return whether the code of `path`, relative to the project, may decide a result; see `DECIDES_NOTHING`."""
    return not any(path.is_relative_to(idle) for idle in DECIDES_NOTHING)


def import_closure(script: Path, root: Path = Path()) -> list[Path]:
    """List `script` and every file that it imports, directly or not, as sorted paths relative to `root`.

    Files that decide nothing are left out, and what only they import with them.
    """
    todo, seen = [root / script], set()
    while todo:
        path = todo.pop()
        if path not in seen and decides(path.relative_to(root)):
            seen.add(path)
            todo += _own_imports(path, root)
            package = path.parent / "__init__.py"
            todo += [package] if package.is_file() else []
    return sorted(p.relative_to(root) for p in seen)


def code_digest(script: Path, root: Path = Path()) -> str:
    """Return the hex SHA-256 over the names and contents of `import_closure(script)`."""
    return digest({path.as_posix(): sha256_file(root / path) for path in import_closure(script, root)})


def stage_digest(stage: str) -> str:
    """Return the `code_digest` of `stages/<stage>.py`, wherever the command runs."""
    return code_digest(Path(f"stages/{stage}.py"), Path(__file__).parents[2])


def package_versions() -> dict[str, str]:
    """Return the installed versions of the packages on which the numbers depend."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions
