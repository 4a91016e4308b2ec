"""Tests of paths and URLs: what is accepted, how locations are joined, and that no message contains a password."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featgan.config.loading import load_config, parse_config, to_yaml
from featgan.config.schema import Config
from featgan.data.shards.shard_set import ShardSet
from featgan.errors import UserError
from featgan.system.locations import ALLOWED_SCHEMES, Location
from featgan.system.yaml_files import parse_yaml

SECRET_URLS = {
    "https://user:secret@host/data/a.tar?sig=secret#secret": "https://host/data/a.tar",
    "http://secret@host:80/a%20b.tar?secret": "http://host:80/a%20b.tar",
    "s3://secret@bucket/key@1/a.tar?versionId=secret": "s3://bucket/key@1/a.tar",
    "https://[::1]/a.tar?secret/secret": "https://[::1]/a.tar",
}

REFUSED = (
    "pipe:cat secret",
    "PIPE:true",
    "ftp://host/a.tar",
    "zip://a.tar",
    "reference://a",
    "github://a/b",
    "local://a",
    "memory://a",
    "sftp://host/a",
    "javascript://x",
    "simplecache::s3://bucket/a",
    "zip://x::https://host/x.zip",
    "https://host/a::b",
    "http:host/a",
    "s3:bucket/a",
    "https://",
    "https:///a",
    "s3://",
    "https://a b/c",
    "https://host/a\nb",
    "https://host/\x1b[2J",
    "https://user:pa/ss@host/a",
    "https://user:pa?ss@host/a",
    "https://host\\@other/a",
    "https://host:port/a",
    "file://other/a",
    "file:a",
    "https://host/" + "a" * 5000,
)


@pytest.mark.parametrize("text", REFUSED)
def test_other_urls_are_refused_in_one_line(text: str) -> None:
    with pytest.raises(UserError) as error:
        Location.parse(text)
    message = str(error.value)
    assert "\n" not in message and "\x1b" not in message and len(message) < 600
    assert not {"pa/ss", "pa?ss", ":pa", "ss@"} & set(message.split()) and "pa/ss" not in message


def test_message_lists_the_allowed_schemes() -> None:
    for text in ("ftp://host/a", "pipe:cat a", "gopher://a"):
        with pytest.raises(UserError, match="s3://, gs:// or hf://"):
            Location.parse(text)
    assert all(scheme in ALLOWED_SCHEMES for scheme in ("file", "http", "https", "s3", "gs", "hf"))


@pytest.mark.parametrize(("text", "shown"), SECRET_URLS.items())
def test_secrets_are_not_shown(text: str, shown: str) -> None:
    location = Location.parse(text)
    assert str(location) == location.redacted == shown and "secret" not in repr(location)
    assert location.has_secret and location.raw.startswith(text.partition("#")[0])
    assert "secret" not in str(location.join("b.tar")) and "secret" in location.join("b.tar").raw
    assert "secret" not in str(location.parent)


@given(st.text(max_size=40))
def test_any_text_is_a_path_or_refused(text: str) -> None:
    for candidate in (text, f"https://{text}", f"https://user:{text}@host/a", f"s3://bucket/{text}"):
        try:
            location = Location.parse(candidate)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        assert location.is_remote or str(location.path) == str(Path(candidate))
        assert location.raw == candidate.partition("#")[0] or location.scheme in ("path", "s3")


def test_parts_of_locations() -> None:
    location = Location.parse("HTTPS://host:8000/sets/train-000%20.tar")
    assert (location.scheme, location.is_remote, location.name) == ("https", True, "train-000 .tar")
    assert location.authority == "host:8000" and str(location.parent) == "https://host:8000/sets"
    assert str(Location.parse("https://host").parent) == "https://host"
    assert str(Location.parse("https://host/a").parent) == "https://host"
    assert Location.parse("gcs://bucket/a") == Location.parse("gs://bucket/a")
    assert Location.parse("hf://datasets/o/n/a/b.tar").authority == "datasets/o/n"
    local = Location.parse("file:///data/a%20b.tar")
    assert (local.path, local.name, local.is_remote) == (Path("/data/a b.tar"), "a b.tar", False)
    assert Location.parse("a::b").path == Path("a::b"), "a path without a scheme may contain every character"
    with pytest.raises(UserError, match="https://host/a: is a URL"):
        _ = Location.parse("https://host/a").path


@pytest.mark.parametrize(
    ("folder", "relative", "expected"),
    [
        ("/data", "a.tar", "/data/a.tar"),
        ("data", "/other/a.tar", "/other/a.tar"),
        ("https://host/data/", "x/a.tar", "https://host/data/x/a.tar"),
        ("https://host", "a.tar", "https://host/a.tar"),
        ("https://host/data", "./b/../a?b#c%.tar", "https://host/data/a%3Fb%23c%25.tar"),
        ("https://host/data/x", "../a.tar", "https://host/data/a.tar"),
        ("s3://bucket/x", "a?b.tar", "s3://bucket/x/a?b.tar"),
        ("hf://datasets/o/n", "a.tar", "hf://datasets/o/n/a.tar"),
    ],
)
def test_join(folder: str, relative: str, expected: str) -> None:
    assert Location.parse(folder).join(relative).raw == expected


@pytest.mark.parametrize("folder", ["https://host/data", "s3://bucket/data", "hf://datasets/o/n/data"])
@pytest.mark.parametrize("relative", ["../../a", "x/../../../a", "a\nb"])
def test_join_stays_on_the_server(folder: str, relative: str) -> None:
    with pytest.raises(UserError, match="contains no file"):
        Location.parse(folder).join(relative)


def test_files_behind_a_url_name_files_of_the_same_server_only() -> None:
    folder = Location.parse("https://user:pw@host/sets")
    assert folder.resolve("a.tar").raw == "https://user:pw@host/sets/a.tar"
    assert folder.resolve("https://host/other/a.tar").raw == "https://user:pw@host/other/a.tar"
    for reference in ("/etc/passwd", "file:///etc/passwd", "http://host/a", "https://host:1/a", "s3://host/a"):
        with pytest.raises(UserError, match="only files of the same server"):
            folder.resolve(reference)
    for reference in ("pipe:id", "http://[bad", "ftp://host/a"):
        with pytest.raises(UserError, match=r"^https://host/sets: names "):
            folder.resolve(reference)
    local = Location.parse("/data")
    assert local.resolve("/other/a.tar").raw == "/other/a.tar" and local.resolve("a.tar").raw == "/data/a.tar"
    assert local.resolve("https://host/a.tar").is_remote


@pytest.mark.parametrize("url", ["https://host/sets/a", "s3://bucket/a", "gs://bucket/a", "hf://datasets/o/n"])
def test_url_of_shards_survives_yaml_and_the_command_line(url: str) -> None:
    for text in (url, f"{url}/", f"{url}/manifest.json"):
        config = load_config("debug", [f"dataset.shards={text}"])
        assert config.dataset.shards.raw == url
        assert parse_config(parse_yaml(to_yaml(config)), "test") == config


def test_local_shards_are_paths_as_before() -> None:
    assert Config().dataset.shards.path == Path("shards") and "shards: shards\n" in to_yaml(Config())
    assert load_config("debug", ["dataset.shards=a//b/"]).dataset.shards.raw == "a/b"
    assert load_config("debug", ["dataset.shards=file:///a/b"]).dataset.shards.raw == "/a/b"


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("ftp://host/a", "dataset.shards: ftp://host/a: unknown scheme 'ftp'"),
        ("https://user:secret@host/a", "https://host/a: contains a password or a query"),
        ("https://host/a?sig=secret", "https://host/a: contains a password or a query"),
        ("5", "dataset.shards: not a path or URL"),
    ],
)
def test_wrong_shards_are_one_line(value: str, problem: str) -> None:
    with pytest.raises(UserError) as error:
        load_config("debug", [f"dataset.shards={value}"])
    assert problem in str(error.value) and "\n" not in str(error.value)


def test_local_shard_set_is_opened_by_its_location(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=str(tmp_path)):
        ShardSet.open(Location.from_path(tmp_path))
