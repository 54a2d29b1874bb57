"""Programs, limits and results as JSON, for a sandbox on another host."""

import dataclasses
import json

from nemo_cascade.sandbox.inside import values
from nemo_cascade.sandbox.programs import Call, Limits, Program, Result

TOKEN = "NEMO_CASCADE_SANDBOX_TOKEN"


def ask(program: Program, limits: Limits) -> bytes:
    """The body of a request."""
    given = {field.name: getattr(program, field.name) for field in dataclasses.fields(program)}
    if program.call is not None:
        given["call"] = [program.call.function, values.encode((program.call.args, program.call.kwargs))]
    return json.dumps({"program": given, "limits": dataclasses.asdict(limits)}).encode()


def asked(body: bytes) -> tuple[Program, Limits]:
    """What was asked. Raises ValueError, KeyError or TypeError for a body that `ask` did not write."""
    found = json.loads(body)
    given, limits = found["program"], Limits(**found["limits"])
    if given["call"] is not None:
        function, arguments = given["call"]
        given["call"] = Call(function, *values.decode(arguments))
    program = Program(**{**given, "args": tuple(given["args"])})
    texts = [program.source, program.stdin, *program.args, *program.files, *program.files.values()]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("source, stdin, args and files must be texts")
    return program, limits


def answer(result: Result) -> bytes:
    """The body of a reply."""
    return json.dumps(dataclasses.asdict(result)).encode()


def answered(body: bytes) -> Result:
    """The result in a reply."""
    return Result(**json.loads(body))
