"""The live page's server: who may talk to it, what it takes and what it refuses, and how it is started."""

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
from featgan.explore import routes as module
from featgan.explore.access_control import Access, access_for, knows_host
from featgan.explore.page import FILES
from featgan.explore.routes import build_app
from featgan.explore.serve import listen, make_token, page_address
from featgan.explore.session import Session, open_session
from tests.conftest import World
from tests.helpers.explore import TAB, encode, first_picture, obeying, train_run

HOME = "http://127.0.0.1:8765"


@pytest.fixture(scope="module")
def run(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_run(world, tmp_path_factory.mktemp("served") / "run")


@pytest.fixture
def session(world: World, run: Path) -> Iterator[Session]:
    with obeying(world):
        yield open_session([run])


@pytest.fixture
def client(session: Session) -> TestClient:
    return TestClient(build_app(session, Access()), base_url=HOME)


def body(served: Session, **parts: object) -> dict[str, object]:
    return {"session": TAB, "picture": first_picture(served), **parts}


def test_the_page_and_all_that_it_loads_come_from_here(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200 and "Component 6" in page.text
    for name, kind in (("report.css", "text/css"), ("explore.css", "text/css"), ("explore.js", "text/javascript")):
        found = client.get(f"/{name}")
        assert name in page.text and found.status_code == 200 and found.headers["content-type"].startswith(kind)
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
    assert 'style="' not in page.text and "http://" not in page.text and "https://" not in page.text
    assert client.get("/explore.html.j2").status_code == client.get("/../setup.py").status_code == 404


def test_the_pages_style_does_not_meet_the_reports() -> None:
    """Only what they mean to share has the same class in both."""
    report, own = (
        set(re.findall(r"\.([a-z][\w-]*)", re.sub(r"/\*.*?\*/|\{[^}]*\}", "", (FILES[name][0] / name).read_text())))
        for name in ("report.css", "explore.css")
    )
    assert own and report & own <= {"eyebrow", "notice", "remark", "hidden", "skip"}


def test_an_edit_is_answered_and_saved(client: TestClient, session: Session) -> None:
    still = client.post("/edit", json=body(session)).json()
    moved = client.post("/edit", json=body(session, pins={"0": 1.5})).json()
    assert moved["runs"][0]["asked"][0] == 1.5 and moved["runs"][0]["edited"] != still["runs"][0]["edited"]
    for kind in ("png", "gif"):
        saved = client.post(f"/save.{kind}", json=body(session, pins={"0": 1.5}))
        assert saved.headers["content-type"] == f"image/{kind}"
        with Image.open(io.BytesIO(saved.content)) as image:
            image.load()
            assert image.format == kind.upper()


def test_pictures_come_and_are_taken(client: TestClient, session: Session) -> None:
    found = client.get("/pictures").json()
    assert len(found) == 6 and client.get("/pictures?seed=1").json() != found  # of the 6 validation images
    with Image.open(io.BytesIO(client.get(f"/pictures/{found[0]['id']}").content)) as image:
        assert image.format == "PNG" and image.size == (16, 16)
    added = client.post("/pictures?name=<b>.png", content=encode("PNG")).json()
    assert added["name"] == "<b>.png" and client.get(f"/pictures/{added['id']}").status_code == 200
    edited = client.post("/edit", json=body(session, picture=added["id"], pins={"1": 1}))
    assert edited.json()["runs"][0]["asked"][1] == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"no image", "not a JPEG or PNG image\n"), (b"\xff\xd8\xff" + bytes(90), "not a readable"), (b"", "not a JPEG")],
)
def test_an_upload_that_is_no_image_is_one_line(client: TestClient, content: bytes, said: str) -> None:
    refused = client.post("/pictures", content=content)
    assert refused.status_code == 400 and said in refused.text and refused.text.count("\n") == 1
    assert refused.headers["content-type"].startswith("text/plain")


def test_bodies_are_read_as_far_as_they_are_allowed(
    client: TestClient, session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.image_store, "MOST_BYTES", 4096)
    assert client.post("/pictures", content=bytes(5000)).status_code == 413
    sent = []

    def endless() -> Iterator[bytes]:
        for _ in range(100):
            sent.append(1)
            yield bytes(1024)

    assert client.post("/pictures", content=endless()).status_code == 413
    assert client.post("/edit", content=b"{" * 70_000, headers={"content-type": "application/json"}).status_code == 413


def test_uploads_at_once_are_bounded(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_UPLOADS", 0)
    refused = client.post("/pictures", content=encode("PNG"))
    assert refused.status_code == 429 and "on their way already" in refused.text
    monkeypatch.setattr(module, "MOST_UPLOADS", 1)
    # A refused one gives its place back.
    assert [client.post("/pictures", content=b"x").status_code for _ in range(2)] == [400, 400]
    assert client.post("/pictures", content=encode("PNG")).status_code == 200


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ({"pins": {"0": 1e9}}, 400),
        ({"picture": "v999"}, 404),
        ({"picture": "u0123456789abcdef"}, 404),
        ({"second": "v999"}, 404),
        ({"push": {"kind": "class", "index": 70, "amount": 1}}, 400),
        ({"session": "../x"}, 400),
    ],
)
def test_wrong_wishes_are_one_line(client: TestClient, session: Session, sent: dict[str, object], status: int) -> None:
    refused = client.post("/edit", json=body(session, **sent))
    assert refused.status_code == status and refused.text.count("\n") == 1


