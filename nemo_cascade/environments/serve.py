"""Our environments over NeMo Gym's HTTP: `/<environment>/verify`, for trainers that talk to Gym's resources servers.

A resources server of Gym's own is one environment at one address; give such a client `http://host:port/math` as its server's
address.
"""

import asyncio
import contextlib
import statistics

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from nemo_cascade import environments
from nemo_cascade.environments import foreign
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
    async def verify(request: Request) -> Response:
        try:
            body = foreign.read(await request.body())
            response = body.pop("response")
            response["output"]
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            return _refusal(f"a row in JSON with an OpenAI response under `response` is wanted ({_named(error)})")
        row = {**body, "agent_ref": {"name": name + environments.AGENT_SUFFIX}}
        try:
            problem = environments.row_problem(row)
            if not problem and environments.needs_judge(row):
                problem = "a judge has to be asked about them, and none is served"
        except (ValueError, AttributeError, LookupError, TypeError) as error:
            problem = _named(error)
        if problem:
            return _refusal(f"{name} cannot verify replies to this row: {problem}; mend the row")
        verdict = await asyncio.wrap_future(verifiers.submit(row, response))
        try:
            return _answer({**body, "response": response, **verdict})
        except (ValueError, TypeError) as error:
            return _answer({"detail": f"the verdict of {name} cannot be written as JSON ({_named(error)})"}, 500)

    return verify


def _answer(value: dict, status: int = 200) -> Response:
    return Response(foreign.write(value), status, media_type="application/json")


def _refusal(reason: str) -> Response:
    return _answer({"detail": reason}, 422)


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


async def _nothing(_: Request) -> JSONResponse:
    return JSONResponse({})


async def _aggregate(request: Request) -> Response:
    """The mean of every number in the verdicts sent, {"verify_responses": [verdict, ...]}."""
    try:
        values: dict[str, list[float]] = {}
        for verdict in foreign.read(await request.body())["verify_responses"]:
            for key, value in verdict.items():
                if type(value) in (int, float):
                    values.setdefault(key, []).append(foreign.number(value))
        means = {f"mean/{key}": statistics.fmean(values[key]) for key in sorted(values)}
    except (ValueError, KeyError, AttributeError, TypeError, OverflowError) as error:
        return _refusal(f"verify_responses, a list of verdicts, is wanted ({_named(error)})")
    return _answer({"agent_metrics": means})
