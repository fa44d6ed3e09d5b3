"""The sources file: entries, patterns, and what is left aside."""

from __future__ import annotations

from fnmatch import fnmatchcase
from pathlib import Path

import boto3
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segpipe import storage
from segpipe.errors import NotFoundError, RunError
from segpipe.sources.sources_file import (
    Source,
    SourceEntry,
    SourcesFile,
    expand,
    find_sources,
    holder_of,
    read_sources,
)


def written(folder: Path, text: str) -> str:
    file = folder / "sources.toml"
    file.write_text(text)
    return str(file)


def urls(file: SourcesFile) -> list[tuple[str, str]]:
    found, problems = find_sources(file)
    assert problems == []
    return [(source.url, source.output) for source in found]


def put_images(root: str, *keys: str) -> None:
    for key in keys:
        storage.put(storage.join(root, key), b"image")


def test_an_entry_takes_the_defaults_and_its_own_settings_over_them(tmp_path: Path) -> None:
    file = read_sources(
        written(
            tmp_path,
            """
            state = "s3://labels/state"
            queue = "https://sqs.example/1/raw"
            [defaults]
            model = "s3://models/a"
            settings = { shard_images = 16, batch_images = 2 }
            [[source]]
            pattern = "s3://raw-*"
            output = "s3://labels/{name}"
            settings = { batch_images = 4 }
            [[source]]
            pattern = "/data"
            output = "/labels"
            model = "s3://models/b"
            """,
        )
    )
    first, second = file.entries
    assert (file.state, file.queue, file.problems) == ("s3://labels/state", "https://sqs.example/1/raw", ())
    assert (first.model, second.model) == ("s3://models/a", "s3://models/b")
    assert (first.settings.shard_images, first.settings.batch_images) == (16, 4)
    assert (second.settings.shard_images, second.settings.batch_images) == (16, 2)