def test_an_edit_is_asked_for_as_json_only(client: TestClient) -> None:
    assert client.post("/edit", content=b"{}", headers={"content-type": "text/plain"}).status_code == 415
    assert client.get("/edit").status_code == 405
    assert client.get("/pictures?seed=-1").status_code == client.get("/pictures?seed=x").status_code == 400


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "192.168.1.4", "", "["]
)
def test_other_hosts_are_refused(client: TestClient, host: str) -> None:
    refused = client.get("/", headers={"host": host})
    assert refused.status_code == 403 and refused.text.count("\n") == 1


@pytest.mark.parametrize("host", ["localhost:8765", "127.0.0.1:9000", "[::1]:8765"])
def test_this_machine_by_any_name_and_port_is_answered(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 200  # a tunnel may change the port


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:9999", "http://localhost:8765"])
def test_other_origins_are_refused(client: TestClient, session: Session, origin: str) -> None:
    assert client.post("/edit", json=body(session), headers={"origin": origin}).status_code == 403
    assert client.post("/edit", json=body(session), headers={"origin": HOME}).status_code == 200


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
def test_pictures_are_not_shown_on_other_sites(client: TestClient, session: Session, site: str) -> None:
    headers = {"sec-fetch-site": site}
    assert client.get(f"/pictures/{first_picture(session)}", headers=headers).status_code == 403
    assert client.get("/", headers=headers).status_code == 200  # a link to the page
    assert client.get("/").headers["cross-origin-resource-policy"] == "same-origin"


@pytest.mark.parametrize(
    ("address", "wished", "needed"),
    [("127.0.0.1", False, False), ("::1", False, False), ("127.0.0.1", True, True), ("0.0.0.0", False, True),
     ("192.168.1.4", False, True), ("::", False, True)],
)  # fmt: skip
def test_a_token_is_needed_anywhere_but_on_the_loopback(address: str, wished: bool, needed: bool) -> None:
    tokens = {make_token(address, wished) for _ in range(2)}
    assert (None not in tokens and len(tokens) == 2) if needed else tokens == {None}


def test_a_token_opens_the_page_and_goes_on_as_a_cookie(session: Session) -> None:
    app = build_app(session, Access(frozenset({"gpu1"}), True, "s3cret", "featgan-8765"))
    stranger = TestClient(app, base_url="http://gpu1:8765")
    refused = stranger.get("/")
    assert refused.status_code == 401 and "token" in refused.text and refused.text.count("\n") == 1
    assert "set-cookie" not in refused.headers
    assert stranger.get("/?token=s3cre").status_code == stranger.get("/explore.js?token=s3cret").status_code == 401
    page = stranger.get("/?token=s3cret")
    assert page.status_code == 200
    cookie = page.headers["set-cookie"]
    assert cookie.startswith("featgan-8765=s3cret;") and "HttpOnly" in cookie and "SameSite=Strict" in cookie
    assert stranger.get("/explore.js").status_code == stranger.get("/").status_code == 200  # by the cookie
    program = TestClient(app, base_url="http://10.0.0.7:8765", headers={"authorization": "Bearer s3cret"})
    assert program.post("/edit", json=body(session)).status_code == 200
    assert program.get("/", headers={"host": "evil.example"}).status_code == 403


def test_names_of_the_server() -> None:
    local = access_for("127.0.0.1", "127.0.0.1", 8765, None)
    assert knows_host(local, "127.0.0.1:1") and knows_host(local, "LOCALHOST") and not knows_host(local, "10.0.0.7")
    everywhere = access_for("0.0.0.0", "0.0.0.0", 8765, "x")
    assert knows_host(everywhere, "10.0.0.7:8765") and knows_host(everywhere, socket.gethostname())
    assert not knows_host(everywhere, "evil.example")
    assert page_address("127.0.0.1", 8765, None) == HOME + "/"
    assert page_address("0.0.0.0", 1, "x").endswith(":1/?token=x") and page_address("::1", 1, None) == "http://[::1]:1/"


def test_addresses_that_cannot_be_listened_on() -> None:
    with listen("127.0.0.1", 0) as taken:
        taken.listen()
        with pytest.raises(UserError, match="taken by another program; choose another, or 0"):
            listen("127.0.0.1", taken.getsockname()[1])
    with pytest.raises(UserError, match="--host no.such.host.invalid: no such address"):
        listen("no.such.host.invalid", 0)
    with pytest.raises(UserError, match="--host 192.0.2.1: cannot be listened on"):
        listen("192.0.2.1", 0)


def test_without_the_extra_one_line_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setattr(sys, "argv", ["featgan", "explore", "runs/none"])
    with pytest.raises(SystemExit) as stopped:
        main()
    said = "featgan: explore: uvicorn is not installed; pip install 'featgan[explore]'\n"
    assert stopped.value.code == 2 and capsys.readouterr().err == said


@pytest.mark.parametrize(
    ("words", "said"),
    [("none --port 0", "no such run folder"), (". --step soon --port 0", "a number or latest")],
)
def test_mistakes_are_one_line(
    words: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["featgan", "explore", *words.split()])
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr()
    assert stopped.value.code == 2 and shown.out == "" and shown.err.count("\n") == 1 and said in shown.err


def test_the_command_explains_itself() -> None:
    shown = CliRunner().invoke(cli, ["explore", "--help"]).output
    assert "RUN [OTHER]" in shown and "127.0.0.1" in shown and "token" in shown
