"""Where the hub cannot be reached, its libraries are told so at once; where it can, nothing is touched."""

import os
import socket
import sys

import pytest
from closure import ROOT

from stages.core.architecture import opening
from stages.core.process import hub
from stages.core.process.errors import UserError
from stages.core.settings.texts import Dataset
from stages.core.text import sources


@pytest.fixture
def unsettled(monkeypatch):
    """No word yet on whether there is a hub, and no proxy."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub, "getproxies", dict)
    return monkeypatch


def refuse(where, timeout):
    raise OSError(f"no route to {where}")


def test_without_a_hub_its_libraries_use_their_cache_alone(unsettled):
    unsettled.setattr(socket, "create_connection", refuse)
    hub.settle()
    assert os.environ.pop("HF_HUB_OFFLINE") == "1"


def test_libraries_that_are_there_already_hear_of_it_too(unsettled):
    """As in a process that the server of `make repro` has forked."""
    import datasets.config as config
    import huggingface_hub.constants as constants

    for known in (constants, config):
        unsettled.setattr(known, "HF_HUB_OFFLINE", False)
    unsettled.setattr(socket, "create_connection", refuse)
    hub.settle()
    assert constants.HF_HUB_OFFLINE and config.HF_HUB_OFFLINE and os.environ.pop("HF_HUB_OFFLINE")


def test_a_hub_of_ones_own_is_the_one_asked(unsettled):
    with socket.create_server(("127.0.0.1", 0)) as server:
        unsettled.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        hub.settle()
    assert "HF_HUB_OFFLINE" not in os.environ


@pytest.mark.parametrize("setting", ["HF_HUB_OFFLINE", "proxy"])
def test_a_user_who_has_settled_it_is_not_overruled(setting, unsettled):
    if setting == "proxy":
        unsettled.setattr(hub, "getproxies", lambda: {"https": "http://proxy"})
    else:
        unsettled.setenv(setting, "0")
    unsettled.setattr(socket, "create_connection", refuse)
    hub.settle()
    assert os.environ.get("HF_HUB_OFFLINE") == {"proxy": None, "HF_HUB_OFFLINE": "0"}[setting]


def test_models_and_text_that_cannot_be_had_name_the_profile_that_can():
    with pytest.raises(UserError, match="base.model = 'openai-community/no-such'.*profile small needs no network"):
        opening.open_source("openai-community/no-such", None, None)
    source = Dataset(kind="dataset", path="nobody/no-such", train="train", validation="validation", test="test")
    with pytest.raises(UserError, match="prepare.source.*nobody/no-such.*Profile small needs no network"):
        sources.rows(source, "train", ROOT / "data" / "lexicon.yaml")
    assert "HF_HUB_OFFLINE" in os.environ and "datasets" in sys.modules
