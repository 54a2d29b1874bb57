"""`nemo-cascade serve`."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Optional

import typer

# Seconds for vLLM to end by itself, and for open answers when this server ends.
PATIENCE, GRACE = 20, 3
INTERRUPTED = 130
LOCAL = ["127.0.0.1", "localhost"]


def serve(
    weights: Annotated[Path, typer.Argument(help="A step_N of a stage, or a Hugging Face folder")],
    more: Annotated[
        Optional[list[str]], typer.Argument(metavar="[-- FLAG...]", help="vLLM's own flags; without vLLM: keys of policy")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen at; whoever reaches it can use the model")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free")] = 8000,
    name: Annotated[Optional[str], typer.Option(help="What the model is called; without it by its folder")] = None,
    tools: Annotated[str, typer.Option(help="What the page may let it use, run here: python")] = "",
    vllm: Annotated[bool, typer.Option(help="Whether vLLM is used where there is one")] = True,
    vllm_python: Annotated[Optional[Path], typer.Option(help="The interpreter that has vLLM, instead of this one")] = None,
    export: Annotated[Optional[Path], typer.Option(help="Where a checkpoint is exported for vLLM; kept")] = None,
    page: Annotated[bool, typer.Option(help="Without it vLLM's server alone, in the place of this process")] = True,
) -> None:
    """Serve a model: an OpenAI-compatible endpoint and a page.

    By vLLM's own server where there is vLLM, else by the embedded engine, one request at a time. The page is at /, the endpoint at /v1.
    """
    from nemo_cascade.cascade.cli import quiet_logs, refuse
    from nemo_cascade.cascade.plan import RunRefused
    from nemo_cascade.chat import vllm as server
    from nemo_cascade.chat.embedded import is_checkpoint, name_of
    from nemo_cascade.chat.tools import trouble

    quiet_logs()
    offered = [tool.strip() for tool in tools.split(",") if tool.strip()]
    problems = [f"--tools: {problem}" for problem in map(trouble, offered) if problem]
    if problems:
        refuse(problems)
    # A shell's background job ignores SIGINT unless it says otherwise, and a service is stopped by SIGTERM.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        is_checkpoint(weights)
        python = server.python_with_vllm(vllm_python) if vllm else None
        if python is None and not page:
            refuse(["--no-page: there is no vLLM here, and the page is the server; name an interpreter with --vllm-python"])
        # Before anything is loaded, and before it is said that something is served.
        with _listening(host, port) as listening:
            if python is None:
                _serve_embedded(weights, more or [], name, offered, host, listening)
                return
            folder, called = server.folder_of(weights, export), name or name_of(weights)
            if page:
                _serve_vllm(server.command(python, folder, called, "127.0.0.1", _free_port(), more or []), called, offered, host, listening)
                return
            port = listening.getsockname()[1]
        command = server.command(python, folder, called, host, port, more or [])
        os.execvpe(command[0], command, server.environment())
    except RunRefused as error:
        refuse(str(error).splitlines())
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None


def _listening(host: str, port: int) -> socket.socket:
    from nemo_cascade.cascade.plan import RunRefused

    try:
        return socket.create_server((host, port))
    except OSError as error:
        raise RunRefused(f"--host {host} --port {port}: {error.strerror or error}; choose another") from error


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return probe.getsockname()[1]


def _serve_embedded(weights: Path, overrides: list[str], name: str | None, tools: list[str], host: str, listening: socket.socket) -> None:
    from nemo_cascade.chat.embedded import opened
    from nemo_cascade.chat.server import application

    model = opened(weights, overrides, name)
    try:
        _run(application(model, tools), f"{model.name} by the embedded engine, one request at a time", host, listening)
    finally:
        model.close()


def _serve_vllm(command: list[str], name: str, tools: list[str], host: str, listening: socket.socket) -> None:
    from nemo_cascade.chat.endpoint import Served
    from nemo_cascade.chat.server import application

    url = f"http://127.0.0.1:{command[command.index('--port') + 1]}"
    with _vllm(command, url) as process:
        model = Served(f"{url}/v1", name)
        try:
            _run(application(model, tools, upstream=url), f"{name} by vLLM", host, listening, process)
        finally:
            model.close()


@contextlib.contextmanager
def _vllm(command: list[str], url: str) -> Iterator[subprocess.Popen]:
    """vLLM's server once it answers, ended at the end with all its processes. Raises RunRefused where it ends before that."""
    import httpx

    from nemo_cascade.cascade.plan import RunRefused
    from nemo_cascade.chat.vllm import environment

    print(f"starting {' '.join(command)}", flush=True)
    process = subprocess.Popen(command, env=environment(), start_new_session=True)
    try:
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{url}/health").is_success:
                    break
            if process.poll() is not None:
                raise RunRefused(f"vLLM ended with status {process.returncode} before it served; what it said stands above")
            time.sleep(0.5)
        yield process
    finally:
        _end(process)


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(PATIENCE)
    # Its engine is a process of its own, which may have been left.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _run(app, what: str, host: str, listening: socket.socket, process: subprocess.Popen | None = None) -> None:
    """Serves until Ctrl-C or SIGTERM, or until `process` ends, which is no success."""
    import uvicorn
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    if host in LOCAL:
        # Else a site whose name leads here could talk to the model in the name of its visitor.
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=LOCAL)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=GRACE))
    if process is not None:

        def watch() -> None:
            process.wait()
            server.should_exit = True

        threading.Thread(target=watch, daemon=True).start()
    shown = f"[{host}]" if ":" in host else host
    print(f"serving {what}: http://{shown}:{listening.getsockname()[1]}/ (the endpoint: /v1)", flush=True)
    with contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listening])
    if process is not None and process.poll() is not None:
        print(f"vLLM ended with status {process.returncode}; what it said stands above", flush=True)
        raise SystemExit(1)