@pytest.mark.parametrize(
    ("entry", "where", "reason"),
    [
        ('pattern = "a"\noutput = "b"', "a", "model: Field required"),
        (
            'pattern = "s3://x/**"\noutput = "b"\nmodel = "m"',
            r"s3://x/\*\*",
            r"pattern: \*\* matches no folder",
        ),
        ('pattern = "a"\noutput = "b/{date}"\nmodel = "m"', "a", "output: only {name}"),
        ('pattern = "a"\noutput = "b"\nmodel = "m"\nlimit = 3', "a", "limit: Extra inputs"),
        ('pattern = "a"\noutput = "b"\nmodel = "m"\nsettings = {batch = 1}', "a", "settings.batch: Extra"),
        ('output = "b"\nmodel = "m"', "source 1", "pattern: Field required"),
        ('pattern = "a"\noutput = "b"\nmodle = "m"', "a", "modle: Extra inputs"),
        ('pattern = "a"\noutput = "b"\nmodel = "m"\nsettings = "fast"', "a", "settings: Input should be"),
    ],
)
def test_an_entry_at_fault_is_named_and_stops_no_other(
    tmp_path: Path, entry: str, where: str, reason: str
) -> None:
    good = '[[source]]\npattern = "good"\noutput = "b"\nmodel = "m"\n'
    file = read_sources(written(tmp_path, f"[[source]]\n{entry}\n{good}"))
    assert [entry.pattern for entry in file.entries] == ["good"]
    (problem,) = file.problems
    assert reason.replace("\\", "") in problem.message
    assert problem.where == where.replace("\\", "")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("sources = 1", "unknown 'sources'"),
        ("[source]\npattern = 'a'", r"below \[\[source\]\]"),
        ("state = 3", "state is to be a URL"),
        ("state = ", "no TOML file"),
        ("[defaults]\nmodle = 'm'", r"unknown 'modle' in \[defaults\]"),
        ("[defaults]\nsettings = 'fast'", r"settings in \[defaults\] is to be a table"),
    ],
)
def test_a_file_that_is_none_is_refused(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(RunError, match=reason):
        read_sources(written(tmp_path, text))
    with pytest.raises(NotFoundError):
        read_sources(str(tmp_path / "absent.toml"))


def test_wildcards_match_folders_of_one_level(storage_root: str) -> None:
    keys = [
        "raw/a/1.jpg",
        "raw/a/deep/2.jpg",
        "raw/b/3.jpg",
        "raw/loose.jpg",
        "other/c/4.jpg",
        "raw-2/d/5.jpg",
    ]
    put_images(storage_root, *keys)
    assert expand(f"{storage_root}/raw/*/") == [(f"{storage_root}/raw/{name}", name) for name in "ab"]
    assert expand(f"{storage_root}/raw*/[ad]") == [
        (f"{storage_root}/raw-2/d", "raw-2/d"),
        (f"{storage_root}/raw/a", "raw/a"),
    ]
    assert expand(f"{storage_root}/*/a/deep") == [(f"{storage_root}/raw/a/deep", "raw")]
    assert expand(f"{storage_root}/raw") == [(f"{storage_root}/raw", "raw")]
    assert expand(f"{storage_root}/raw/x*") == []


def test_wildcards_match_buckets(s3_server: str) -> None:
    client = boto3.client("s3")
    for name in ("sources-raw-1", "sources-raw-2", "sources-labels"):
        client.create_bucket(Bucket=name)
    assert expand("s3://sources-raw-*") == [
        ("s3://sources-raw-1", "sources-raw-1"),
        ("s3://sources-raw-2", "sources-raw-2"),
    ]


def test_more_folders_than_a_page_holds_are_all_found(s3_bucket: str) -> None:
    put_images(f"s3://{s3_bucket}", *(f"raw/{number:02d}/a.jpg" for number in range(25)))  # moto: 10 a page
    assert len(expand(f"s3://{s3_bucket}/raw/*")) == 25


def entry(pattern: str, output: str) -> SourceEntry:
    return SourceEntry(pattern=pattern, output=output, model="/model")


def test_outputs_the_state_and_empty_folders_are_no_sources(storage_root: str) -> None:
    put_images(storage_root, "a/1.jpg", "labels/a/masks/1.png", "state/found/x.json")
    file = SourcesFile(
        (entry(f"{storage_root}/*", f"{storage_root}/labels/{{name}}"),), (), f"{storage_root}/state", None
    )
    assert urls(file) == [(f"{storage_root}/a", f"{storage_root}/labels/a")]


@pytest.mark.parametrize("inside", ["labels/a", "state", "state/found"])
def test_a_folder_named_outright_that_lies_in_an_output_or_the_state_is_a_problem(
    storage_root: str, inside: str
) -> None:
    put_images(storage_root, "a/1.jpg", "labels/a/masks/1.png", "state/found/x.json")
    entries = (
        entry(f"{storage_root}/a", f"{storage_root}/labels/{{name}}"),
        entry(f"{storage_root}/{inside}", "/elsewhere"),
    )
    found, (problem,) = find_sources(SourcesFile(entries, (), f"{storage_root}/state", None))
    assert [source.url for source in found] == [f"{storage_root}/a"]
    assert problem.where == f"{storage_root}/{inside}"
    assert "lies in an output or in the state" in problem.message


def test_a_folder_named_outright_may_hold_its_output(storage_root: str) -> None:
    file = SourcesFile((entry(storage_root, f"{storage_root}/labels"),), (), None, None)
    assert urls(file) == [(storage_root, f"{storage_root}/labels")]
    holder = holder_of(f"{storage_root}/day/1.jpg", file)
    assert holder is not None
    assert holder.url == storage_root
    assert holder_of(f"{storage_root}/labels/masks/1.png", file) is None


def test_outputs_next_to_their_sources_are_never_labelled_again(storage_root: str) -> None:
    put_images(storage_root, "a/1.jpg", "labels-a/masks/1.png")
    file = SourcesFile((entry(f"{storage_root}/*", f"{storage_root}/labels-{{name}}"),), (), None, None)
    assert urls(file) == [(f"{storage_root}/a", f"{storage_root}/labels-a")]


def test_a_pattern_that_cannot_be_listed_stops_no_other(tmp_path: Path) -> None:
    put_images(str(tmp_path), "raw/a/1.jpg")
    entries = (entry(f"{tmp_path}/absent/*", "/labels"), entry(f"{tmp_path}/raw/*", "/labels/{name}"))
    found, (problem,) = find_sources(SourcesFile(entries, (), None, None))
    assert [source.url for source in found] == [f"{tmp_path}/raw/a"]
    assert problem.where == f"{tmp_path}/absent/*"
    assert "does not exist" in problem.message


def test_a_source_that_two_patterns_match_is_labelled_once(tmp_path: Path) -> None:
    put_images(str(tmp_path), "raw/a/1.jpg")
    twice = (entry(f"{tmp_path}/raw/*", "/labels"), entry(f"{tmp_path}/*/a", "/labels"))
    assert urls(SourcesFile(twice, (), None, None)) == [(f"{tmp_path}/raw/a", "/labels")]


@pytest.mark.parametrize(
    ("uri", "source"),
    [
        ("s3://raw-1/x/y.jpg", "s3://raw-1"),
        ("s3://lake/raw/day/1.jpg", "s3://lake/raw/day"),
        ("s3://lake/raw/1.jpg", None),  # lies in no folder that the pattern matches
        ("s3://lake/labels/raw-1/masks/1.png", None),
        ("s3://raw-state/found/1.json", None),
        ("s3://other/1.jpg", None),
    ],
)
def test_an_object_belongs_to_the_source_that_holds_it(uri: str, source: str | None) -> None:
    entries = (entry("s3://raw-*", "s3://lake/labels/{name}"), entry("s3://lake/raw/*/", "s3://lake/labels"))
    holder = holder_of(uri, SourcesFile(entries, (), "s3://raw-state", None))
    assert (holder.url if holder else None) == source


names = st.text("abc-.1", min_size=1, max_size=6).filter(lambda name: name.strip("."))


@given(
    st.sets(names, min_size=1),
    st.text("abc*?-.1", min_size=1, max_size=4).filter(lambda text: "**" not in text),
)
def test_expansion_is_fnmatch_of_the_folders_names(folders: set[str], part: str) -> None:
    root = "memory://expansion"
    filesystem = __import__("fsspec").filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    put_images(root, *(f"{name}/1.jpg" for name in folders))
    pattern = f"{part}*" if "*" not in part and "?" not in part else part
    expected = sorted(name for name in folders if fnmatchcase(name, pattern))
    assert sorted(name for _, name in expand(f"{root}/{pattern}")) == expected


def test_the_digest_tells_places_apart_and_not_settings() -> None:
    one = Source("s3://a", "s3://b", "/model", entry("a", "b").settings)
    assert one.digest == Source("s3://a", "s3://b", "/other", one.settings).digest
    assert len({one.digest, Source("s3://a", "s3://c", "/model", one.settings).digest}) == 2


def test_the_example_is_a_sources_file() -> None:
    file = read_sources(str(Path(__file__).resolve().parents[2] / "deployments" / "sources.example.toml"))
    assert file.problems == ()
    assert [(entry.pattern, entry.model) for entry in file.entries] == [
        ("s3://raw-*", "s3://models/streets-1"),
        ("s3://lake/nuclei/*/", "s3://models/nuclei-3"),
        ("/data/line-1", "s3://models/streets-1"),
    ]
    assert file.entries[1].settings.confidence_maps
    assert file.entries[1].settings.shard_images == 256


def matched(pattern: str, output: str) -> tuple[list[Source], list[str]]:
    """What a file of one entry finds, and the messages of its problems."""
    entry = SourceEntry(pattern=pattern, output=output, model="s3://models/m")
    found, problems = find_sources(SourcesFile((entry,), (), None, None))
    return found, [problem.message for problem in problems]


@pytest.mark.parametrize(
    "name", ["..", ".", "", "a\x1b[31m", "a\u202eb", "a\u200bb", "a\\b", " a", "a\u2028b"]
)
def test_a_folder_without_a_plain_name_is_no_source_and_said(
    s3_bucket: str, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    client = boto3.client("s3")
    for folder in (name, "good"):
        client.put_object(Bucket=s3_bucket, Key=f"raw/{folder}/x.png", Body=b"image")
    found, problems = matched(f"s3://{s3_bucket}/raw/*", f"s3://{s3_bucket}-labels/out/{{name}}")
    assert [source.output for source in found] == [f"s3://{s3_bucket}-labels/out/good"]
    assert problems == []
    assert "is no plain name of a folder" in caplog.text


@pytest.mark.parametrize("name", ["..", ".", "", "a\x1b", "a\\b"])
def test_an_event_in_a_folder_without_a_plain_name_is_nobodys(name: str) -> None:
    entry = SourceEntry(pattern="s3://bucket/raw/*", output="s3://labels/{name}", model="s3://models/m")
    file = SourcesFile((entry,), (), None, None)
    assert holder_of(f"s3://bucket/raw/{name}/x.png", file) is None
    assert holder_of("s3://bucket/raw/a/x.png", file) is not None


def test_an_output_that_leaves_what_its_template_fixes_is_a_problem() -> None:
    found, [problem] = matched("s3://bucket/..", "s3://labels/out/{name}")
    assert found == []
    assert "output s3://labels/out/.. is no folder below s3://labels/out/" in problem
    found, problems = matched("/raw/a", "/labels/x-{name}")
    assert [source.output for source in found] == ["/labels/x-a"]
    assert problems == []


@pytest.mark.parametrize("output", ["/labels/{name}/../y", "/labels/../{name}", "/labels/{name}/."])
def test_a_template_with_dots_beside_the_name_is_refused(output: str) -> None:
    with pytest.raises(ValueError, match="may not stand beside"):
        SourceEntry(pattern="/raw/*", output=output, model="/m")


def test_two_sources_whose_outputs_a_disk_may_take_for_one_are_not_both_labelled(
    s3_bucket: str, tmp_path: Path
) -> None:
    client = boto3.client("s3")
    for folder in ("Street", "street", "cafe\u0301", "caf\u00e9"):
        client.put_object(Bucket=s3_bucket, Key=f"raw/{folder}/x.png", Body=b"image")
    found, problems = matched(f"s3://{s3_bucket}/raw/*", f"{tmp_path}/{{name}}")
    assert [source.output for source in found] == [f"{tmp_path}/Street", f"{tmp_path}/cafe\u0301"]
    assert all("may be that of" in problem for problem in problems)
    assert len(problems) == 2
    found, problems = matched(f"s3://{s3_bucket}/raw/*", "s3://labels/{name}")
    assert len(found) == 4
    assert problems == []


@pytest.mark.parametrize("field", ["pattern", "output", "model"])
def test_a_mistyped_url_in_an_entry_says_what_was_meant(tmp_path: Path, field: str) -> None:
    values = {"pattern": "/raw", "output": "/labels", "model": "/model"} | {field: "s3:/bucket/x"}
    lines = "\n".join(f'{name} = "{value}"' for name, value in values.items())
    file = read_sources(written(tmp_path, f"[[source]]\n{lines}"))
    assert "did you mean s3://bucket/x" in file.problems[0].message
