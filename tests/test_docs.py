"""Pages for readers: their Python runs and prints what they say, their commands parse, their links lead somewhere."""

import ast
import re
import shlex
import subprocess
import sys

import pytest
import yaml

from tests import described, documents

name = lambda page: str(page.relative_to(documents.ROOT))
LONG = {f"docs/{page}.md" for page in ("steps", "networks", "text_to_image", "stable_diffusion")}
"""Pages that take long, which `.ci/run` leaves out. CI has what they show elsewhere: tests/test_experiments.py,
tests/training/test_any_network.py, tests/test_text_model.py, tests/pretrained."""
SITE = (pytest.mark.slow, pytest.mark.site)
GUIDES = [page for page in documents.PAGES if page.parent == documents.ROOT / "docs"]
WITH_PYTHON = [page for page in GUIDES if documents.blocks(page, "python")]
MADE = {block.title for page in documents.PAGES for block in documents.blocks(page)}
SAID = [
    *(words for page in documents.PAGES for words in documents.commands(page)),
    *(words for script in documents.SCRIPTS for words in documents.commands_of_docstring(script)),
]
COMMANDS = {
    shlex.join(words): words for words in SAID if not MADE & set(words)
}  # a recipe's has a test of its own
RUN = "checkpoints/step10_conditional"


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=SITE[: 1 if name(page) in LONG else 2], id=name(page)) for page in WITH_PYTHON],
)
def test_python_of_a_page_runs_and_prints_what_it_says(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GEN_JAX_CACHE", str(tmp_path / "cache"))
    if RUN in page.read_text():  # a run with labels, as far as its readers see
        described.run(tmp_path / RUN, described.model(num_classes=10))
    documents.run(page)


@pytest.mark.parametrize("command", sorted(COMMANDS), ids=str)
def test_command_of_a_page_or_a_script_parses(command):
    documents.check_command(COMMANDS[command])


@pytest.mark.parametrize(
    ("command", "error"),
    [
        (["python", "experiments/step01_normal.py", "--sead", "1"], SystemExit),
        (["python", "experiments/step99.py"], AssertionError),
        (["gen-jax", "sample", "here", "--nfee", "1"], SystemExit),
        (["pip", "install", "-e", ".[tests]"], AssertionError),
        (["pytest", "tests/nowhere.py"], AssertionError),
        (["rm", "-rf", "build"], AssertionError),
        (["gcloud", "compute", "tpus", "tpu-vm", "create", "a", "--zonne=b"], AssertionError),
        (["gcloud", "compute", "tpus", "tpu-vm", "make", "a"], AssertionError),
        (["experiments/launch/run.sh", "step09_diffusion", "--sead", "1"], SystemExit),
        (["experiments/launch/create.sh", "a"], AssertionError),
    ],
    ids=lambda value: shlex.join(value) if isinstance(value, list) else "",
)
def test_command_that_is_wrong_is_found(command, error):
    with pytest.raises(error):
        documents.check_command(command)


@pytest.mark.parametrize(
    ("said", "printed", "same"),
    [
        ("2.0", "2.04", True),
        ("2.0", "2.2", False),
        ("(8, 28)", "(8, 28)", True),
        ("(8, 28)", "(8, 29)", False),
        ("1.2e-3", "0.00123", True),
        ("1.2e-3", "0.0023", False),
        ("1", "1 2", False),
    ],
)
def test_what_a_page_says_is_printed_is_compared_to_its_digits(tmp_path, said, printed, same):
    page = tmp_path / "page.md"
    page.write_text(f"```python\nprint({printed!r})  # {said} of something\n```\n")
    if same:
        assert documents.run(page) == [printed]
    else:
        with pytest.raises(AssertionError, match=r"page\.md:2"):
            documents.run(page)


def test_relative_links_between_pages_lead_to_files():
    """Those of the site are checked by `mkdocs build`, too, with their anchors; here without it."""
    elsewhere = set(
        re.findall(r'^    "([^"]+)": "', (documents.ROOT / "docs/hooks.py").read_text(), re.MULTILINE)
    )
    elsewhere.add("presets.md")
    assert "recommended.md" in elsewhere
    for page in GUIDES:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
            there = (page.parent / target).exists() or target in elsewhere or target.startswith("api/")
            assert there, f"{page.name}: {target}"


def test_no_page_names_a_place_of_one_machine():
    for page in documents.PAGES:
        assert not re.search(r"(?<![\w.])/(work|tmp|home|root)/", page.read_text()), page


def test_citation_is_complete_and_of_this_version():
    """The keys that the Citation File Format 1.2.0 requires, and the values that it allows."""
    cited = yaml.safe_load((documents.ROOT / "CITATION.cff").read_text())
    assert {"cff-version", "message", "title", "authors"} <= set(cited)
    assert cited["cff-version"] == "1.2.0"
    assert cited["type"] in ("software", "dataset")
    assert cited["authors"] == [{"name": "The gen_jax developers"}]
    assert str(cited["version"]) == documents.pyproject()["version"]
    assert cited["license"] == documents.pyproject()["license"]
    assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", str(cited["date-released"]))


def test_changelog_begins_with_this_version():
    text = (documents.ROOT / "CHANGELOG.md").read_text()
    versions = re.findall(r"^## \[([\d.]+)\] - \d{4}-\d{2}-\d{2}$", text, re.MULTILINE)
    assert versions[0] == documents.pyproject()["version"]
    kinds = set(re.findall(r"^### (\w+)$", text, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_hooks_before_a_commit_need_no_network():
    config = yaml.safe_load((documents.ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert all(repo["repo"] == "local" for repo in config["repos"])
    assert all(hook["language"] == "system" for hook in hooks)
    assert {hook["entry"].split()[0] for hook in hooks} == {"ruff", "mypy"}


def exports(path):
    """What a package says is public, without importing it."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


@pytest.mark.slow
@pytest.mark.site
def test_site_is_built_without_warnings_and_has_all_that_is_public(tmp_path):
    """One command; a page asks no other host for anything, and formulas are MathML."""
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=documents.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    pages = {
        page.parent.relative_to(tmp_path).as_posix(): page.read_text()
        for page in tmp_path.rglob("index.html")
    }
    packages = {path.parent: exports(path) for path in (documents.ROOT / "gen_jax").rglob("__init__.py")}
    assert sum(map(len, packages.values())) > 100
    for package, names in packages.items():
        dotted = ".".join(package.relative_to(documents.ROOT).parts)
        for name in names:
            page = pages[f"api/{dotted.removeprefix('gen_jax.')}"]
            module = f"api/{dotted.removeprefix('gen_jax.')}.{name}"
            assert f'id="{dotted}.{name}"' in page or module in pages, f"{dotted}.{name} has no entry"
    for place, text in pages.items():
        loaded = re.findall(r'<(?:script|img|link rel="stylesheet")[^>]*(?:src|href)="(https?:[^"]+)"', text)
        assert not loaded, (place, loaded)
    assert "<math" in pages["steps"]
    assert "arithmatex" not in pages["steps"]
