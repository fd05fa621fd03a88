"""HTTP routes about the version that is served: going to another one, and whether it is the newest."""

from __future__ import annotations

from typing import Any, Protocol

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from distindex.errors import ConflictError, UnavailableError
from distindex.serving.access import Gate
from distindex.serving.body import read_body
from distindex.serving.http_errors import ErrorAnswer, refuse
from distindex.serving.parts import Part, answer_of
from distindex.serving.refusal import Refusal, refusal_of
from distindex.serving.request import RequestError

DEPLOY_ROUTE = "/v1/deploy"
_MOST_BYTES = 4096
_TIMEOUT_S = 30.0
_HEALTH_TIMEOUT_S = 5.0


class Served(Protocol):
    """What is needed of the backend."""

    def info(self) -> dict[str, Any]:
        """What is served."""
        ...

    async def problems(self) -> list[str]:
        """What does not answer a canary query now; empty when ready."""
        ...


class DeployBody(BaseModel):
    """The version to go to."""

    model_config = ConfigDict(extra="forbid", strict=True)

    version: int = Field(0, ge=0, description="Version of the index; 0 takes the newest")


class DeployState(BaseModel):
    """Where the service is: `deploying` and `step` are null unless it is on its way to another version.

    `step` is starting, loading, switching or draining; `error` says why the latest deployment failed.
    """

    version: int
    newest: int
    deploying: int | None
    step: str | None
    error: str | None


class Health(BaseModel):
    """`status` is ready, stale (ready, but the index has a newer version) or unavailable.

    `newest`, `deploying` and `deploy_error` are null where the process that knows them does not answer.
    """

    status: str
    version: int
    newest: int | None
    deploying: int | None
    deploy_error: str | None
    problems: list[str]


def make_routes(served: Served, deployer: Part, may_deploy: bool, gate: Gate) -> APIRouter:
    """The routes /v1/deploy and /health.

    Args:
        served: the backend.
        deployer: the deployer.
        may_deploy: whether anybody may choose the version.
        gate: turns away who may not.
    """
    routes = APIRouter()
    unavailable: dict[int | str, dict[str, Any]] = {
        503: {"model": ErrorAnswer, "description": "The process that knows does not answer; try again"}
    }
    refusals: dict[int | str, dict[str, Any]] = {
        400: {"model": ErrorAnswer, "description": "There is no such version, or it cannot be served here"},
        401: {"model": ErrorAnswer, "description": "A deployment needs a token"},
        403: {
            "model": ErrorAnswer,
            "description": "This token may ask but not deploy; or everybody may ask, from other machines too",
        },
        409: {"model": ErrorAnswer, "description": "The service is on its way to another version"},
        413: {"model": ErrorAnswer, "description": "Too large a body"},
    }

    async def state_of(method: str, arguments: tuple[Any, ...], status: int) -> Response:
        try:
            state = await answer_of(deployer, method, arguments, _TIMEOUT_S)
        except (RequestError, ConflictError, UnavailableError) as error:
            return refuse(refusal_of(error))
        if isinstance(state, UnavailableError):
            return refuse(refusal_of(UnavailableError(f"the deployer: {state}; try again")))
        return JSONResponse(state, status)

    @routes.post(
        DEPLOY_ROUTE,
        status_code=202,
        response_model=DeployState,
        summary="Begin to serve another version",
        responses={**refusals, **unavailable},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": DeployBody.model_json_schema()}},
            }
        },
    )
    async def deploy(http_request: Request) -> Response:
        if not may_deploy:
            message = "anybody could choose the version: start the service with a token, see deploy_token_file"
            return refuse(Refusal(403, "forbidden", message))
        refusal = gate.deploy_refusal(http_request.headers.get("authorization", ""))
        if refusal is not None:
            return refuse(refusal)
        # Pages of other hosts can send other types without asking first.
        if not http_request.headers.get("content-type", "").startswith("application/json"):
            return refuse(Refusal(400, "invalid_request", "the body must be of Content-Type application/json"))
        try:
            asked = DeployBody.model_validate_json(await read_body(http_request, _MOST_BYTES))
        except RequestError as error:
            return refuse(refusal_of(error))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"])) or None
            return refuse(Refusal(400, "invalid_request", first["msg"], field))
        return await state_of("deploy", (asked.version,), 202)

    @routes.get(
        DEPLOY_ROUTE,
        response_model=DeployState,
        summary="How far the service is on its way to another version",
        responses=unavailable,
    )
    async def state() -> Response:
        return await state_of("state", (), 200)

    @routes.get(
        "/health",
        response_model=Health,
        summary="Whether everything answers, and whether it is the newest version",
        responses={503: {"model": Health, "description": "A shard or the encoder does not answer"}},
    )
    async def health() -> Response:
        problems = await served.problems()
        version = served.info()["version"]
        state = await answer_of(deployer, "state", (), _HEALTH_TIMEOUT_S)
        known: dict[str, Any] = {} if isinstance(state, Exception) else state
        stale = known.get("newest", version) > version
        found = Health(
            status="unavailable" if problems else "stale" if stale else "ready",
            version=version,
            newest=known.get("newest"),
            deploying=known.get("deploying"),
            deploy_error=known.get("error"),
            problems=problems,
        )
        return JSONResponse(found.model_dump(), 503 if problems else 200)

    return routes
