from pathlib import Path

import pytest

from opmix.domain import Domain, Source
from opmix.errors import DataError
from opmix.scaffold.layout import domain_names, find_domains, flat_name


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "a"}\n')


def shape(root: Path) -> dict[str, dict[str, list[str]]]:
    return {
        f.label: {s: [p.relative_to(root).as_posix() for p in paths] for s, paths in f.files.items()}
        for f in find_domains(root)
    }


def test_sub_folders_are_domains_and_names_tell_splits(tmp_path):
    touch(
        tmp_path,
        "web/train-00000-of-00002.jsonl",
        "web/train-00001-of-00002.jsonl",
        "web/validation.jsonl",
        "web/notes.txt",
    )
    touch(
        tmp_path,
        "code/a.py",
        "code/deep/b.py",
        "code/README.md",
        "code/.git/x.txt",
        "books/train/x.txt",
        "books/test/y.txt",
    )
    touch(tmp_path, "empty/x.dat", "README.md")
    assert shape(tmp_path) == {
        "books": {"test": ["books/test/y.txt"], "train": ["books/train/x.txt"]},
        "code": {"train": ["code/a.py", "code/deep/b.py"]},
        "web": {
            "train": ["web/train-00000-of-00002.jsonl", "web/train-00001-of-00002.jsonl"],
            "valid": ["web/validation.jsonl"],
        },
    }


def test_files_side_by_side_are_domains(tmp_path):
    touch(
        tmp_path,
        "web_train.jsonl",
        "web_valid.jsonl",
        "code-000.jsonl",
        "code-001.jsonl",
        "news.2024.jsonl",
        "latest.txt",
    )
    assert shape(tmp_path) == {
        "code": {"train": ["code-000.jsonl", "code-001.jsonl"]},
        "latest": {"train": ["latest.txt"]},
        "news.2024": {"train": ["news.2024.jsonl"]},
        "web": {"train": ["web_train.jsonl"], "valid": ["web_valid.jsonl"]},
    }


def test_splits_on_top_are_matched_by_name(tmp_path):
    touch(
        tmp_path, "train/web.jsonl", "valid/web.jsonl", "train/code/1.jsonl", "train/code/2.jsonl", "valid/code/1.jsonl"
    )
    assert shape(tmp_path) == {
        "code": {"train": ["train/code/1.jsonl", "train/code/2.jsonl"], "valid": ["valid/code/1.jsonl"]},
        "web": {"train": ["train/web.jsonl"], "valid": ["valid/web.jsonl"]},
    }


def test_a_folder_of_one_folder_is_looked_through(tmp_path):
    touch(tmp_path, "download/v1/web/a.jsonl", "download/v1/code/b.jsonl")
    assert list(shape(tmp_path)) == ["code", "web"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("train.jsonl.gz", ("", "train")),
        ("web.train.jsonl.zst", ("web", "train")),
        ("dev-web.txt", ("web", "valid")),
        ("web_part-3.parquet", ("web", None)),
        ("trainers.jsonl", ("trainers", None)),
        ("my.test.set.txt", ("my.test.set", None)),
        ("contest.jsonl", ("contest", None)),
    ],
)
def test_flat_names(name, expected):
    assert flat_name(Path(name)) == expected


def test_every_label_becomes_a_valid_distinct_name():
    labels = [
        "web",
        "Web",
        "a b",
        "a_b",
        "a/b",
        ".hidden",
        "-x-",
        "日本語",
        "",
        "ünï",
        "x" * 200,
        "null",
        "con:fig #1",
        "new\nline",
    ]
    names = domain_names(labels)
    assert len({name.lower() for name in names.values()}) == len(labels)
    for name in names.values():
        Domain(name=name, train=Source(paths=("x",)))


def test_nothing_there_is_said(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        find_domains(tmp_path / "none")
    with pytest.raises(DataError, match="holds no data"):
        find_domains(tmp_path)
    touch(tmp_path, "pictures/a.png", "README.md")
    with pytest.raises(DataError, match="holds no data"):
        find_domains(tmp_path)
