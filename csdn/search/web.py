"""The service over HTTP: its endpoints, their errors as JSON, and a page to try it by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Annotated, Any, Literal

from anyio import to_thread
from fastapi import APIRouter, Depends, FastAPI, File, Form, HTTPException, Request, Response, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST, Gauge, generate_latest
from pydantic import BaseModel, BeforeValidator, Field, WithJsonSchema
from starlette.exceptions import HTTPException as AnyHTTPException

from csdn.data.images import EXTENSIONS, BadImage
from csdn.data.labels import NO_LABEL, canonical_label, label_fault
from csdn.runtime.console import log_error
from csdn.runtime.errors import UserError, is_unavailable
from csdn.search.embedder import MAX_PIXELS
from csdn.search.images import seconds
from csdn.search.limits import Guard, Limits, Metrics, Refused
from csdn.search.promotion import Promotion
from csdn.search.results import Answer, threshold_for
from csdn.search.search import Filters, PersonMatch
from csdn.search.service import InUse, Service

MOST = 100  # people in an answer
PAGE_FILES = {"/": ("index.html", "text/html"), "/page.css": ("page.css", "text/css")}
PAGE_FILES["/page.js"] = ("page.js", "text/javascript")
PAGE_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}

Modality = Literal["visible", "infrared"]
Among = Literal["visible", "infrared", "both"]
Image = Annotated[UploadFile, File(description=f"An image file; its name ends in {', '.join(EXTENSIONS)}.")]


def _time(text: str) -> int:
    if (found := seconds(text)) is None:
        raise ValueError("no time in ISO 8601, such as 2026-11-01T08:00+01:00")
    return found


# Seconds since 1970, from a text as `csdn search` takes it.
Time = Annotated[
    int | None, BeforeValidator(_time), WithJsonSchema({"type": "string", "format": "date-time"})
]
Label = Annotated[str, Form(max_length=256)]


class ImageFound(BaseModel):
    score: float = Field(description="Cosine of the two features, -1 to 1.", examples=[0.71])
    camera: str = Field(examples=["gate"])
    modality: Modality
    time: str | None = Field(description="ISO 8601, UTC.", examples=["2026-11-03T08:15:00+00:00"])
    picture: str | None = Field(None, description="A small JPEG as a data URI.", examples=[None])


class PersonFound(BaseModel):
    rank: int = Field(examples=[1])
    person: str | None = Field(description="null: an unlabelled image.", examples=["p0007"])
    score: float = Field(description="The largest score of the person's images.", examples=[0.71])
    match: bool | None = Field(
        description="Whether the score passes the threshold; null: there is none.", examples=[True]
    )
    images: list[ImageFound]


class SearchAnswer(BaseModel):
    match: bool | None = Field(description="Whether anybody passes the threshold.", examples=[True])
    verdict: str = Field(examples=["1 person above the threshold (FPIR 10 %: 0.620)"])
    threshold: float | None = Field(examples=[0.62])
    fpir: float = Field(examples=[0.1])
    people: list[PersonFound]
    model: str = Field(description="SHA-256 of the model's weights.", examples=[64 * "0"])


class ImageAdded(BaseModel):
    sha256: str
    images: int = Field(description="Images in the gallery now.")


class PersonRemoved(BaseModel):
    removed: int = Field(description="Images that were removed.")


class Problem(BaseModel):
    error: str = Field(examples=["image: truncated"])
    advice: str = Field(examples=["send a whole image file"])


PROBLEMS: dict[int | str, dict[str, Any]] = {
    status: {"model": Problem, "description": text}
    for status, text in {
        400: "The file is not a valid image.",
        401: "The token is missing or wrong.",
        403: "Without a token set: not a request of this machine.",
        408: "The request did not arrive in time.",
        413: "The request is too large.",
        422: "A field has a wrong value.",
        429: "Too many requests; wait as Retry-After says.",
        503: "The gallery or its store does not respond.",
    }.items()
}
# The Guard checks the token; this puts it into the OpenAPI document.
v1 = APIRouter(prefix="/v1", responses=PROBLEMS, dependencies=[Depends(HTTPBearer(auto_error=False))])


async def service_of(request: Request) -> Service:  # async: no thread is needed, so none is waited for
    return request.app.state.service


Use = Annotated[Service, Depends(service_of)]


@v1.post("/search")
async def search(
    service: Use,
    image: Image,
    modality: Annotated[Modality, Form(description="Of the query.")],
    among: Annotated[
        Among | None, Form(description="Images to search; the other modality, if not given.")
    ] = None,
    top: Annotated[int, Form(ge=1, le=MOST, description="People in the answer.")] = 10,
    camera: Annotated[tuple[Label, ...], Form(max_length=1000, description="Of these cameras alone.")] = (),
    since: Annotated[Time, Form(description="Not before this time, in ISO 8601; UTC without a zone.")] = None,
    until: Annotated[Time, Form(description="Before this time.")] = None,
    fpir: Annotated[float, Form(gt=0, lt=1, description="Of the threshold: 0.1 is 10 %.")] = 0.1,
    pictures: Annotated[bool, Form(description="Send the best image of each person.")] = False,
) -> SearchAnswer:
    """The people of the gallery who look most like the person in the image, and whether any of them is above
    the threshold."""
    labels = [label_of("camera", name) for name in camera]
    among = among or ("infrared" if modality == "visible" else "visible")
    filters = Filters(
        modality=None if among == "both" else among,
        cameras=tuple(labels),
        since=since,
        until=until,
    )
    data = await image.read()
    try:
        state, people = await service.search(data, image.filename or "", modality, top, filters)
    except BadImage as bad:
        raise refused_image(bad) from None
    found = await to_thread.run_sync(judged, state, people, modality, filters, fpir)
    shown = [person.images[0].source for person in people] if pictures else []
    small = await service.pictures(state, shown) if pictures else [None] * len(people)
    return as_answer(found, small, state.embedder.model_hash)


def judged(
    state: InUse, people: list[PersonMatch], modality: Modality, filters: Filters, fpir: float
) -> Answer:
    """The people, and whether one of them passes the threshold for a gallery of the size searched."""
    threshold = threshold_for(state.thresholds, state.searcher, modality, filters, fpir)
    return Answer("", modality, threshold, people)


def as_answer(answer: Answer, pictures: Sequence[str | None], model: str) -> SearchAnswer:
    """pictures: of the best image of each person."""
    people = []
    for rank, (person, picture) in enumerate(zip(answer.people, pictures, strict=True), 1):
        images = [ImageFound.model_validate(image, from_attributes=True) for image in person.images]
        images[0].picture = picture
        people.append(
            PersonFound(
                rank=rank,
                person=person.person or None,
                score=person.score,
                match=answer.threshold.passed(person.score),
                images=images,
            )
        )
    return SearchAnswer(
        match=people[0].match if people else None,
        verdict=answer.verdict,
        threshold=answer.threshold.value,
        fpir=answer.threshold.fpir,
        people=people,
        model=model,
    )


@v1.post("/gallery", status_code=201)
async def add_image(
    service: Use,
    image: Image,
    modality: Annotated[Modality, Form()],
    person: Annotated[Label, Form(description="Empty: nobody has said who it is.")] = "",
    camera: Label = "",
    time: Annotated[Time, Form(description="When it was taken, in ISO 8601; UTC without a zone.")] = None,
) -> ImageAdded:
    """Add an image to the gallery, which keeps the file; the same image again gets the new labels."""
    labels = {"person": label_of("person", person), "camera": label_of("camera", camera)}
    data = await image.read()
    try:
        sha256 = await service.add(data, image.filename or "", modality=modality, time=time, **labels)
    except BadImage as bad:
        raise refused_image(bad) from None
    return ImageAdded(sha256=sha256, images=len(service.state.gallery))


@v1.delete("/people/{person:path}")
async def remove_person(service: Use, person: str) -> PersonRemoved:
    """Remove all images of a person from the gallery, with the files that were sent to it."""
    if not (removed := await service.remove(label_of("person", person))):
        raise Refused(
            404, "nobody in the gallery has this name", "see the names in the answers of /v1/search"
        )
    return PersonRemoved(removed=removed)


def label_of(field: str, text: str) -> str:
    """The canonical label that a client sent, "" for none."""
    if (fault := label_fault(text)) not in (None, NO_LABEL):
        raise Refused(422, f"{field}: {fault}", "send another label")
    return canonical_label(text)


def refused_image(bad: BadImage) -> Refused:
    kinds, megapixels = ", ".join(EXTENSIONS), MAX_PIXELS // 10**6
    advice = f"send a whole image file ({kinds}) of at most {megapixels} megapixels"
    return Refused(400, f"image: {bad.reason}", advice)


# The application.


def create_app(service: Service, limits: Limits, token: str | None) -> FastAPI:
    """The ASGI application, for uvicorn, Ray Serve and tests.

    token: what clients must send; None: the application answers this machine alone.
    """
    promotion, metrics = Promotion(service), Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        with promotion:
            yield

    app = FastAPI(
        title="CSDN",
        description="Search for people across visible and infrared cameras.",
        version="1",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    app.state.service = service
    app.include_router(v1)
    app.include_router(_operation(service, metrics))
    app.include_router(_page())
    app.exception_handler(AnyHTTPException)(on_refusal)
    app.exception_handler(RequestValidationError)(on_wrong_fields)
    app.exception_handler(UserError)(on_user_error)
    app.exception_handler(Exception)(on_defect)
    app.add_middleware(Guard, limits=limits, token=token, metrics=metrics)
    return app


def _operation(service: Service, metrics: Metrics) -> APIRouter:
    """What watches the service: probes and metrics."""
    router = APIRouter()
    images = Gauge("csdn_gallery_images", "Images in the gallery.", registry=metrics.registry)
    images.set_function(lambda: len(service.state.gallery))

    @router.get("/healthz")
    async def alive() -> dict[str, str]:
        """The process runs."""
        return {"status": "ok"}

    @router.get("/readyz")
    async def ready() -> dict[str, str]:
        """The model and the gallery are loaded; the service starts to listen when they are."""
        return {"status": "ok"}

    @router.get("/metrics", response_class=Response)
    async def measured() -> Response:
        """For Prometheus."""
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router


def _page() -> APIRouter:
    """The page and what it loads."""
    router = APIRouter(include_in_schema=False)
    for path, (name, kind) in PAGE_FILES.items():
        content = files("csdn.search").joinpath("page", name).read_bytes()
        response = Response(content, media_type=kind, headers=PAGE_HEADERS)
        router.add_api_route(path, lambda response=response: response, response_model=None)
    return router


# Errors: what was wrong and what to do. What the operator must know is in the log, not in the answer.


async def on_refusal(_: Request, error: HTTPException) -> JSONResponse:
    if isinstance(error, Refused):
        return error.response()
    advice = "see /openapi.json" if error.status_code in (404, 405) else "see /openapi.json for the form"
    return Refused(error.status_code, str(error.detail), advice, **(error.headers or {})).response()


async def on_wrong_fields(_: Request, error: RequestValidationError) -> JSONResponse:
    faults = [f"{fault['loc'][-1]}: {fault['msg']}" for fault in error.errors()]
    return Refused(422, "; ".join(faults), "correct these fields; /openapi.json describes them").response()


async def on_user_error(_: Request, error: UserError) -> JSONResponse:
    log_error(error)
    if is_unavailable(error):
        advice = "send the request again later"
        return Refused(503, "the gallery's store does not respond", advice, retry_after="10").response()
    return Refused(503, "the gallery cannot be used", "ask the operator; the log has the reason").response()


async def on_defect(_: Request, error: Exception) -> JSONResponse:
    """The server logs the traceback."""
    return Refused(500, "the service failed", "ask the operator; the log has the reason").response()
