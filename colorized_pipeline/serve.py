"""Photos by HTTP: what ``colorized serve`` answers. Photos take the road that the command's take.

A request's files lie in a folder of their own, which is gone before the last byte of the answer is sent; a job's until
it is deleted or an hour old. Each core works on one photo at a time, the others wait.
"""

import asyncio
import logging
import os
import secrets
import shutil
import tempfile
import threading
import time
import zipfile
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path, PurePosixPath
from typing import IO, Annotated, Any, Literal, get_args, get_type_hints
from urllib.parse import quote

import anyio
from fastapi import Depends, FastAPI, Form, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, RedirectResponse, Response, StreamingResponse
from fastapi.security import HTTPBearer
from fastapi_offline import FastAPIOffline
from PIL import Image
from pydantic import BaseModel, Field, create_model
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ._version import __version__
from .archive.files import PHOTO_SUFFIXES, Found, Job, output_format, plan_jobs, suffix_for
from .archive.scans import check_all_pages
from .batch.overlap import Batch, Outcome, available_cores, explain, without_folders
from .batch.settings import Settings, build_settings
from .diffusion.hints import parse_hint
from .diffusion.pipeline import ColorizationPipeline
from .diffusion.reading import TooLargeError
from .options import Colors, ServerLimits, Variants

_ERRORS = (OSError, ValueError, TypeError, MemoryError)  # of a photo or an option, not of the server
_OPEN = ("/", "/health", "/docs", "/openapi.json")  # to whoever has no token
_LONGEST_NAME = 150  # bytes of a photo's name; longer ones lose their end
_CHUNK = 2**18


def _options(*groups: Any) -> Any:
    """The command's options as a form, with their limits and help."""
    known: dict[str, Any] = {}
    for group in groups:
        hints = get_type_hints(group, include_extras=True)
        for one in fields(group):
            kind, option = get_args(hints[one.name])
            known[one.name] = kind, Field(one.default, ge=option.min, le=option.max, description=option.help)
    return create_model("Options", __config__={"extra": "forbid"}, **known)


_Options: Any = _options(Colors, Variants)


class RequestOptions(_Options):
    """Options of a request: the command's, under the command's names."""

    format: Literal["same", "tif", "png", "jpg", "webp"] = Field("same", description="Of the result.")
    pages: Literal["all", "first"] = Field("all", description="Which pages of a TIFF.")
    mark: bool = Field(False, description='Write "colorized" into the lower right corner.')
    hint: list[str] = Field([], description="Colours you know: X,Y,RADIUS:COLOUR. Repeatable; for a single photo.")
    reference: UploadFile | None = Field(None, description="A colour photo whose palette the results get.")


class Refusal(BaseModel):
    """Why a request wasn't done, and what to do."""

    detail: str


class OnePhoto(RequestOptions):
    """A photo and its options."""

    photo: UploadFile


class ManyPhotos(RequestOptions):
    """Photos and their options."""

    photos: list[UploadFile] = Field(min_length=1)


@dataclass
class ServerJob:
    """Photos that came together. Its folder goes with it."""

    folder: tempfile.TemporaryDirectory[str]
    photos: list[Job]
    settings: Settings
    outcomes: list[tuple[int, Outcome]] = field(default_factory=list)  # with the status of HTTP
    steps: int = 0  # of the photo that is being drawn
    stop: threading.Event = field(default_factory=threading.Event)
    started: float = field(default_factory=time.monotonic)
    number: str = field(default_factory=lambda: secrets.token_urlsafe(16))
    task: "asyncio.Task[None] | None" = None

    def results(self, photo: Job) -> list[Path]:
        """The files that came of a photo, by now."""
        return [file for file in self.settings.files(photo.target) if file.is_file()]

    def state(self) -> dict[str, Any]:
        """How far it is."""
        total, done = len(self.photos), len(self.outcomes)
        steps = self.settings.steps * self.settings.variants
        progress = min(1.0, (done + min(1.0, self.steps / steps)) / total) if done < total else 1.0
        spent = time.monotonic() - self.started
        photos: list[dict[str, Any]] = [{"name": photo.name.name, "state": "waiting"} for photo in self.photos]
        for row, (_, outcome) in zip(photos, self.outcomes, strict=False):
            row |= {"state": outcome.state, "results": [file.name for file in self.results(outcome.job)]}
            row |= {"error": outcome.message} if outcome.message else {}
            row |= {"notes": outcome.notes} if outcome.notes else {}
        return {
            "id": self.number,
            "state": "done" if done == total else "running" if progress else "waiting",
            "photos": photos,
            "failed": sum(outcome.state == "failed" for _, outcome in self.outcomes),
            "progress": round(progress, 3),
            "seconds_left": round(spent / progress * (1 - progress), 1) if progress else None,
        }


