"""`cascade_manifest.json`: what each stage of a run directory has come to; the only thing stages share.

Written to a temporary file, synced and renamed, so that a kill at any moment leaves either the old manifest or the new
one. A digest over its content tells when it was edited or damaged; it is refused then, because which checkpoint came from which
is known nowhere else. For the same reason the one before the last change is kept beside it: a run that goes on from that one only
repeats its last transition. Holds no configuration (that is each stage's config.yaml) and decides nothing (that is the runner's).
"""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path

from nemo_cascade.data.files import write_atomically
from nemo_cascade.data.hashes import json_hash

FILE = "cascade_manifest.json"
BACKUP = f"{FILE}.bak"
FORMAT = 2
PENDING, RUNNING, DONE = "pending", "running", "done"


class ManifestError(ValueError):
    """A manifest that cannot be read; the message names the file and the remedy."""


@dataclass
class StageRecord:
    """One stage. Paths are relative to the run directory; seconds are those of the attempt that finished.

    scores: domain -> {"mean": average reward in [0, 1], "n": prompts}. teachers: domain -> stage, or folder outside of the run;
    teacher_facts: domain -> what `provenance.of_teachers` found. fingerprint: hashes of its tokenizer and template. parent: where it really
    started, which after a rollback is not the parent its config names. gate: the verdict of `gate.judge`. handover: what
    `handover.check` found. scores_hash: sha256 of its `validation.json`, from which gates and teachers are judged. data: the files of rows
    that it trains and is scored on -> their sha256 when it began. imported: where the weights come from that another program trained
    (`interop.import_checkpoint`), None for those that were trained here.
    """

    directory: str
    status: str = PENDING
    config_hash: str | None = None
    parent: str | None = None
    teacher_only: bool = False
    teachers: dict[str, str] = field(default_factory=dict)
    teacher_facts: dict[str, dict] = field(default_factory=dict)
    fingerprint: dict[str, str] | None = None
    checkpoint: str | None = None
    checkpoint_hash: str | None = None
    scores: dict[str, dict] = field(default_factory=dict)
    scores_hash: str | None = None
    seconds: float | None = None
    gate: dict | None = None
    handover: dict | None = None
    data: dict[str, str] = field(default_factory=dict)
    imported: dict | None = None

    @property
    def rolled_back(self) -> bool:
        """Whether later stages start from its parent instead."""
        return self.gate is not None and self.gate["action"] == "rollback"


@dataclass
class Manifest:
    """All stages by name, in the order they run. redo: a --from-stage or --redo, as it was given, that has not come to its end."""

    run_dir: Path
    stages: dict[str, StageRecord] = field(default_factory=dict)
    redo: str | None = None

    @property
    def path(self) -> Path:
        return self.run_dir / FILE

    @classmethod
    def load(cls, run_dir: Path) -> "Manifest":
        """Reads the manifest of a run directory; empty when there is none. Raises ManifestError for a broken file."""
        path = Path(run_dir) / FILE
        if not path.exists():
            return cls(Path(run_dir))
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
            if document["format"] != FORMAT:
                raise ManifestError(
                    f"{path}: format {document['format']}, this version reads {FORMAT}; finish this run with the version that "
                    "began it, or use another run_dir"
                )
            if document.pop("digest") != json_hash(document):
                raise ManifestError(f"{path}: edited or damaged since it was written (its digest does not fit); {_remedy(path)}")
            stages = {name: StageRecord(**record) for name, record in document["stages"].items()}
            return cls(Path(run_dir), stages, document["redo"])
        except (json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise ManifestError(
                f"{path}: not a manifest ({type(error).__name__}: {error}); {_remedy(path)}"
            ) from error

    def save(self) -> None:
        """Replaces the file atomically, if anything changed; what it was stays as its backup."""
        document = {
            "format": FORMAT,
            "redo": self.redo,
            "stages": {name: dataclasses.asdict(record) for name, record in self.stages.items()},
        }
        text = json.dumps({"digest": json_hash(document), **document}, indent=2) + "\n"
        self.run_dir.mkdir(parents=True, exist_ok=True)
        before = self.path.read_text(encoding="utf-8") if self.path.exists() else None
        if before is not None and before != text:
            write_atomically(self.run_dir / BACKUP, before)
        if before != text:
            write_atomically(self.path, text)

    def add(self, name: str) -> StageRecord:
        """The record of a stage, made when the manifest does not know it yet; its folder is `<NN-name>`, NN from 01."""
        if name not in self.stages:
            self.stages[name] = StageRecord(directory=f"{len(self.stages) + 1:02d}-{name}")
        return self.stages[name]

    def directory(self, name: str) -> Path:
        """The folder of a stage."""
        return self.run_dir / self.stages[name].directory

    def checkpoint(self, name: str) -> Path | None:
        """The final checkpoint of a finished stage, None before."""
        relative = self.stages[name].checkpoint
        return self.run_dir / relative if relative else None

    def standing(self, name: str) -> str:
        """The stage whose checkpoint stands for `name` as a parent: itself, or, rolled back, what it started from."""
        while self.stages[name].rolled_back:
            name = self.stages[name].parent
        return name

    def reset(self, name: str) -> None:
        """Back to a stage that was never started; its folder keeps its name."""
        self.stages[name] = StageRecord(directory=self.stages[name].directory)


def _remedy(path: Path) -> str:
    return (
        f"undo the edit, or put the manifest before its last change back (mv {path.with_name(BACKUP)} {path}), which repeats at most "
        "the last stage's end; what a stage computed is changed by its config and --from-stage, never here"
    )
