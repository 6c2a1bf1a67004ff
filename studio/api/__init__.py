"""The use cases over HTTP: `rest` for /api, `openai` for /v1, and the shape of their errors.

Who may ask is decided in studio.auth.
"""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException

from studio.api import (
    access,
    chat,
    comparisons,
    compress,
    curation,
    datasets,
    docs,
    exports,
    fit,
    jobs,
    judging,
    methods,
    models,
    openai,
    rest,
    storage,
)  # fmt: skip
from studio.errors import BusyError, EngineError, ForbiddenError, NotFoundError, StudioError, TakenError, of_this_machine

log = logging.getLogger(__name__)


def add_routes(app: FastAPI) -> None:
    """Everything under /api and /v1. The routes find their services in `app.state.studio`."""
    app.include_router(methods.router)  # before /jobs/{id}
    app.include_router(rest.router)
    app.include_router(access.router)
    app.include_router(datasets.router)
    app.include_router(models.router)
    app.include_router(jobs.router)
    app.include_router(curation.router)
    app.include_router(compress.router)
    app.include_router(exports.router)
    app.include_router(fit.router)
    app.include_router(storage.router)
    app.include_router(comparisons.router)
    app.include_router(judging.router)
    app.include_router(chat.router)
    app.include_router(openai.router)
    app.include_router(openai.beside)
    app.include_router(docs.router)
    app.add_exception_handler(StudioError, _studio_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(UnicodeEncodeError, _half_a_character)
    app.add_exception_handler(OperationalError, _database_refuses)
    app.add_exception_handler(Exception, _unforeseen)


def _studio_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, StudioError)
    return _answer(request, _status(exc), exc)


def _status(error: StudioError) -> int:
    if isinstance(error, EngineError):
        return error.status
    if isinstance(error, NotFoundError):
        return 404
    if isinstance(error, TakenError):
        return 409
    if isinstance(error, ForbiddenError):
        return 403
    if isinstance(error, BusyError):
        return 503
    return 400


def _invalid(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, RequestValidationError)
    problems = []
    for error in exc.errors():
        where, what = ".".join(str(part) for part in error["loc"]), error["msg"]
        problems.append(f"{where}: {what[0].lower()}{what[1:]}")
    return _answer(request, 422, StudioError("; ".join(problems) + ".", "See /api/docs.", problems=problems))


def _http_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    return _answer(
        request, exc.status_code, StudioError(f"{str(exc.detail).rstrip('.')}.", "/api/docs lists what there is and how to ask for it.")
    )


def _half_a_character(request: Request, exc: Exception) -> Response:
    """JSON may hold half of a surrogate pair, which neither a database nor a file takes. Anything else is a defect."""
    assert isinstance(exc, UnicodeEncodeError)
    if "surrogates" not in exc.reason:
        raise exc
    return _answer(request, 400, StudioError("A text holds half a character (a lone surrogate).", "Cut texts between characters."))


def _database_refuses(request: Request, exc: Exception) -> Response:
    """503 while another program holds the database; what else it says is no passing matter."""
    found = of_this_machine(exc)
    if not isinstance(found, BusyError):
        raise exc
    return _answer(request, 503, found)


def _unforeseen(request: Request, exc: Exception) -> Response:
    """A disk or a database that refuses, or a defect. The server logs the traceback itself."""
    found = of_this_machine(exc)
    if isinstance(found, BusyError):  # of the gate, which stands before the handlers
        return _answer(request, 503, found)
    fix = "The web log in STUDIO_HOME/logs says more."
    defect = StudioError(f"This did not work because of a defect in the studio ({type(exc).__name__}).", fix)
    return _answer(request, 500, found or defect)


def _answer(request: Request, status: int, error: StudioError) -> Response:
    headers = {"Retry-After": str(error.details["retry_after"])} if "retry_after" in error.details else None
    if openai.is_of_programs(request.scope["path"]):
        return JSONResponse(openai.error_body(error, status), status_code=status, headers=headers)
    return JSONResponse({"error": error.as_json()}, status_code=status, headers=headers)
