"""The public names of the modules that documents speak of, read from the source without importing it."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
# In the order of the page: what a reader is likeliest to call first.
MODULES = (
    "nemo_cascade.algorithms",
    "nemo_cascade.environments",
    "nemo_cascade.environments.response",
    "nemo_cascade.environments.workers",
    "nemo_cascade.sandbox",
    "nemo_cascade.cascade.config",
    "nemo_cascade.cascade.compose",
    "nemo_cascade.cascade.cli",
    "nemo_cascade.cascade.runner",
    "nemo_cascade.stages.context",
    "nemo_cascade.stages.config",
    "nemo_cascade.stages.rl",
    "nemo_cascade.stages.sft",
    "nemo_cascade.stages.estimators",
    "nemo_cascade.stages.prompts",
    "nemo_cascade.stages.start",
    "nemo_cascade.stages.step",
    "nemo_cascade.stages.metrics",
    "nemo_cascade.stages.validations",
    "nemo_cascade.stages.stopwatch",
    "nemo_cascade.rollout.types",
    "nemo_cascade.rollout.protocol",
    "nemo_cascade.engine.policy",
    "nemo_cascade.engine.config",
    "nemo_cascade.engine.convert",
    "nemo_cascade.engine.parallel",
    "nemo_cascade.models.presets",
    "nemo_cascade.data.rows",
    "nemo_cascade.data.sample",
    "nemo_cascade.data.long_context",
    "nemo_cascade.scaling.types",
    "nemo_cascade.chat.terminal",
    "nemo_cascade.interop.nemo_run",
    "nemo_cascade.interop.bridge",
)


def source_of(module: str) -> Path:
    """The module's file."""
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def public_names(module: str) -> list[str]:
    """`__all__` where there is one, else the classes, functions and constants of the module itself whose names begin without _."""
    tree = ast.parse(source_of(module).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    found = []
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.append(node.name)
        elif isinstance(node, ast.Assign):
            found += [target.id for target in node.targets if isinstance(target, ast.Name)]
    return [name for name in dict.fromkeys(found) if not name.startswith("_")]


def page() -> str:
    """Markdown: mkdocstrings' directive a module, with its members named."""
    parts = []
    for module in MODULES:
        members = "\n".join(f"        - {name}" for name in public_names(module))
        parts.append(f"::: {module}\n    options:\n      members:\n{members}\n")
    return "\n".join(parts)