class Service:
    """The pipeline, the jobs, and the threads that work on them."""

    def __init__(self, pipe: ColorizationPipeline, limits: ServerLimits) -> None:
        self.pipe, self.limits, self.checkpoint = pipe, limits, pipe.digest()
        self.in_flight = 0  # requests with photos, now
        self.jobs: dict[str, ServerJob] = {}
        workers = available_cores() if pipe.device.type == "cpu" else 1
        self.pool = ThreadPoolExecutor(workers, "colorize")

    async def take(self, uploads: list[UploadFile], options: RequestOptions) -> ServerJob:
        """A job of photos as they came. Raises ``HTTPException`` for what can't be done."""
        folder = tempfile.TemporaryDirectory(prefix="colorized-serve-")
        try:
            return await asyncio.to_thread(self._take, folder, uploads, options)
        except _ERRORS as error:
            raise HTTPException(422, without_folders(str(error), folder.name)) from error

    def _take(
        self, folder: tempfile.TemporaryDirectory[str], uploads: list[UploadFile], options: RequestOptions
    ) -> ServerJob:
        root = Path(folder.name)
        photos = [_save(upload, root / "in" / str(number)) for number, upload in enumerate(uploads, start=1)]
        reference = _save(options.reference, root / "reference") if options.reference else None
        if options.hint and len(photos) > 1:
            raise ValueError(f"hint: hints are places on one photo, and here are {len(photos)}: give one")
        colors, variants = (
            {one.name: getattr(options, one.name) for one in fields(group)} for group in (Colors, Variants)
        )
        settings = build_settings(
            self.pipe,
            checkpoint=self.checkpoint,
            alone=True,  # so that a photo of a job gives the bytes that it gives by itself
            **colors,
            **variants,
            pages=options.pages,
            mark=options.mark,
            hints=tuple(parse_hint(text) for text in options.hint),
            reference=reference,
            max_megapixels=self.limits.max_megapixels,
        )
        jobs = plan_jobs(
            Found([(photo, Path(photo.name)) for photo in photos], []),
            root / "out",
            inputs=photos,
            suffix="" if options.format == "same" else f".{options.format}",
            results=settings.files,
        )
        if reference:
            check_all_pages(reference, self.limits.max_megapixels, pages="first")
            self.pipe.read_palette(reference)
        return ServerJob(folder, jobs, settings)

    async def work(self, job: ServerJob) -> None:
        """Colorize a job's photos, one after the other: each waits among all that wait."""
        for photo in job.photos:
            if not job.stop.is_set():
                outcome = await asyncio.get_running_loop().run_in_executor(self.pool, self._colorize, job, photo)
                job.outcomes.append(outcome)
                job.steps = 0

    def _colorize(self, job: ServerJob, photo: Job) -> tuple[int, Outcome]:
        deadline = time.monotonic() + self.limits.max_seconds

        def on_step() -> None:
            job.steps += 1
            if job.stop.is_set() or time.monotonic() > deadline:
                raise TimeoutError(f"takes more than {self.limits.max_seconds:g} s: ask for fewer steps or variants")

        if job.stop.is_set():
            return 499, Outcome(photo, "failed", "cancelled")
        try:
            check_all_pages(photo.source, self.limits.max_megapixels, pages=job.settings.pages)
            (outcome,) = Batch(self.pipe, job.settings, cores=1).run([photo], on_step=on_step)
        except _ERRORS as error:
            status = 413 if isinstance(error, TooLargeError) else 422
            outcome = Outcome(photo, "failed", explain(error, photo.source))
        else:
            status = 422 if outcome.state == "failed" else 200
        message = without_folders(outcome.message, photo.source.parent, job.folder.name)
        notes = [without_folders(note, photo.source.parent) for note in outcome.notes]
        return status, replace(outcome, message=message, notes=notes)

    def keep(self, job: ServerJob) -> None:
        """Work on a job while its sender is away."""
        self.jobs[job.number] = job
        job.task = asyncio.create_task(self.work(job))
        later = asyncio.get_running_loop().call_later
        job.task.add_done_callback(lambda _: later(self.limits.kept, self.forget, job))

    def forget(self, job: ServerJob) -> None:
        """Stop a job, and delete its files when nobody works on them."""
        self.jobs.pop(job.number, None)
        job.stop.set()
        if job.task is None or job.task.done():
            job.folder.cleanup()
        else:
            job.task.add_done_callback(lambda _: job.folder.cleanup())

    def close(self) -> None:
        """Stop all work."""
        for job in list(self.jobs.values()):
            job.stop.set()
        self.pool.shutdown(cancel_futures=True)


