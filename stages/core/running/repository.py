"""The DVC repository that a command works on."""

import logging
from collections.abc import Iterable
from typing import Any

from stages.core.process.errors import UserError
from stages.core.running import choice, code_folders, lock_file, params_file


def opened() -> Any:
    """The `dvc.repo.Repo` of the current folder. Raises UserError where it is none, or one that DVC cannot read."""
    from dvc.exceptions import DvcException
    from dvc.repo import Repo
    from dvc.scm import SCM, SCMError

    choice.apply()
    lock_file.install()
    params_file.install()
    code_folders.install()
    try:
        repo = Repo()
        SCM(repo.root_dir, no_scm=repo.config["core"].get("no_scm", False))  # DVC would look for git much later
        return repo
    except SCMError:
        raise UserError(
            "this folder is no git repository, which DVC needs: run `git init && git add -A && git commit -m start`, "
            "and then the command again"
        ) from None
    except DvcException as error:
        raise UserError(str(error)) from None


def outdated(repo: Any, stages: Iterable[str]) -> set[str]:
    """Those of `stages` that may have to run: they changed, or follow from one that did.

    All of them where DVC cannot say, as while another DVC runs.
    """
    import networkx
    from dvc.exceptions import DvcException

    found = set()
    logging.getLogger("dvc").setLevel(logging.ERROR)  # that a frozen stage is frozen is no news
    try:
        changed, graph = repo.status(), repo.index.graph
    except DvcException:
        return set(stages)
    for stage in graph:
        if stage.addressing in changed and not stage.frozen:
            found |= {after.addressing for after in networkx.ancestors(graph, stage) | {stage}}
    return found & set(stages)
