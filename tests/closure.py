"""The import closure of a module of this project, read from its source, and how dvc.yaml writes it."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def closure(module: str) -> set[str]:
    """Paths (relative, posix) of a module and of all project modules it imports, directly or not, anywhere."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        path = ROOT / (waiting.pop().replace(".", "/") + ".py")
        name = path.relative_to(ROOT).as_posix()
        if name in found:
            continue
        found.add(name)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module] + [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            waiting += [n for n in names if (ROOT / (n.replace(".", "/") + ".py")).is_file()]
    return found


def dependencies(module: str) -> set[str]:
    """The closure as dvc.yaml has it: where it holds every module of a folder of stages/core, that folder instead."""
    files = closure(module)
    for folder in (ROOT / "stages" / "core").iterdir():
        whole = {path.relative_to(ROOT).as_posix() for path in folder.glob("*.py") if path.stem != "__init__"}
        if whole and whole <= files:
            files = files - whole | {folder.relative_to(ROOT).as_posix()}
    return files
