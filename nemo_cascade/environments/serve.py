"""Our environments over NeMo Gym's HTTP: `/<environment>/verify`, for trainers that talk to Gym's resources servers.

A resources server of Gym's own is one environment at one address; give such a client `http://host:port/math` as its server's
address. Where one environment is served alone, its routes are at the root too, because Gym's agents know a host and a port.

An environment with `session` has a route for each tool: Gym's simple agent posts the arguments of a call to `/<tool>`, with the
cookie that `/seed_session` gave, and hands what comes back to the model. It keeps only the cookies of the last answer, so that
every answer has it.
"""

import asyncio
import contextlib
import statistics

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route

from nemo_cascade import environments
from nemo_cascade.environments import foreign
from nemo_cascade.environments.sessions import Sessions
from nemo_cascade.environments.workers import Verifiers

# Seconds between two looks whether a tool has room for one more.
PAUSE = 0.05


def application(names: list[str], workers: int = 0) -> Starlette:
    """An ASGI application that serves these environments. Raises KeyError for one that is not registered or needs a
    judge."""
    for name in names:
        if not hasattr(environments.get(name), "verify"):
            raise KeyError(f"{name} cannot be served: a judge compares its replies, and no reply has a reward alone")
    verifiers, sessions = Verifiers(workers), {name: Sessions() for name in names}

    @contextlib.asynccontextmanager
    async def until_the_end(_):
        with verifiers:
            yield
        for of_one in sessions.values():
            of_one.end_all()

    routes = [Route("/", lambda _: JSONResponse({"environments": names}))]
    for name in names:
        of_one = _routes(name, verifiers, sessions[name])
        routes += [Mount(f"/{name}", routes=of_one), *(of_one if len(names) == 1 else [])]
    return Starlette(routes=routes, lifespan=until_the_end)


def _routes(name: str, verifiers: Verifiers, sessions: Sessions) -> list[Route]:
    routes = [
        Route("/verify", _verify(name, verifiers, sessions), methods=["POST"]),
        Route("/aggregate_metrics", _aggregate, methods=["POST"]),
    ]
    if not hasattr(environments.get(name), "session"):
        # It keeps nothing between calls, so a session is whatever its caller says it is.
        return [*routes, Route("/seed_session", _nothing, methods=["POST"])]
    routes.append(Route("/seed_session", _seed(name, sessions), methods=["POST"]))
    # A model may call anything.
    return [*routes, Route("/{tool:path}", _call(name, sessions), methods=["POST"])]


def _seed(name: str, sessions: Sessions):
    async def seed_session(request: Request) -> Response:
        try:
            row = {**foreign.read(await request.body())}
        except (ValueError, TypeError) as error:
            return _refusal(f"a row in JSON is wanted ({_named(error)})")
        problem = _problem(name, row)
        if problem:
            return _refusal(problem)
        sessions.end(request.cookies.get(_cookie(name)))
        return _with_cookie(_answer({}), name, sessions.begin(environments.get(name).session(row)))

    return seed_session


def _call(name: str, sessions: Sessions):
    async def call(request: Request) -> Response:
        token = request.cookies.get(_cookie(name))
        session = sessions.get(token)
        if session is None:
            return _answer({"detail": "no session, or none any more; POST the row to seed_session and keep its cookie"}, 400)
        told = await _told(name, session, request.path_params["tool"], (await request.body()).decode(errors="replace"))
        return _with_cookie(Response(told, media_type="application/json"), name, token)

    return call


async def _told(name: str, session, tool: str, arguments: str) -> str:
    """What the tool says. Nobody else waits for one that runs programs."""
    if hasattr(session, "prepare"):
        while not session.prepare(wait=False):
            await asyncio.sleep(PAUSE)
    elif not environments.in_threads(name):
        return session.call(tool, arguments)
    return await asyncio.to_thread(session.call, tool, arguments)


def _cookie(name: str) -> str:
    return f"{name}_session"


def _with_cookie(response: Response, name: str, token: str) -> Response:
    response.set_cookie(_cookie(name), token, httponly=True, samesite="lax")
    return response


def _verify(name: str, verifiers: Verifiers, sessions: Sessions):
    async def verify(request: Request) -> Response:
        try:
            body = foreign.read(await request.body())
            response = body.pop("response")
            response["output"]
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            return _refusal(f"a row in JSON with an OpenAI response under `response` is wanted ({_named(error)})")
        problem = _problem(name, body)
        if problem:
            return _refusal(problem)
        sessions.end(request.cookies.get(_cookie(name)))
        verdict = await asyncio.wrap_future(verifiers.submit(_row(name, body), response))
        try:
            return _answer({**body, "response": response, **verdict})
        except (ValueError, TypeError) as error:
            return _answer({"detail": f"the verdict of {name} cannot be written as JSON ({_named(error)})"}, 500)

    return verify


def _row(name: str, body: dict) -> dict:
    return {**body, "agent_ref": {"name": name + environments.AGENT_SUFFIX}}


def _problem(name: str, body: dict) -> str | None:
    """What keeps the environment from verifying replies to the row that was sent."""
    row = _row(name, body)
    try:
        problem = environments.row_problem(row)
        if not problem and environments.needs_judge(row):
            problem = "a judge has to be asked about them, and none is served"
    except (ValueError, AttributeError, LookupError, TypeError) as error:
        problem = _named(error)
    return f"{name} cannot verify replies to this row: {problem}; mend the row" if problem else None


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
