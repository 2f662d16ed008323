"""The README is short, its code runs as pasted and prints what it says, its commands, pictures and links are there."""

import re

from tests import documents

README = documents.ROOT / "README.md"


def test_readme_has_at_most_500_words():
    assert len(README.read_text().split()) <= 500


def test_readme_python_is_short_and_prints_what_it_says():
    (block,) = documents.blocks(README, "python")
    assert len([line for line in block.text.splitlines() if line.strip()]) <= 15
    assert re.search(r"print\(x_0\.mean\(\), x_0\.std\(\)\)  # 2\.0 0\.5$", block.text)
    assert len(documents.run(README)) == 1


def test_readme_names_a_command_for_each_of_the_ten_steps():
    steps = [words[1] for words in documents.commands(README) if words[0] == "python"]
    numbers = {int(found[1]) for step in steps if (found := re.match(r"experiments/step(\d+)_", step))}
    assert numbers == set(range(1, 11))


def test_readme_pictures_and_links_are_there():
    targets = re.findall(r"\]\(([^)]+)\)", README.read_text())
    assert len(targets) > 8
    for target in targets:
        assert (documents.ROOT / target).exists(), target
