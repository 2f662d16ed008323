"""Every page for readers: its Python runs in order and prints what it says, its commands parse."""

import shlex

import pytest

from tests import documents

name = lambda page: str(page.relative_to(documents.ROOT))
WITH_PYTHON = [page for page in documents.PAGES if documents.blocks(page, "python") and "docs" in page.relative_to(documents.ROOT).parts]
COMMANDS = {shlex.join(words): words for page in documents.PAGES for words in documents.commands(page)}


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name)
def test_python_of_a_page_runs_and_prints_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    documents.run(page)


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_command_of_a_page_parses(command):
    documents.check_command(COMMANDS[command])
