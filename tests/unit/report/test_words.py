"""The method's words are explained where they are used, one click away."""

import shutil

import pytest
from comparison_sample import write_comparison
from html_page import Page

from opmix.report import write_report


@pytest.mark.parametrize("kind", ["search", "compare"])
def test_every_page_explains_its_words_behind_a_click(folders, tmp_path, kind):
    folder = tmp_path / kind
    write_comparison(folder) if kind == "compare" else shutil.copytree(folders["continual"], folder)
    content = write_report(folder).read_text()
    Page(content)  # well formed
    closed, _, inside = content.partition("<details><summary>Words on this page</summary>")
    assert inside
    assert "</footer>" in inside  # the last thing of the page
    for word in ("nats per token", "probe", "proxy", "law", "90 % interval", "stage", "forgetting"):
        assert f"<dt>{word}</dt>" in inside
        assert f"<dt>{word}</dt>" not in closed
    assert inside.count("<dt>") == inside.count("<dd>")
