"""The task of a model, by its family."""

from pathlib import Path
from typing import Any

from stages.core.architecture import shape
from stages.core.tasks.images import ImageClassification
from stages.core.tasks.interface import Task
from stages.core.tasks.language import Language

TASKS: dict[str, type[Task]] = {"language": Language, "image_classification": ImageClassification}


def task_of(folder: Path) -> type[Task]:
    """What the model in a folder is studied at."""
    return TASKS[shape.task_of(folder)]


def by(folder: Path, section: Any) -> Task:
    """The task of the model in a folder, with the sizes of a section of params.yaml."""
    return task_of(folder).by(section)
