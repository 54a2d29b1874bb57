"""Gym's side: python long_context_oracle.py WHEEL < pairs.json > rewards.json.

Reads [[row, reply], ...] and writes Gym's reward for each: of its server `mrcr` where a row has a string to prepend, else of
`ruler`. Its `verify` runs as it is; of the package around it, which wants a gigabyte of others, there are stand-ins that hold values.
"""

import asyncio
import json
import sys
import types
import zipfile


class Held:
    """Whatever is passed by keyword."""

    def __init__(self, **values):
        self.__dict__.update(values)

    def model_dump(self) -> dict:
        return dict(self.__dict__)


def server(wheel: str, name: str, kind: str):
    source = zipfile.ZipFile(wheel).read(f"resources_servers/{name}/app.py").decode()
    module = types.ModuleType(name)
    exec(compile(source, f"{name}/app.py", "exec"), module.__dict__)
    return getattr(module, kind)()


def main(wheel: str) -> None:
    base, profile = types.ModuleType("nemo_gym.base_resources_server"), types.ModuleType("nemo_gym.reward_profile")
    for name in ("BaseResourcesServerConfig", "BaseVerifyRequest", "BaseVerifyResponse", "SimpleResourcesServer"):
        setattr(base, name, type(name, (Held,), {}))
    for name in ("compute_pass_majority_metrics", "compute_subset_metrics", "highest_k_metrics"):
        setattr(profile, name, None)
    sys.modules |= {"nemo_gym": types.ModuleType("nemo_gym"), base.__name__: base, profile.__name__: profile}
    mrcr, ruler = server(wheel, "mrcr", "MRCRResourcesServer"), server(wheel, "ruler", "RulerResourcesServer")

    async def rewards() -> list[float]:
        made = []
        for row, reply in json.load(sys.stdin):
            judge = mrcr if "random_string_to_prepend" in row else ruler
            body = Held(**row, response=Held(output_text=reply))
            made.append((await judge.verify(body)).reward)
        return made

    json.dump(asyncio.run(rewards()), sys.stdout)


if __name__ == "__main__":
    main(*sys.argv[1:])
