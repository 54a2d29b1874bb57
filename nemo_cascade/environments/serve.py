"""Our environments over NeMo Gym's HTTP: `/<environment>/verify`, for trainers that talk to Gym's resources servers.

A resources server of Gym's own is one environment at one address; give such a client `http://host:port/math` as its server's address.
"""

import asyncio
import contextlib
import json

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from nemo_cascade import environments
from nemo_cascade.environments.workers import Verifiers


def application(names: list[str], workers: int = 0) -> Starlette:
    """An ASGI application that serves these environments. Raises KeyError for one that is not registered or needs a
    judge."""
    for name in names:
        if not hasattr(environments.get(name), "verify"):
            raise KeyError(f"{name} cannot be served: a judge compares its replies, and no reply has a reward alone")
    verifiers = Verifiers(workers)

    @contextlib.asynccontextmanager
    async def until_the_end(_):
        with verifiers:
            yield

    routes = [Route("/", lambda _: JSONResponse({"environments": names}))]
    for name in names:
        routes += [
            Route(f"/{name}/verify", _verify(name, verifiers), methods=["POST"]),
            # Ours keep nothing between calls, so a session is whatever its caller says it is.
            Route(f"/{name}/seed_session", _nothing, methods=["POST"]),
            Route(f"/{name}/aggregate_metrics", _aggregate, methods=["POST"]),
        ]
    return Starlette(routes=routes, lifespan=until_the_end)


def _verify(name: str, verifiers: Verifiers):
    async def verify(request: Request) -> JSONResponse:
        try:
            body = await request.json()
            response = body.pop("response")
            response["output"]
        except (ValueError, AttributeError, KeyError, TypeError):
            return JSONResponse({"detail": "a row in JSON with an OpenAI response under `response` is wanted"}, 422)
        row = {**body, "agent_ref": {"name": name + environments.AGENT_SUFFIX}}
        problem = environments.row_problem(row)
        if not problem and environments.needs_judge(row):
            problem = "a judge has to be asked about them, and none is served"
        if problem:
            return JSONResponse({"detail": f"{name} cannot verify replies to this row: {problem}"}, 422)
        verdict = await asyncio.wrap_future(verifiers.submit(row, response))
        return JSONResponse({**body, "response": response, **verdict})

    return verify


async def _nothing(_: Request) -> JSONResponse:
    return JSONResponse({})


async def _aggregate(request: Request) -> JSONResponse:
    """The mean of every number in the verdicts sent, {"verify_responses": [verdict, ...]}."""
    try:
        verdicts = (await request.json())["verify_responses"]
        numbers = [{key: value for key, value in verdict.items() if type(value) in (int, float)} for verdict in verdicts]
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError):
        return JSONResponse({"detail": "verify_responses, a list of verdicts, is wanted"}, 422)
    names = {key for of_one in numbers for key in of_one}
    means = {f"mean/{key}": _mean([of_one[key] for of_one in numbers if key in of_one]) for key in sorted(names)}
    return JSONResponse({"agent_metrics": means})


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)
