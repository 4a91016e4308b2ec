"""The routes of the page: what is asked over HTTP, bounded, and handed to the session."""

import asyncio
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from featgan.errors import UserError
from featgan.explore import edit_request, image_store
from featgan.explore.access_control import Access, Guard
from featgan.explore.edit_request import Ask, parse_ask
from featgan.explore.export import save_gif, save_png
from featgan.explore.image_store import GoneError
from featgan.explore.latest_request_queue import BusyError, Desk, SupersededError
from featgan.explore.page import NUM_PICTURES, build_page, list_pictures, load_files
from featgan.explore.session import Session, encode_png

SECONDS_TO_SEND = 30
"""A request's body must have arrived by then."""
MOST_UPLOADS = 2
"""Pictures on their way in at once."""
MOST_SEED = 1 << 31


class BoundError(Exception):
    """A request that breaks a bound: the status and one line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


async def read_body(request: Request, most_bytes: int) -> bytes:
    """The body, read only as far as it is allowed to go."""
    length = request.headers.get("content-length", "0")
    if not length.isdecimal() or int(length) > most_bytes:
        raise BoundError(413, f"larger than {most_bytes >> 10} KiB")
    body = bytearray()
    try:
        async with asyncio.timeout(SECONDS_TO_SEND):
            async for part in request.stream():
                body += part
                if len(body) > most_bytes:
                    raise BoundError(413, f"larger than {most_bytes >> 10} KiB")
    except TimeoutError:
        raise BoundError(408, f"not sent within {SECONDS_TO_SEND} seconds") from None
    return bytes(body)


class Server:
    """A session behind routes; every refusal is one line of plain text."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.desk = Desk()
        self.uploading = 0
        self.files = load_files()
        self.page = build_page(session)

    async def show_page(self, request: Request) -> Response:
        return HTMLResponse(self.page)

    async def show_file(self, request: Request) -> Response:
        content, kind = self.files[request.url.path.removeprefix("/")]
        return Response(content, media_type=kind)

    async def list_pictures(self, request: Request) -> Response:
        """Another sample of the validation images: ?seed=3."""
        seed = request.query_params.get("seed", "0")
        if not seed.isdecimal() or len(seed) > 10 or int(seed) >= MOST_SEED:
            raise BoundError(400, "seed: a whole number from 0")
        found = await asyncio.to_thread(self.session.pictures.sample, NUM_PICTURES, int(seed))
        return JSONResponse(list_pictures(found))

    async def show_picture(self, request: Request) -> Response:
        """A source as PNG, in the size of the first run."""
        picture = self.session.pictures.find(request.path_params["id"])
        return Response(encode_png(picture.images[self.session.first.model.image_size]), media_type="image/png")

    async def add_picture(self, request: Request) -> Response:
        """Take in a picture: the file is the body, its name comes as ?name=."""
        if not self.session.takes_uploads:
            raise BoundError(403, "without its black box the run edits validation images only")
        if self.uploading >= MOST_UPLOADS:
            raise BoundError(429, f"{MOST_UPLOADS} pictures are on their way already; try again")
        self.uploading += 1
        try:
            content = await read_body(request, image_store.MOST_BYTES)
            name = request.query_params.get("name", "")
            picture = await asyncio.to_thread(self.session.pictures.add, content, name)
        finally:
            self.uploading -= 1
        return JSONResponse(list_pictures([picture])[0])

    async def edit(self, request: Request) -> Response:
        ask = await self.read_ask(request)
        return JSONResponse(await self.desk.ask(ask.session, lambda: self.session.edit(ask)))

    async def save_png(self, request: Request) -> Response:
        return Response(await self.save(request, save_png), media_type="image/png")

    async def save_gif(self, request: Request) -> Response:
        return Response(await self.save(request, save_gif), media_type="image/gif")

    async def save(self, request: Request, draw: Callable[[Session, Ask], bytes]) -> bytes:
        ask = await self.read_ask(request)
        return await self.desk.ask(f"{ask.session} saves", lambda: draw(self.session, ask))

    async def read_ask(self, request: Request) -> Ask:
        """The edit that is asked for; only JSON is, which no form of another site can send."""
        if request.headers.get("content-type", "").partition(";")[0] != "application/json":
            raise BoundError(415, "an edit is asked for as application/json")
        return parse_ask(await read_body(request, edit_request.MOST_BYTES))


def say(status: int, line: str) -> Response:
    return PlainTextResponse(" ".join(line.split()) + "\n", status)


async def explain(request: Request, error: Exception) -> Response:
    """One line for what the page, or who else asks, has done wrong."""
    if isinstance(error, BoundError):
        return say(error.status, str(error))
    if isinstance(error, SupersededError):
        return say(409, "superseded by a newer request")
    if isinstance(error, BusyError):
        return say(503, "too many pages ask at once; try again")
    return say(404 if isinstance(error, GoneError) else 400, str(error))


def build_app(session: Session, access: Access) -> ASGIApp:
    """The page of a session as an ASGI application."""
    server = Server(session)
    routes = [
        Route("/", server.show_page),
        *(Route(f"/{name}", server.show_file) for name in server.files),
        Route("/pictures", server.list_pictures),
        Route("/pictures", server.add_picture, methods=["POST"]),
        Route("/pictures/{id:str}", server.show_picture),
        Route("/edit", server.edit, methods=["POST"]),
        Route("/save.png", server.save_png, methods=["POST"]),
        Route("/save.gif", server.save_gif, methods=["POST"]),
    ]
    errors = {kind: explain for kind in (UserError, BoundError, SupersededError, BusyError)}
    return Starlette(routes=routes, exception_handlers=errors, middleware=[Middleware(Guard, access=access)])