def make_server(pipe: ColorizationPipeline, limits: ServerLimits, *, token: str = "") -> FastAPI:
    """The web application around a loaded pipeline.

    Args:
        token: what requests must carry as ``Authorization: Bearer TOKEN``, if anything.
    """
    service = Service(pipe, limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        service.close()

    server = FastAPIOffline(
        title="COLORIZED",
        version=__version__,
        description="Plausible colours for grey photographs. They are invented: every result says so in its label.",
        redoc_url=None,
        lifespan=lifespan,
        responses={"4XX": {"model": Refusal, "description": "Refused: `detail` says why."}},
        dependencies=[Depends(HTTPBearer(auto_error=False))] if token else [],
    )
    server.add_exception_handler(
        RequestValidationError, lambda _, error: JSONResponse({"detail": "; ".join(map(_fault, error.errors()))}, 422)
    )
    server.add_middleware(LimitsMiddleware, service=service, token=token)
    _add_photos(server, service)
    _add_jobs(server, service)

    @server.get("/", include_in_schema=False)
    def start() -> RedirectResponse:
        return RedirectResponse("/docs")

    @server.head("/health", include_in_schema=False)
    @server.get("/health")
    def health() -> dict[str, Any]:
        """Whether the server works, and how much it has to do."""
        load = {"requests": service.in_flight, "jobs": len(service.jobs)}
        return {"status": "ok", "version": __version__, "checkpoint": service.checkpoint, **load}

    return server


def _fault(found: dict[str, Any]) -> str:
    """What is wrong with a field of a form."""
    name, given = found["loc"][1], found["input"]
    if found["type"] == "missing":
        return f"{name} is missing: send a form (multipart/form-data) with it"
    if found["type"] == "extra_forbidden":
        return f"{name}: no such option"
    if name in ("photo", "photos", "reference"):
        return f"{name}: give a file with a name, as curl -F {name}=@FILE does"
    return f"{name}={given[:50]}: {found['msg']}" if isinstance(given, str) else f"{name}: give text, not a file"


async def _refuse_repeated(request: Request) -> None:
    """No field is dropped in silence."""
    for name, count in Counter(name for name, _ in (await request.form()).multi_items()).items():
        if count > 1 and name not in ("photos", "hint"):
            remedy = "many photos go to /jobs, as photos" if name == "photo" else "give it once"
            raise HTTPException(422, f"{name}: given {count} times; {remedy}")


_ONCE = [Depends(_refuse_repeated)]
_MULTIPART = Form(media_type="multipart/form-data")
_FILES: dict[int | str, dict[str, Any]] = {
    200: {"content": {"image/*": {}, "application/zip": {}}, "description": "The colour copy, labelled."}
}


def _add_photos(server: FastAPI, service: Service) -> None:
    @server.post("/colorize", response_class=Response, responses=_FILES, dependencies=_ONCE)
    async def colorize(request: Request, form: Annotated[OnePhoto, _MULTIPART]) -> Response:
        """A photo for its colour copy: same size, same lightness, same file format. Several files come as a ZIP."""
        job = await service.take([form.photo], form)
        job.task = asyncio.create_task(service.work(job))
        try:
            while not (await asyncio.wait({job.task}, timeout=0.5))[0]:
                if await request.is_disconnected():
                    return Response(status_code=499)  # nobody reads it
            job.task.result()
            (status, outcome), *_ = job.outcomes
            if status != 200:
                raise HTTPException(status, outcome.message)
            files = job.results(outcome.job)
            return await (_send(files[0], files[0].name) if len(files) == 1 else _send_zip(job, outcome.job.name.stem))
        finally:
            service.forget(job)


def _add_jobs(server: FastAPI, service: Service) -> None:
    def find(number: str) -> ServerJob:
        if number not in service.jobs:
            raise HTTPException(404, f"{number}: no such job; it was deleted, or finished long ago")
        return service.jobs[number]

    @server.post("/jobs", status_code=202, dependencies=_ONCE)
    async def start_job(form: Annotated[ManyPhotos, _MULTIPART]) -> dict[str, Any]:
        """Many photos: an answer at once, progress and results later."""
        limits = service.limits
        if len(form.photos) > limits.max_photos:
            raise HTTPException(413, f"{len(form.photos)} photos are more than a job may have ({limits.max_photos})")
        if len(service.jobs) >= limits.jobs:
            raise HTTPException(429, f"there are {limits.jobs} jobs: delete one or try later", {"Retry-After": "60"})
        job = await service.take(form.photos, form)
        service.keep(job)
        return job.state()

    @server.get("/jobs/{number}")
    async def show_job(number: str) -> dict[str, Any]:
        """Progress, seconds left, and what became of each photo."""
        return find(number).state()

    @server.get("/jobs/{number}/results", response_class=Response, responses=_FILES)
    async def send_results(number: str) -> Response:
        """All files that are finished, as a ZIP."""
        return await _send_zip(find(number), "colorized")

    @server.get("/jobs/{number}/results/{name}", response_class=Response, responses=_FILES)
    async def send_result(number: str, name: str) -> Response:
        """One finished file."""
        job = find(number)
        made = {file.name: file for _, outcome in job.outcomes for file in job.results(outcome.job)}
        if name not in made:
            raise HTTPException(404, f"{name}: no such result, or not yet")
        return await _send(made[name], name)

    @server.delete("/jobs/{number}", status_code=204)
    async def delete_job(number: str) -> None:
        """Cancel a job, and delete its files."""
        service.forget(find(number))


class LimitsMiddleware:
    """Refuses requests that carry no token, bring too much or come too slowly; if possible before they are read."""

    def __init__(self, app: ASGIApp, service: Service, token: str) -> None:
        self.app, self.service, self.token = app, service, token.encode()
        self._rates: OrderedDict[str, tuple[float, float]] = OrderedDict()  # what each address has left, and when

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        refusal = self._refuse(scope)
        if refusal:
            status, text, headers = refusal
            return await JSONResponse({"detail": text}, status, headers)(scope, receive, send)
        brings = scope["method"] == "POST"
        self.service.in_flight += brings
        try:
            await self.app(scope, self._limited_receive(receive), self._limited_send(send))
        except TimeoutError:
            return  # of a client that doesn't read; its connection is closed
        finally:
            self.service.in_flight -= brings

    def _refuse(self, scope: Scope) -> tuple[int, str, dict[str, str]] | None:
        headers, limits = dict(scope["headers"]), self.service.limits
        is_open = scope["path"] in _OPEN or scope["path"].startswith("/static-offline-docs/")
        given = headers.get(b"authorization", b"").partition(b" ")[2].strip()
        if self.token and not is_open and not secrets.compare_digest(given, self.token):
            return 401, "this server wants a token: Authorization: Bearer TOKEN", {"WWW-Authenticate": "Bearer"}
        if scope["method"] != "POST":
            return None
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limits.max_mb * 1e6:
            return 413, self._too_long(), {}
        if self.service.in_flight >= limits.queue:
            return 429, f"{self.service.in_flight} requests wait already: try later", {"Retry-After": "5"}
        if wait := self._seconds_to_wait((scope.get("client") or ("",))[0]):
            return 429, f"more than {limits.rate} requests a minute: try later", {"Retry-After": f"{wait:.0f}"}
        return None

    def _too_long(self) -> str:
        return f"the request is larger than {self.service.limits.max_mb} megabytes"

    def _seconds_to_wait(self, address: str) -> float:
        """Until an address may send a request; 0 if it may now, and then it has one less left."""
        rate, now = self.service.limits.rate, time.monotonic()
        left, since = self._rates.pop(address, (float(rate), now))
        left = min(rate, left + (now - since) * rate / 60)
        self._rates[address] = (left - 1 if left >= 1 else left), now
        while len(self._rates) > 10_000:
            self._rates.popitem(last=False)
        return 0.0 if left >= 1 else max(1.0, (1 - left) * 60 / rate)

    def _limited_receive(self, receive: Receive) -> Receive:
        """Counts what arrives, and waits for it no longer than the limits say."""
        limits, read, whole = self.service.limits, 0, False
        deadline = time.monotonic() + limits.upload

        async def next_message() -> Message:
            nonlocal read, whole
            if whole:
                return await receive()
            try:
                with anyio.fail_after(max(0.01, min(limits.silence, deadline - time.monotonic()))):
                    message = await receive()
            except TimeoutError:
                raise HTTPException(408, "the request came too slowly", {"Connection": "close"}) from None
            read, whole = read + len(message.get("body", b"")), not message.get("more_body", False)
            if read > limits.max_mb * 1e6:
                raise HTTPException(413, self._too_long())
            return message

        return next_message

    def _limited_send(self, send: Send) -> Send:
        async def next_message(message: Message) -> None:
            with anyio.fail_after(self.service.limits.silence):
                await send(message)

        return next_message


def run_server(server: FastAPI, listener: Any, *, limits: ServerLimits) -> None:
    """Serve on a socket that listens, until SIGINT or SIGTERM."""
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class IdleTimeoutProtocol(H11Protocol):
        """Closes connections on which no request comes, or none that ends."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._close_unless_asked()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._close_unless_asked()

        def _close_unless_asked(self) -> None:
            before = self.cycle

            def close() -> None:
                if self.cycle is before:
                    self.transport.close()

            self.loop.call_later(limits.silence, close)

    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)  # a line for each malformed request
    config = uvicorn.Config(
        server,
        http=IdleTimeoutProtocol,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=1000,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run(sockets=[listener])


def _save(upload: UploadFile, folder: Path) -> Path:
    """An upload as a file under its own name, without what its sender says of folders."""
    name = PurePosixPath((upload.filename or "").replace("\\", "/")).name
    name = "".join(one for one in name if one.isprintable() and one not in '<>:"|?*').strip(". ")
    stem, suffix = os.path.splitext(name)  # noqa: PTH122
    if suffix.lower() not in PHOTO_SUFFIXES:
        stem, suffix = name, ""
    folder.mkdir(parents=True)
    file = folder / f"{stem.encode()[:_LONGEST_NAME].decode(errors='ignore') or 'photo'}{suffix}"
    with file.open("wb") as stream:
        shutil.copyfileobj(upload.file, stream, _CHUNK)
    return file if suffix else file.rename(file.with_name(file.name + suffix_for(file)))


async def _send_zip(job: ServerJob, name: str) -> Response:
    def pack() -> IO[bytes]:
        stream = tempfile.TemporaryFile()
        with zipfile.ZipFile(stream, "w") as archive:  # stored: pictures are small already
            for _, outcome in job.outcomes:
                for file in job.results(outcome.job):
                    archive.write(file, file.name)
        return stream

    return _stream(await asyncio.to_thread(pack), f"{name}.zip", "application/zip")


async def _send(file: Path, name: str) -> Response:
    return _stream(file.open("rb"), name, Image.MIME[output_format(file)])


def _stream(stream: IO[bytes], name: str, media_type: str) -> Response:
    """An open file as the answer: it may be deleted meanwhile."""

    async def chunks() -> AsyncIterator[bytes]:
        with stream:
            while chunk := stream.read(_CHUNK):
                yield chunk

    size = stream.seek(0, os.SEEK_END)
    stream.seek(0)
    headers = {"Content-Length": str(size), "Content-Disposition": f"attachment; filename*=UTF-8''{quote(name)}"}
    return StreamingResponse(chunks(), media_type=media_type, headers=headers)
