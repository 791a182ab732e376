"""The import closure of a module of this project, read from its source, and the rooms of stages/core it touches."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "stages" / "core"
ROOMS = sorted(path.name for path in CORE.iterdir() if (path / "__init__.py").is_file())


def imports(path: Path) -> set[str]:
    """Dotted names of the project's modules that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
    return {name for name in names if _path(name).is_file()}


def closure(module: str) -> set[str]:
    """Paths (relative, posix) of a module and of all project modules it imports, directly or not, anywhere."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        path = _path(waiting.pop())
        name = path.relative_to(ROOT).as_posix()
        if name not in found:
            found.add(name)
            waiting += imports(path)
    return found


def dependencies(module: str) -> set[str]:
    """The closure as dvc.yaml has it: for each module of stages/core, the room in which it lies."""
    return {name if Path(name).parent.name == "stages" else Path(name).parent.as_posix() for name in closure(module)}


def _path(module: str) -> Path:
    return ROOT / (module.replace(".", "/") + ".py")
