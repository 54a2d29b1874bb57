"""The page at `/`, its conversations at `/chat`, and `/v1`: of weights in this process, or passed on to the server that has them.

A conversation's messages are the page's, which sends them with each request; here are only its tools, found by a token that nobody can guess.
"""

import asyncio
import base64
import contextlib
import dataclasses
import hashlib
import logging
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from importlib import resources

import httpx
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from nemo_cascade.chat.completions import Answer, Asked, Refused, asked, messages_of, settings_of, typed
from nemo_cascade.chat.conversation import Conversation
from nemo_cascade.chat.tools import TOOLS
from nemo_cascade.chat.turns import Called, ChatError, Ended, Event, Model, Said, Thought, Told
from nemo_cascade.environments import foreign
from nemo_cascade.environments.sessions import Sessions

logger = logging.getLogger(__name__)

# Conversations of pages whose tools are kept.
MOST = 64
TYPES = {Thought: "thought", Said: "text", Called: "call", Told: "result", Ended: "end"}
STREAM = {"media_type": "text/event-stream", "headers": {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}}
# Of a connection, not of what is said over it.
HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "host", "te", "trailer", "upgrade", "server", "date"}


def application(model: Model, tools: list[str] = (), upstream: str | None = None) -> Starlette:
    """upstream: the address of an OpenAI-compatible server to which `/v1` is passed on; without one `model` answers there."""
    sessions, stops = Sessions(MOST), {}
    client = httpx.AsyncClient(base_url=upstream, timeout=None) if upstream else None

    @contextlib.asynccontextmanager
    async def until_the_end(_):
        yield
        for stop in stops.values():
            stop()
        sessions.end_all()
        if client is not None:
            await client.aclose()

    def info(_: Request) -> Response:
        return JSONResponse({"model": model.name, "tools": list(tools)})

    routes = [
        Route("/", page),
        Route("/info", info),
        Route("/chat", refusing(_chat(model, tools, sessions, stops)), methods=["POST"]),
        Route("/stop", refusing(_stop(stops)), methods=["POST"]),
    ]
    if client is not None:
        routes.append(Route("/v1/{path:path}", _passed_on(client), methods=["GET", "POST"]))
    else:
        listed = {"object": "list", "data": [{"id": model.name, "object": "model", "owned_by": "nemo_cascade"}]}
        routes += [
            Route("/v1/models", lambda _: JSONResponse(listed)),
            Route("/v1/chat/completions", refusing(_completions(model)), methods=["POST"]),
        ]
    return Starlette(routes=routes, lifespan=until_the_end)


def page(_: Request) -> Response:
    """The page, which may load nothing and talk to nobody else, and whose own script is the only one that runs."""
    html = resources.files("nemo_cascade.chat").joinpath("page.html").read_text(encoding="utf-8")
    script, style = (re.search(rf"<{tag}>(.*?)</{tag}>", html, re.DOTALL)[1] for tag in ("script", "style"))
    policy = "default-src 'none'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    return HTMLResponse(html, headers={"Content-Security-Policy": f"{policy}script-src {_hash(script)}; style-src {_hash(style)}"})


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def refusing(answer: Callable):
    """`answer(body, request)` of a request's JSON; what it refuses is said as OpenAI says it."""

    async def endpoint(request: Request) -> Response:
        try:
            # A form of another site could be sent without being asked for; JSON cannot.
            if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
                raise Refused("Content-Type: application/json is wanted", 415)
            try:
                body = foreign.read(await request.body())
            except ValueError as error:
                raise Refused(f"a JSON object is wanted ({error})") from error
            return await answer(body, request)
        except Refused as error:
            return _refusal(str(error), error.status)
        except ChatError as error:
            return _refusal(str(error), 400)
        except Exception as error:  # noqa: BLE001 - clients read JSON
            logger.exception("a request failed")
            return _refusal(_named(error), 500)

    return endpoint


def _refusal(message: str, status: int) -> Response:
    return JSONResponse(_error(message, status), status)


def _error(message: str, status: int) -> dict:
    return {"error": {"message": message, "type": "invalid_request_error" if status < 500 else "server_error", "code": status}}


# ----------------------------------------------------------------------------------------------------- /v1


def _completions(model: Model):
    async def completions(body: dict, request: Request) -> Response:
        wanted = asked(body, model.name)
        turn, answer = model.turn(wanted.messages, wanted.tools, wanted.settings), Answer(model.name)
        events = in_thread(iter(turn), threading.Event())
        # What is wrong with the conversation is told before anything is said.
        first = await anext(events)
        if wanted.stream:
            return StreamingResponse(_chunks(first, events, turn, answer, wanted), **STREAM)
        async with contextlib.aclosing(events):
            async for _ in events:
                if await request.is_disconnected():
                    return Response(status_code=499)
        return JSONResponse(answer.whole(turn))

    return completions


