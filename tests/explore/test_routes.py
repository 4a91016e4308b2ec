"""Tests of the server of the interactive page: access control, routes, bounds of requests, and start-up."""

import errno
import io
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from starlette.testclient import TestClient

from featgan.cli.main import cli, main
from featgan.errors import UserError
from featgan.explore import routes
from featgan.explore.access_control import AccessPolicy, build_access_policy, is_allowed_host
from featgan.explore.page import STATIC_FILES
from featgan.explore.routes import build_app
from featgan.explore.serve import make_token, open_listener, page_url
from featgan.explore.session import ExploreSession, load_session
from tests.conftest import World
from tests.helpers.explore import CLIENT_ID, encode_image, first_image_id, perfect_generator, train_run

HOME_URL = "http://127.0.0.1:8765"


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(world, tmp_path_factory.mktemp("routes") / "run")


@pytest.fixture
def session(world: World, run: Path) -> Iterator[ExploreSession]:
    with perfect_generator(world):
        yield load_session([run])


@pytest.fixture
def client(session: ExploreSession) -> TestClient:
    return TestClient(build_app(session, AccessPolicy()), base_url=HOME_URL)


def request_json(session: ExploreSession, **fields: object) -> dict[str, object]:
    """Return the JSON of an edit request, by default for the first validation image."""
    return {"client_id": CLIENT_ID, "image": first_image_id(session), **fields}


def test_page_loads_files_from_this_server_only(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200 and "Component 6" in page.text
    for name, (_, kind) in STATIC_FILES.items():
        response = client.get(f"/{name}")
        assert response.status_code == 200 and response.headers["content-type"].startswith(kind)
    assert all(name in page.text for name in ("report.css", "explore.css", "explore.js"))
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert 'style="' not in page.text and "http://" not in page.text and "https://" not in page.text
    assert client.get("/explore.html.j2").status_code == client.get("/../setup.py").status_code == 404


def test_style_sheets_share_only_the_intended_classes() -> None:
    report_classes, explore_classes = (
        set(
            re.findall(
                r"\.([a-z][\w-]*)", re.sub(r"/\*.*?\*/|\{[^}]*\}", "", (STATIC_FILES[name][0] / name).read_text())
            )
        )
        for name in ("report.css", "explore.css")
    )
    assert explore_classes and report_classes & explore_classes <= {"eyebrow", "notice", "caption", "hidden", "skip"}


def test_edit_is_returned_and_saved(client: TestClient, session: ExploreSession) -> None:
    unedited = client.post("/edit", json=request_json(session)).json()["runs"][0]
    edited = client.post("/edit", json=request_json(session, component_values={"0": 1.5})).json()["runs"][0]
    assert edited["target_values"][0] == 1.5 and edited["edited"] != unedited["edited"]
    for kind in ("png", "gif"):
        saved = client.post(f"/save.{kind}", json=request_json(session, component_values={"0": 1.5}))
        assert saved.headers["content-type"] == f"image/{kind}"
        with Image.open(io.BytesIO(saved.content)) as image:
            image.load()
            assert image.format == kind.upper()


def test_images_are_served_and_uploaded(client: TestClient, session: ExploreSession) -> None:
    images = client.get("/images").json()
    assert len(images) == 6 and client.get("/images?seed=1").json() != images  # all 6 validation images
    with Image.open(io.BytesIO(client.get(f"/images/{images[0]['id']}").content)) as image:
        assert image.format == "PNG" and image.size == (16, 16)
    added = client.post("/images?name=<b>.png", content=encode_image("PNG")).json()
    assert added["name"] == "<b>.png" and client.get(f"/images/{added['id']}").status_code == 200
    edited = client.post("/edit", json=request_json(session, image=added["id"], component_values={"1": 1}))
    assert edited.json()["runs"][0]["target_values"][1] == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"no image", "not an image; use JPEG"), (b"\xff\xd8\xff" + bytes(90), "not an image"), (b"", "empty file")],
)
def test_upload_that_is_not_an_image_is_rejected_in_one_line(client: TestClient, content: bytes, message: str) -> None:
    response = client.post("/images", content=content)
    assert response.status_code == 400 and message in response.text and response.text.count("\n") == 1
    assert response.headers["content-type"].startswith("text/plain")


def test_bodies_are_read_up_to_the_size_limit(
    client: TestClient, session: ExploreSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(routes, "MAX_UPLOAD_BYTES", 4096)
    assert client.post("/images", content=bytes(5000)).status_code == 413

    def chunks() -> Iterator[bytes]:
        for _ in range(100):
            yield bytes(1024)

    assert client.post("/images", content=chunks()).status_code == 413  # without a Content-Length header
    assert client.post("/edit", content=b"{" * 70_000, headers={"content-type": "application/json"}).status_code == 413


def test_number_of_concurrent_uploads_is_limited(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "MAX_CONCURRENT_UPLOADS", 0)
    response = client.post("/images", content=encode_image("PNG"))
    assert response.status_code == 429 and "uploads are in progress" in response.text
    monkeypatch.setattr(routes, "MAX_CONCURRENT_UPLOADS", 1)
    # A rejected upload no longer counts.
    assert [client.post("/images", content=b"x").status_code for _ in range(2)] == [400, 400]
    assert client.post("/images", content=encode_image("PNG")).status_code == 200


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({"component_values": {"0": 1e9}}, 400),
        ({"image": "v999"}, 404),
        ({"image": "u0123456789abcdef"}, 404),
        ({"target_image": "v999"}, 404),
        ({"class_step": {"kind": "class", "index": 70, "amount": 1}}, 400),
        ({"client_id": "../x"}, 400),
    ],
)
def test_invalid_requests_are_rejected_in_one_line(
    client: TestClient, session: ExploreSession, fields: dict[str, object], status: int
) -> None:
    response = client.post("/edit", json=request_json(session, **fields))
    assert response.status_code == status and response.text.count("\n") == 1


