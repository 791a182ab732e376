"""Hash the cache and the working tree anew and compare them with dvc.lock: make verify.

Run from the repository's root while no stage runs. Exit status 1 where a file is not what its hash says.
"""

from collections import Counter

from stages.core.process import command
from stages.core.process.errors import UserError
from stages.core.process.progress import progress
from stages.core.running import repository
from stages.core.running.verification import verify

FEW = 8  # commands for missing objects that are told one by one


def main() -> None:
    from dvc.exceptions import DvcException

    files = []

    def watch(paths):
        files.extend(paths)
        return progress(paths, "verify", unit="file")

    try:
        found = verify(repository.opened(), watch)
    except DvcException as error:
        raise UserError(f"{error} (`make repro` mends a dvc.lock that was cut short)") from None
    missing = [finding for finding in found if finding.what == "missing object"]
    remedies = Counter(finding.mend for finding in missing)
    if len(remedies) > FEW:
        print(f"missing objects: {len(missing)} (`make repro` makes them, `dvc pull` fetches them from a remote)")
    else:
        for mend, count in remedies.items():
            print(f"missing objects: {count} (`{mend}`)")
    damaged = [finding for finding in found if finding not in missing]
    for finding in damaged:
        print(f"{finding.what}: {finding.path} ({finding.stage or 'of an earlier run'})")
    print(f"{len(files):,} files read: {len(damaged)} damaged or changed, {len(missing)} missing")
    if not damaged:
        return
    inputs = [str(finding.path) for finding in damaged if finding.what == "changed input"]
    if inputs:
        print("Of inputs, `git restore` puts back what git has, and `dvc repro` takes them as they are now.")
    if mending := commands(damaged):
        print("\n".join(["To mend:", *mending]))
    raise UserError("files are not what dvc.lock says (see above)")


def commands(damaged) -> list[str]:
    """What mends all of it, one command a line, in this order."""
    removed = [f"rm -r {finding.remove}" for finding in damaged if finding.remove]
    return list(dict.fromkeys(removed)) + list(dict.fromkeys(finding.mend for finding in damaged if finding.mend))


if __name__ == "__main__":
    command.entry(main)
