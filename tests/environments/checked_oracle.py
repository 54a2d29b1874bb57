"""Gym's side: python checked_oracle.py WHEEL < asked.json > verdicts.json, in a Python that has what Gym's servers import.

That is: fastapi, pydantic, PyYAML, xmltodict==1.0.2, openapi-schema-validator==0.6.3, math-verify==0.8.0 with
antlr4_13_2, reasoning-gym==0.1.25. Reads [[environment, row, response], ...], writes for each {"reward",
"extracted_answer"}, or {"error"} where Gym's server would answer 500. `nemo_gym` itself, which needs far more, is stood in
for by bare models.
"""

import asyncio
import contextlib
import importlib
import io
import json
import sys
import tempfile
import types
import zipfile
from types import SimpleNamespace

import pydantic

SERVERS = {
    "mcqa": ("mcqa", "MCQA"),
    "structured_outputs": ("structured_outputs", "StructuredOutputs"),
    "math": ("math_with_judge", "LibraryJudgeMath"),
    "reasoning_gym": ("reasoning_gym", "ReasoningGym"),
}


class Response(pydantic.BaseModel):
    """Of OpenAI's model, what Gym's verifiers read."""

    model_config = pydantic.ConfigDict(extra="allow")
    output: list
    error: object = None

    @pydantic.field_validator("output")
    @classmethod
    def as_objects(cls, items):
        return [json.loads(json.dumps(item), object_hook=lambda found: SimpleNamespace(**found)) for item in items]

    @property
    def output_text(self) -> str:
        parts = (part for item in self.output if item.type == "message" for part in item.content)
        return "".join(part.text for part in parts if part.type == "output_text")


def stand_in() -> None:
    """Modules under the names that Gym's servers import from."""

    class Any(pydantic.BaseModel):
        model_config = pydantic.ConfigDict(extra="allow")

    class RunRequest(pydantic.BaseModel):
        responses_create_params: object = None

    class VerifyRequest(RunRequest):
        response: Response

    class VerifyResponse(Any):
        reward: float

    class Server(Any):
        config: object = None

    names = {
        "nemo_gym": {},
        "nemo_gym.base_resources_server": {
            "BaseResourcesServerConfig": Any,
            "BaseRunRequest": RunRequest,
            "BaseVerifyRequest": VerifyRequest,
            "BaseVerifyResponse": VerifyResponse,
            "SimpleResourcesServer": Server,
        },
        "nemo_gym.config_types": {"ModelServerRef": Any},
        "nemo_gym.openai_utils": {
            "NeMoGymEasyInputMessage": Any,
            "NeMoGymResponse": Response,
            "NeMoGymResponseCreateParamsNonStreaming": Any,
        },
        "nemo_gym.reward_profile": {"compute_pass_majority_metrics": None, "highest_k_metrics": None},
        "nemo_gym.server_utils": {"get_response_json": None},
    }
    for name, content in names.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        sys.modules[name] = module


def verdict(app, name: str, row: dict, response: dict) -> dict:
    prefix = SERVERS[name][1]
    config = SimpleNamespace(grading_mode=None, xml_coerce_types=True, should_use_judge=False)
    # Gym's server has this mode too, but only lets its config choose it.
    if row.get("grading_mode") == "lenient_answer_colon_md":
        config.grading_mode, row = row["grading_mode"], {key: row[key] for key in row if key != "grading_mode"}
    try:
        if name == "math":
            # Not in a process of its own, which is how Gym calls it, but for the same verdict.
            text = Response(output=response["output"]).output_text
            reward, extracted = app._run_math_verify(library_verifier(app), str(row["expected_answer"]), text)
            return {"reward": reward, "extracted_answer": extracted}
        server = getattr(app, f"{prefix}ResourcesServer").model_construct(config=config)
        found = asyncio.run(server.verify(getattr(app, f"{prefix}VerifyRequest")(**row, response=response)))
    except (Exception, pydantic.ValidationError) as error:
        return {"error": type(error).__name__}
    return {"reward": found.reward, "extracted_answer": getattr(found, "extracted_answer", None)}


def library_verifier(app):
    return app.math_metric(
        gold_extraction_target=(app.LatexExtractionConfig(),),
        pred_extraction_target=(app.ExprExtractionConfig(), app.LatexExtractionConfig()),
    )


def main(wheel: str) -> None:
    asked = json.load(sys.stdin)
    stand_in()
    with tempfile.TemporaryDirectory() as code:
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(code, [f"resources_servers/{folder}/app.py" for folder, _ in SERVERS.values()])
        sys.path.insert(0, code)
        apps = {
            name: importlib.import_module(f"resources_servers.{SERVERS[name][0]}.app") for name in {one[0] for one in asked}
        }
        with contextlib.redirect_stdout(io.StringIO()):
            verdicts = [verdict(apps[name], name, row, response) for name, row, response in asked]
    json.dump(verdicts, sys.stdout)


if __name__ == "__main__":
    main(sys.argv[1])
