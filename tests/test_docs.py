"""The documentation tells of every setting, and its example configuration is valid."""

import importlib.util
import re
import runpy
from pathlib import Path

import pytest
import typer
import yaml

from opmix.cli.app import app
from opmix.comparison.config import CompareConfig, ContenderConfig, load_compare
from opmix.config import SearchConfig, load_config
from opmix.lifecycle import config as life
from opmix.settings import hints_of, keys_of, settings_class

ROOT = Path(__file__).parents[1]


def test_every_setting_is_documented():
    text = (ROOT / "docs" / "search.md").read_text()
    checked = 0
    for name in keys_of(SearchConfig):
        assert name in text, name
        inner = settings_class(hints_of(SearchConfig)[name])
        for key in [] if inner is None else keys_of(inner):
            checked += 1
            assert key in text, f"{name}.{key}"
    assert checked > 25


def test_the_example_configuration_is_valid():
    config = load_config(ROOT / "examples" / "search.yaml")
    assert config.budget.tokens == 2_000_000_000
    assert config.solve.loss_limits == {"web": 2}


@pytest.mark.parametrize(
    "kind",
    [
        life.LifeSettings,
        life.StageConfig,
        life.EvaluationConfig,
        life.KeepConfig,
        life.ScheduleConfig,
        life.TokenizerConfig,
        life.TaskConfig,
    ],
)
def test_every_setting_of_a_life_is_documented(kind):
    text = (ROOT / "docs" / "lifecycle.md").read_text()
    assert [key for key in keys_of(kind) if key not in text] == []


def test_every_verb_and_option_is_documented_and_no_other():
    group = typer.main.get_command(app)
    pages = {
        p.name: p.read_text() for p in (ROOT / "docs").glob("*.md") if p.name not in ("experiments.md", "decisions.md")
    }
    text = "\n".join(pages.values())
    known = {"--install-completion", "--show-completion"}
    for verb, command in group.commands.items():
        assert f"opmix {verb}" in text
        options = {o for p in command.params for o in p.opts if o.startswith("--")}
        known |= options
        assert [o for o in options if o not in text] == [], verb
    lines = [
        (page, line)
        for page, content in pages.items()
        for line in re.findall(r"^(?:\$ )?(opmix [a-z-].*)$", content, re.MULTILINE)
    ]
    assert len(lines) > 20
    for page, line in lines:
        assert line.split()[1] in {*group.commands, *known}, (page, line)
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", line)) <= known, (page, line)


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_first_page_shows_a_result_and_an_example_in_plain_words(page):
    text = (ROOT / page).read_text()
    before = text.split("```")[0]
    (place,) = re.findall(r"!\[.{20,}\]\((\S+)\)", before)
    assert ((ROOT / page).parent / place).is_file()
    assert "evidence.md#regret-per-stage" in before  # where it is from, and where it is not so
    assert [word for word in ("certificate", "premise", "convex", "delta weights") if word in before] == []


def test_the_readme_has_three_ways_in_and_says_what_it_cannot_do():
    parts = dict(part.split("\n", 1) for part in (ROOT / "README.md").read_text().split("\n## ")[1:])
    ways = [line for line in parts["Three ways in"].splitlines() if line.startswith("| ")][1:]
    assert [re.findall(r"`(\w+ \w+)", way)[0] for way in ways] == ["opmix init", "opmix fit", "make demo"]
    assert "targets=" in parts["Ten lines of Python"].split("```")[1]
    assert "evidence.md" in parts["What it cannot do"]


def test_no_command_is_copied_with_its_prompt():
    blocks = [
        (p.name, b)
        for p in (ROOT / "docs").glob("*.md")
        for b in re.findall(r"```\w*\n(.*?)```", p.read_text(), re.DOTALL)
    ]
    assert len(blocks) > 50
    assert [name for name, block in blocks if re.search(r"^[$>] ", block, re.MULTILINE)] == []


def test_every_page_is_on_the_site():
    named = set(re.findall(r"[\w-]+\.md", (ROOT / "mkdocs.yml").read_text()))
    assert named == {page.name for page in (ROOT / "docs").glob("*.md")}


def test_every_setting_of_a_comparison_is_documented():
    text = (ROOT / "docs" / "compare.md").read_text()
    own = set(keys_of(CompareConfig)) - set(keys_of(life.LifeSettings))
    assert own == {"methods", "reference"}
    assert [key for key in (*own, *keys_of(ContenderConfig)) if f"`{key}`" not in text and f".{key}`" not in text] == []
    for file in [
        *(ROOT / "benchmarks").glob("compare_*.yaml"),
        ROOT / "examples/smoke/compare.yaml",
        ROOT / "benchmarks/evidence/age.yaml",
    ]:
        assert len(load_compare(file).methods) >= 4


def test_the_search_dialog_of_the_site_has_a_name():
    theme = importlib.util.find_spec("material")
    if theme is None:
        pytest.skip("the site's theme is in the extra `docs`; `make docs` installs it")
    partial = (Path(theme.origin).parent / "templates" / "partials" / "search.html").read_text()
    hook = runpy.run_path(str(ROOT / ".ci" / "site.py"))["on_post_page"]
    dialogs = re.findall(r'<[^>]*role="dialog"[^>]*>', hook(partial, None, None))
    assert dialogs
    assert all("aria-label" in dialog for dialog in dialogs)
    assert yaml.safe_load((ROOT / "mkdocs.yml").read_text())["hooks"] == [".ci/site.py"]
