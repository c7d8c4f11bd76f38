import csv
import gzip
import json
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from opmix.cli.app import app
from opmix.config import parse_config
from opmix.data.sources import iter_documents
from opmix.discovery import DiscoverySettings, discover, features
from opmix.discovery.clusters import Clusters, cluster_names
from opmix.domain import Source
from opmix.errors import ConfigError, DataError, ModelError
from opmix.testing import toy_documents

runner = CliRunner()
NAMES = ("alpha", "beta", "gamma")


@pytest.fixture(scope="module", autouse=True)
def sklearn():
    """Read when the first test runs: it takes a second, and every worker reads every test file."""
    return pytest.importorskip("sklearn", reason="the extra `discover` is not installed")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Three toy domains shuffled into two files, and which document is whose."""
    folder = tmp_path_factory.mktemp("corpus")
    pairs = [(text, name) for name in NAMES for text in toy_documents(name, 80)]
    order = np.random.default_rng(0).permutation(len(pairs))
    pairs = [pairs[i] for i in order]
    for number, part in enumerate((pairs[:100], pairs[100:])):
        with gzip.open(folder / f"{number}.jsonl.gz", "wt", encoding="utf-8") as stream:
            stream.writelines(json.dumps({"id": 1, "body": text}) + "\n" for text, _ in part)
    return folder, dict(pairs)


def content(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix == ".gz"}


def test_domains_are_found_named_and_written(corpus, tmp_path):
    folder, truth = corpus
    result = discover([str(folder)], tmp_path / "out")
    assert len(result.domains) == 3
    assert max(result.scores, key=result.scores.__getitem__) == 3
    fragment = yaml.safe_load((tmp_path / "out" / "domains.yaml").read_text())
    config = parse_config({"model": "m", "budget": {"tokens": 1}, **fragment})
    read = []
    for name, domain in config.domains.items():
        texts = list(iter_documents(domain.located(tmp_path).train))
        read += texts
        assert len({truth[text] for text in texts}) == 1  # pure
        assert all(sum(term in text for text in texts) > 10 for term in name.split("-"))
    assert Counter(read) == Counter(list(truth))  # nothing lost, nothing doubled
    record = json.loads((tmp_path / "out" / "discovery.json").read_text())
    assert sum(d["documents"] for d in record["domains"]) == 240


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_whatever_the_batches(corpus, tmp_path, monkeypatch):
    folder, _ = corpus
    paths = [str(folder / "*.gz")]
    discover(paths, tmp_path / "a", DiscoverySettings(domains=4, seed=3))
    monkeypatch.setattr("opmix.discovery.division.BATCH", 7)
    discover(paths, tmp_path / "b", DiscoverySettings(domains=4, seed=3))
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_clusters_are_fitted_on_a_sample_of_a_larger_corpus(corpus, tmp_path):
    folder, truth = corpus
    result = discover([str(folder)], tmp_path / "out", DiscoverySettings(domains=3, sample=60))
    assert sum(d.documents for d in result.domains) == len(truth)


def test_an_index_instead_of_copies(corpus, tmp_path):
    folder, truth = corpus
    out = tmp_path / "out"
    discover([str(folder)], out, DiscoverySettings(domains=3, index_only=True))
    assert {p.name for p in out.iterdir()} == {"assignments.csv.gz", "discovery.json"}
    with gzip.open(out / "assignments.csv.gz", "rt", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(truth)
    texts = {f: list(iter_documents(Source(paths=(f,), field="body"))) for f in {row["file"] for row in rows}}
    found = {(truth[texts[row["file"]][int(row["document"])]], row["domain"]) for row in rows}
    assert len(found) == 3
    assert all(-1 <= float(row["similarity"]) <= 1 for row in rows)


@pytest.mark.slow
def test_a_small_model_can_look_instead(corpus, tmp_path):
    from opmix.testing import tiny_model, tiny_tokenizer

    folder, _ = corpus
    tokenizer = tiny_tokenizer()
    tiny_model(vocab_size=len(tokenizer)).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    result = discover([str(folder)], tmp_path / "out", DiscoverySettings(domains=3, embed=str(tmp_path / "model")))
    assert 1 <= len(result.domains) <= 3
    with pytest.raises(ModelError, match="does not exist"):
        discover([str(folder)], tmp_path / "out2", DiscoverySettings(embed=str(tmp_path / "none")))


@pytest.mark.slow
def test_one_kind_of_text_is_said_to_be_one(tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in toy_documents("alpha", 150)))
    result = discover([str(tmp_path / "a.jsonl")], tmp_path / "out")
    assert any("may be one domain" in note for note in result.notes)


def test_bad_input_is_refused_before_anything_is_written(corpus, tmp_path):
    folder, _ = corpus
    out = tmp_path / "out"
    (tmp_path / "few.jsonl").write_text('{"text": "a b"}\n' * 3)
    (tmp_path / "none.jsonl").write_text('{"n": 3}\n' * 30)
    (tmp_path / "same.jsonl").write_text('{"text": "one word"}\n' * 30)
    (tmp_path / "cut.jsonl.gz").write_bytes((folder / "0.jsonl.gz").read_bytes()[:-30])
    np.save(tmp_path / "ids.npy", np.arange(9))
    for name, words in {
        "few.jsonl": "3 documents",
        "none.jsonl": "no key holds text",
        "same.jsonl": "no word in common",
        "cut.jsonl.gz": "cannot be read",
        "ids.npy": "token ids",
        "gone.jsonl": "no such file",
        "*.zzz": "matches no file",
    }.items():
        with pytest.raises(DataError, match=words):
            discover([str(tmp_path / name)], out)
    assert not out.exists() or not list(out.iterdir())
    with pytest.raises(DataError, match="fewer --domains"):
        discover([str(folder)], out, DiscoverySettings(domains=200))
    with pytest.raises(ConfigError, match="3 problems"):
        DiscoverySettings(domains=1, most=1, sample=2)


def test_a_folder_in_use_is_left_alone(corpus, tmp_path):
    folder, _ = corpus
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(ConfigError, match="holds thesis" if force else "--force"):
            discover([str(folder)], out, force=force)
    assert (out / "thesis.txt").read_text() == "mine"
    (out / "thesis.txt").unlink()
    discover([str(folder)], out, DiscoverySettings(domains=4))
    before = {p.name for p in out.iterdir()}
    discover([str(folder)], out, DiscoverySettings(domains=3), force=True)
    assert len(before) == 6
    assert len(list(out.iterdir())) == 5


def test_a_damaged_file_leaves_no_half_domains(corpus, tmp_path):
    folder, _ = corpus
    whole = gzip.decompress((folder / "0.jsonl.gz").read_bytes())
    path = tmp_path / "a.jsonl"
    path.write_bytes(whole * 3)
    out = tmp_path / "out"

    class Breaking:
        def task(self, name, total):
            if name.startswith("dividing"):
                path.write_bytes(whole * 3 + b"not json")
            from opmix.progress import Silent

            return Silent().task(name, total)

        def note(self, text):
            pass

    with pytest.raises(DataError, match="not JSON"):
        discover([str(path)], out, DiscoverySettings(domains=2), progress=Breaking())
    assert list(out.iterdir()) == []


def test_names_are_distinct_and_assignment_is_nearest():
    assert cluster_names([("a1", "b1"), ("a1", "b1"), ("ünder", "x y", "z/")]) == ["a1-b1", "a1-b1-2", "under-x_y-z"]
    clusters = Clusters(np.eye(2), np.zeros(0, np.int64), 0.0)
    labels, similarity = clusters.assign(np.array([[0.6, 0.8], [0.0, 0.0]]))
    assert labels.tolist() == [1, 0]
    assert similarity == pytest.approx([0.8, 0.0])


@pytest.mark.slow
def test_the_command(corpus, tmp_path):
    folder, _ = corpus
    said = runner.invoke(app, ["discover", str(folder), "--out", str(tmp_path / "a"), "--domains", "3"])
    assert said.exit_code == 0, said.output
    assert "3 domains" in said.output
    found = runner.invoke(app, ["discover", str(folder), "--out", str(tmp_path / "b"), "--most", "5", "--json"])
    assert set(json.loads(found.stdout)["scores"]) == {"2", "3", "4", "5"}
    assert runner.invoke(app, ["init", str(tmp_path / "a"), "--out", str(tmp_path / "s.yaml")]).exit_code == 0
    assert isinstance(runner.invoke(app, ["discover", str(folder), "--domains", "many"]).exception, ConfigError)


def test_without_scikit_learn_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ConfigError, match="pip install scikit-learn"):
        features.require_sklearn()


def test_words_need_no_torch_beyond_reading(corpus):
    code = "import opmix.cli.discover, sys; assert not {'torch', 'sklearn', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
