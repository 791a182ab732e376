"""Upload a variant to a repository of the hub, or say what would go: make push VARIANT=softshare REPO=me/softshare.

Without CONFIRM=yes nothing leaves this machine: the export is written to `exported`, and its files and their sizes are
listed. With it they are uploaded by huggingface_hub, with the token of `hf auth login` or HF_TOKEN. A repository that
is not there is made, and is private.
"""

import re
from pathlib import Path

from stages.commands import export
from stages.commands.finished import checkpoint_of
from stages.core.process import command
from stages.core.process.errors import UserError

REPLACED = ["*.safetensors", "*.safetensors.index.json", "*.py"]  # files of an earlier upload that are not in this one


def main(variant: str, repo: str, form: str, confirm: str, dtype: str = "", to: str = "") -> None:
    if to:
        raise UserError(f"TO = {to}: push writes to exported/VARIANT-FORM; `make export` takes TO")
    check(repo, form, confirm)
    checkpoint_of(variant)
    folder = Path("exported", f"{variant}-{form}")
    export.export(variant, folder, form, dtype, repo)
    files = contents(folder)
    total = sum(files.values())
    print("\n".join(f"{size:>15,} {name}" for name, size in files.items()))
    print(f"{total:>15,} bytes in {len(files)} files of {folder}, {'' if confirm == 'yes' else 'would go '}to {repo}")
    if confirm == "yes":
        print(f"uploaded: {upload(folder, repo, f'{variant}, {form}')}")
    else:
        print("Nothing was uploaded. CONFIRM=yes uploads it; look at the model card (README.md) and its licence first.")


def check(repo: str, form: str, confirm: str) -> None:
    """Raise UserError before anything is written: for values that are not allowed, or an upload without a token."""
    import huggingface_hub

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo):
        said = f"REPO = {repo}" if repo else "REPO is missing"
        raise UserError(f"{said}: owner/name is needed, such as me/softshare")
    if form not in export.FORMS:
        raise UserError(f"FORM = {form}: {' or '.join(export.FORMS)}")
    if confirm not in ("yes", "no"):
        raise UserError(f"CONFIRM = {confirm}: yes or no is needed")
    if confirm == "yes" and not huggingface_hub.get_token():
        raise UserError("CONFIRM = yes: there is no token for the hub; `hf auth login` or HF_TOKEN gives one")


def contents(folder: Path) -> dict[str, int]:
    """The path of each file within a folder -> its bytes."""
    return {str(path.relative_to(folder)): path.stat().st_size for path in sorted(folder.rglob("*")) if path.is_file()}


def upload(folder: Path, repo: str, what: str) -> str:
    """The address of the commit with a folder's files. Raises UserError where the hub refuses or cannot be reached."""
    import huggingface_hub
    from huggingface_hub.errors import HTTPError

    hub = huggingface_hub.HfApi()
    try:
        hub.create_repo(repo, private=True, exist_ok=True)
        # Weights in one file would be taken before those of an index that is uploaded later.
        done = hub.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=f"Upload {what}", delete_patterns=REPLACED
        )
    except (HTTPError, OSError, ValueError) as error:
        raise UserError(f"the hub did not take {repo}: {' '.join(str(error).split())[:300]}") from error
    return done.commit_url


if __name__ == "__main__":
    command.entry(main)