def test_edit_request_must_be_json(client: TestClient) -> None:
    assert client.post("/edit", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert client.get("/edit").status_code == 405
    assert client.get("/images?seed=-1").status_code == client.get("/images?seed=x").status_code == 400


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "192.168.1.4", "", "["]
)
def test_other_host_names_are_rejected(client: TestClient, host: str) -> None:
    response = client.get("/", headers={"host": host})
    assert response.status_code == 403 and response.text.count("\n") == 1


@pytest.mark.parametrize("host", ["localhost:8765", "127.0.0.1:9000", "[::1]:8765"])
def test_loopback_names_are_allowed_with_any_port(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 200  # a tunnel may change the port


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:8765"])
def test_other_origins_are_rejected(client: TestClient, session: ExploreSession, origin: str) -> None:
    assert client.post("/edit", json=request_json(session), headers={"origin": origin}).status_code == 403
    assert client.post("/edit", json=request_json(session), headers={"origin": HOME_URL}).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_images_cannot_be_embedded_in_other_sites(client: TestClient, session: ExploreSession, site: str) -> None:
    headers = {"sec-fetch-site": site}
    assert client.get(f"/images/{first_image_id(session)}", headers=headers).status_code == 403
    assert client.get("/", headers=headers).status_code == 200  # a link to the page
    assert client.get("/").headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize(
    ("address", "require_token", "is_required"),
    [("127.0.0.1", False, False), ("::1", False, False), ("127.0.0.1", True, True), ("0.0.0.0", False, True),
     ("192.168.1.4", False, True), ("::", False, True)],
)  # fmt: skip
def test_token_is_required_except_on_loopback_addresses(address: str, require_token: bool, is_required: bool) -> None:
    tokens = {make_token(address, require_token) for _ in range(2)}
    assert (None not in tokens and len(tokens) == 2) if is_required else tokens == {None}


def test_token_in_the_address_opens_the_page_and_sets_a_cookie(session: ExploreSession) -> None:
    app = build_app(session, AccessPolicy(frozenset({"gpu1"}), True, "s3cret", "featgan-8765"))
    browser = TestClient(app, base_url="http://gpu1:8765")
    response = browser.get("/")
    assert response.status_code == 401 and "token" in response.text and response.text.count("\n") == 1
    assert "set-cookie" not in response.headers
    assert browser.get("/?token=s3cre").status_code == browser.get("/explore.js?token=s3cret").status_code == 401
    page = browser.get("/?token=s3cret")
    assert page.status_code == 200
    cookie = page.headers["set-cookie"]
    assert cookie.startswith("featgan-8765=s3cret;") and "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert browser.get("/explore.js").status_code == browser.get("/").status_code == 200  # with the cookie
    program = TestClient(app, base_url="http://10.0.0.7:8765", headers={"authorization": "Bearer s3cret"})
    assert program.post("/edit", json=request_json(session)).status_code == 200
    assert program.get("/", headers={"host": "evil.example"}).status_code == 403


def test_policy_allows_the_host_names_of_the_address() -> None:
    local = build_access_policy("127.0.0.1", "127.0.0.1", 8765, None)
    assert (
        is_allowed_host(local, "127.0.0.1:1")
        and is_allowed_host(local, "LOCALHOST")
        and not is_allowed_host(local, "10.0.0.7")
    )
    everywhere = build_access_policy("0.0.0.0", "0.0.0.0", 8765, "x")
    assert is_allowed_host(everywhere, "10.0.0.7:8765") and is_allowed_host(everywhere, socket.gethostname())
    assert not is_allowed_host(everywhere, "evil.example")
    assert page_url("127.0.0.1", 8765, None) == HOME_URL + "/"
    assert page_url("0.0.0.0", 1, "x").endswith(":1/?token=x") and page_url("::1", 1, None) == "http://[::1]:1/"


def test_addresses_that_are_not_available_are_rejected() -> None:
    with open_listener("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(UserError, match="in use by another program; choose another port, or 0"):
            open_listener("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="--host no.such.host.invalid: no such address"):
        open_listener("no.such.host.invalid", 0)
    with pytest.raises(UserError, match="--host 192.0.2.1: cannot listen on it"):
        open_listener("192.0.2.1", 0)


def test_missing_extra_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setattr(sys, "argv", ["featgan", "explore", "runs/none"])
    with pytest.raises(SystemExit) as error:
        main()
    message = "featgan: explore: uvicorn is not installed; run `pip install 'featgan[explore]'`\n"
    assert error.value.code == 2 and capsys.readouterr().err == message


@pytest.mark.parametrize(
    ("arguments", "message"),
    [("none --port 0", "no such run folder"), (". --step soon --port 0", "a number or latest")],
)
def test_usage_errors_are_reported_in_one_line(
    arguments: str, message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["featgan", "explore", *arguments.split()])
    with pytest.raises(SystemExit) as error:
        main()
    output = capsys.readouterr()
    assert error.value.code == 2 and output.out == "" and output.err.count("\n") == 1 and message in output.err


def test_help_names_arguments_and_options() -> None:
    output = CliRunner().invoke(cli, ["explore", "--help"]).output
    assert "RUN [SECOND_RUN]" in output and "127.0.0.1" in output and "token" in output


def test_files_that_can_no_longer_be_read_are_one_line(
    client: TestClient, session: ExploreSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "shards/train-00000.tar")

    monkeypatch.setattr(session.image_store, "sample", fail)
    response = client.get("/images")
    assert response.status_code == 500
    assert response.text == "shards/train-00000.tar: input/output error; run the command again\n"