async def _chunks(first: Event, events: AsyncIterator[Event], turn, answer: Answer, wanted: Asked) -> AsyncIterator[bytes]:
    async with contextlib.aclosing(events):
        yield _data(answer.first())
        yield _data(answer.chunk(first))
        try:
            async for event in events:
                yield _data(answer.chunk(event))
        except Exception as error:  # noqa: BLE001 - the status is sent; what is left is to tell
            yield _data(_error(_named(error), 500))
            return
        if wanted.with_usage:
            yield _data(answer.usage(turn))
        yield b"data: [DONE]\n\n"


def _passed_on(client: httpx.AsyncClient):
    async def passed_on(request: Request) -> Response:
        headers = {name: value for name, value in request.headers.items() if name not in HOP}
        sent = client.build_request(
            request.method, request.url.path, params=request.url.query.encode(), headers=headers, content=await request.body()
        )
        try:
            answer = await client.send(sent, stream=True)
        except httpx.TransportError as error:
            return _refusal(f"the model's server cannot be reached ({_named(error)})", 502)
        kept = {name: value for name, value in answer.headers.items() if name not in HOP}
        return StreamingResponse(answer.aiter_bytes(), answer.status_code, kept, background=BackgroundTask(answer.aclose))

    return passed_on


# ---------------------------------------------------------------------------------------------------- /chat


def _chat(model: Model, tools: list[str], sessions: Sessions, stops: dict[str, Callable[[], None]]):
    async def chat(body: dict, _: Request) -> Response:
        if not isinstance(body, dict):
            raise Refused("a JSON object is wanted, with messages")
        messages, settings = messages_of(body.get("messages")), settings_of(typed(body, "settings", dict, {}))
        tool = body.get("tool")
        if tool is not None and tool not in tools:
            raise Refused(f"tool: there is no {tool!r} here")
        token = body.get("conversation")
        talk = sessions.get(token) if isinstance(token, str) else None
        if talk is None:
            talk = Conversation(model)
            token = sessions.begin(talk)
        if token in stops:
            raise Refused("this conversation's last answer has not ended yet", 409)
        talk.open_tools, talk.messages, stopped = TOOLS.get(tool), messages, threading.Event()
        if tool is None:
            await asyncio.to_thread(talk.close)

        def stop() -> None:
            stopped.set()
            talk.break_call()

        events = in_thread(talk.go_on(settings), stopped)
        return StreamingResponse(_told(token, talk, len(messages), events, stop, stopped, stops), **STREAM)

    return chat


async def _told(
    token: str, talk: Conversation, before: int, events, stop: Callable[[], None], stopped: threading.Event, stops: dict
) -> AsyncIterator[bytes]:
    """What the page is told, at the end the messages that it shall send again. `stop` is in `stops` as long as there is something to stop."""
    stops[token], messages = stop, talk.messages
    try:
        yield _data({"type": "begin", "conversation": token})
        try:
            async with contextlib.aclosing(events):
                async for event in events:
                    yield _data({"type": TYPES[type(event)], **dataclasses.asdict(event)})
        except Exception as error:  # noqa: BLE001 - the status is sent; what is left is to tell
            if not stopped.is_set():
                yield _data({"type": "error", "text": str(error) if isinstance(error, ChatError) else _named(error)})
        yield _data({"type": "messages", "messages": messages[before:]})
    finally:
        stops.pop(token, None)
        stop()


def _stop(stops: dict[str, Callable[[], None]]):
    async def stop(body: dict, _: Request) -> Response:
        token = body.get("conversation") if isinstance(body, dict) else None
        under_way = stops.get(token) if isinstance(token, str) else None
        if under_way is not None:
            await asyncio.to_thread(under_way)
        return JSONResponse({"stopped": under_way is not None})

    return stop


def _data(value: dict) -> bytes:
    return b"data: " + foreign.write(value) + b"\n\n"


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:500]


async def in_thread(events: Iterator[Event], stopped: threading.Event) -> AsyncIterator[Event]:
    """The events of a generator that blocks, run in a thread of its own until it ends or `stopped` is set; closed in any case."""
    loop, told = asyncio.get_running_loop(), asyncio.Queue()

    def tell(item) -> None:
        # Nobody listens any more once the server has ended.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(told.put_nowait, item)

    def work() -> None:
        end: Exception | None = None
        try:
            with contextlib.closing(events):
                for event in events:
                    if stopped.is_set():
                        break
                    tell(event)
        except Exception as error:  # noqa: BLE001 - raised again where it is awaited
            end = error
        tell(end)

    threading.Thread(target=work, daemon=True).start()
    try:
        while isinstance(item := await told.get(), Event):
            yield item
    except BaseException:  # nobody listens any more
        stopped.set()
        raise
    if item is not None:
        raise item
