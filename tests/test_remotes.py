"""What one machine has run reaches another by git and a remote, and nothing runs again there."""

from pathlib import Path

import pytest
from shrunk import STUDY, attempt, commit, edit, run, stages_run


@pytest.fixture(scope="module")
def author(clone, copy_of) -> Path:
    """A copy of the clone whose run is committed and pushed to a folder by the README's commands."""
    folder = copy_of(clone)
    run(folder, "dvc", "remote", "add", "-d", "shared", str(folder.parent / "remote"))
    run(folder, "dvc", "push")
    commit(folder, "run")
    return folder


def colleague(author: Path, folder: Path) -> Path:
    run(author, "git", "clone", "-q", str(author), str(folder))
    return folder


def outcome(folder: Path, text: str) -> str:
    """Commit another configuration's outcome (its file stands for a run), and say under which revision."""
    (folder / "artifacts/samples/original.json").write_text(text)
    run(folder, "dvc", "commit", "-f", "generate@original")
    commit(folder, text)
    return run(folder, "git", "rev-parse", "HEAD").strip()


def test_a_colleague_pulls_and_nothing_runs(author, tmp_path):
    there = colleague(author, tmp_path / "there")
    assert not (there / "artifacts/finetuned/softshare").exists()
    run(there, "dvc", "pull")
    assert "up to date" in run(there, "dvc", "status")
    assert not stages_run(run(there, "dvc", "repro"))
    assert run(there, "git", "status", "--short") == ""
    assert "up to date" in run(there, "dvc", "status")


def test_nothing_runs_again_anywhere_after_a_variant_was_renamed(author, copy_of, tmp_path):
    def rename(values):
        values["variants"]["merged_four"] = values["variants"].pop("merged_4")
        del values["variants"]["softshare"]

    mine = copy_of(author)
    edit(mine, rename)
    ran = stages_run(run(mine, *STUDY))
    assert "report" in ran and all(name == "report" or name.endswith("@merged_four") for name in ran)
    assert not stages_run(run(mine, "dvc", "repro")) and "up to date" in run(mine, "dvc", "status")
    run(mine, "dvc", "push")
    commit(mine, "renamed")
    there = colleague(mine, tmp_path / "there")
    run(there, "dvc", "pull")
    assert "up to date" in run(there, "dvc", "status")
    assert not stages_run(run(there, "dvc", "repro"))
    assert run(there, "git", "status", "--short") == ""
    assert "merged_4" not in (there / "metrics/report.md").read_text()


def test_a_push_of_all_commits_brings_every_configuration(author, tmp_path):
    earlier = outcome(author, '"earlier"')
    outcome(author, '"later"')
    there = colleague(author, tmp_path / "there")
    run(there, "git", "checkout", "-q", earlier)
    run(author, "dvc", "push")
    assert attempt(there, "dvc", "pull").returncode != 0  # only the later one was pushed
    run(author, "dvc", "push", "--all-commits")
    run(there, "dvc", "pull")
    assert (there / "artifacts/samples/original.json").read_text() == '"earlier"'
    run(there, "git", "checkout", "-q", "-")
    run(there, "dvc", "pull")
    assert (there / "artifacts/samples/original.json").read_text() == '"later"'


def test_a_bucket_is_as_good_as_a_folder(author, tmp_path, monkeypatch):
    import boto3
    from moto.server import ThreadedMotoServer

    for name, value in {"ACCESS_KEY_ID": "any", "SECRET_ACCESS_KEY": "any", "DEFAULT_REGION": "us-east-1"}.items():
        monkeypatch.setenv(f"AWS_{name}", value)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        address = "http://{}:{}".format(*server.get_host_and_port())
        boto3.client("s3", endpoint_url=address).create_bucket(Bucket="bucket")
        run(author, "dvc", "remote", "add", "-f", "bucket", "s3://bucket/study")
        run(author, "dvc", "remote", "modify", "bucket", "endpointurl", address)
        commit(author, "a bucket")
        run(author, "dvc", "push", "-r", "bucket", "align", "sentiment@softshare")
        there = colleague(author, tmp_path / "there")
        run(there, "dvc", "pull", "-r", "bucket", "align", "sentiment@softshare")
    finally:
        server.stop()
    pulled = ("artifacts/permutations.npz", "artifacts/alignment.json", "metrics/sentiment/softshare.json")
    assert all((there / path).read_bytes() == (author / path).read_bytes() for path in pulled)
    assert not (there / "artifacts/finetuned/softshare").exists()  # nobody pushed it
