"""From a config name and command-line overrides to one composed config, with Hydra's compose API.

Hydra only composes here: no output folders, no change of directory, no logging set-up. Overrides of keys that the file
does not spell out are allowed (`cascade.stages.mopd.grpo.max_num_steps=30`), because strictness comes after
composition, for files and command line alike, in config.py.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

import nemo_cascade
from nemo_cascade.cascade.strict import ConfigErrors, did_you_mean, one_line


def conf_dir() -> Path:
    """The configs that come with the package: `nemo_cascade/conf` in an installed wheel, `conf/` in a checkout."""
    package = Path(nemo_cascade.__file__).parent
    for folder in (package / "conf", package.parent / "conf"):
        if folder.is_dir():
            return folder
    raise ConfigErrors([f"no configs beside {package}; the installation is incomplete, install nemo-cascade again"])


def compose_config(name: str, overrides: Sequence[str] = (), directory: Path | None = None) -> DictConfig:
    """Composes `<directory>/<name>.yaml`; the package's own configs can be named in its defaults list.

    Raises ConfigErrors when the file, a default, the YAML or an override is wrong.
    """
    refuse_unless_key_value(overrides)
    folder, name = _found(name, directory)
    with _initialized(folder, name):
        return compose(name, overrides=_for_hydra(folder, overrides))


def compose_file(file: Path, overrides: Sequence[str] = ()) -> DictConfig:
    """Composes one file, with or without its `.yaml`; as `compose_config`."""
    name, directory = in_file(Path(file))
    return compose_config(name, overrides, directory)


def words_for_hydra(name: str, overrides: Sequence[str] = (), directory: Path | None = None) -> list[str]:
    """The words of a command line with which a program of Hydra's own composes the same. Raises ConfigErrors as compose_config does."""
    refuse_unless_key_value(overrides)
    folder, name = _found(name, directory)
    with _initialized(folder, name):
        return [f"--config-path={folder}", f"--config-name={name}", *_for_hydra(folder, overrides)]


def _found(name: str, directory: Path | None) -> tuple[Path, str]:
    """(the folder of a config, its name there)."""
    if directory is not None and not Path(directory).is_dir():
        raise ConfigErrors([f"--config-dir {directory}: no such folder; name the one that your configs are in"])
    directory = Path(directory).absolute() if directory is not None else conf_dir()
    name = name.removesuffix(".yaml")
    if not (directory / f"{name}.yaml").is_file():
        known = sorted(path.stem for path in directory.glob("*.yaml"))
        raise ConfigErrors([f"--config-name {name}: no {name}.yaml in {directory}{did_you_mean(name, known)}"])
    return directory, name


@contextmanager
def _initialized(folder: Path, name: str) -> Iterator[None]:
    with _one_line_errors(name), initialize_config_dir(str(folder), version_base=None):
        yield


def _for_hydra(folder: Path, overrides: Sequence[str]) -> list[str]:
    """Overrides as Hydra, which must be initialized, takes them: the package's own configs can be named, keys may be new."""
    search_path = [f"hydra.searchpath=['file://{conf_dir()}']"] if folder != conf_dir() else []
    return search_path + [_permissive(override) for override in overrides]


def in_file(file: Path) -> tuple[str, Path]:
    """(name, directory) for `compose_config` of one file, with or without its `.yaml`. Raises ConfigErrors, naming it as it was given."""
    whole = file if file.suffix == ".yaml" else Path(f"{file}.yaml")
    if not whole.is_file():
        known = [str(path) for path in sorted(whole.parent.glob("*.yaml"))]
        shipped = f"; the package's own is --config-name={whole.stem}" if (conf_dir() / whole.name).is_file() else ""
        raise ConfigErrors([f"--config {file}: no file {whole}{shipped or did_you_mean(str(whole), known)}"])
    return whole.stem, whole.parent


def refuse_unless_key_value(overrides: Sequence[str]) -> None:
    """Raises ConfigErrors for arguments that neither set a key nor, with ~, take one away."""
    problems = []
    for override in overrides:
        key, equals, _ = override.partition("=")
        if key.startswith("~") or (equals and key.strip()):
            continue
        named = f", or --config-name={key}" if (conf_dir() / f"{key.removesuffix('.yaml')}.yaml").is_file() else ""
        wanted = f"write {key}=VALUE{named}" if key.strip() else "write key=value"
        problems.append(f"{override}: an override is key=value, without spaces; {wanted}")
    if problems:
        raise ConfigErrors(problems)


def _permissive(override: str) -> str:
    """`key=value` as `++key=value`, which sets the key whether or not the file has it; anything else as it is."""
    (parsed,) = OverridesParser.create().parse_overrides([override])
    plain = not override.startswith(("+", "~")) and parsed.package is None
    return f"++{override}" if plain and not _is_group(parsed.key_or_group) else override


def _is_group(key: str) -> bool:
    """Whether `key=value` chooses a file of a config group."""
    return bool(GlobalHydra.instance().config_loader().get_group_options(key, ObjectType.CONFIG))


@contextmanager
def _one_line_errors(name: str) -> Iterator[None]:
    try:
        yield
    except (HydraException, OmegaConfBaseException, yaml.YAMLError) as error:
        raise ConfigErrors([f"config {name}: {one_line(error)}"]) from error
