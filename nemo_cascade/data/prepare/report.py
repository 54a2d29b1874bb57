"""What `prepare.json` says, as a table and as keys for a config."""

from pathlib import Path

from rich.table import Table

from nemo_cascade.data.prepare.catalogue import ReleasedSet


def table(report: dict) -> Table:
    """A row a subset: rows in and out, those dropped by reason, what was mended, tokens."""
    is_sft = report["packs"] > 0
    shown = Table(title=f"{report['set']}: {report['packs']:,} packs" if is_sft else report["set"])
    for title in ("subset", "rows in", "rows out", "dropped", "mended", *(("documents", "tokens") if is_sft else ())):
        shown.add_column(title, justify="left" if title in ("subset", "dropped", "mended") else "right")
    for name, counts in report["subsets"].items():
        sizes = [f"{counts[key]:,}" for key in ("documents", "tokens")] if is_sft else []
        rows = [f"{counts[key]:,}" for key in ("rows_in", "rows_out")]
        shown.add_row(name, *rows, _told(counts["dropped"]), _told(counts["mended"]), *sizes)
    return shown


def config_keys(report: dict, released: ReleasedSet, out: Path) -> list[str]:
    """key=value for the stages that the set feeds."""
    if released.kind == "sft":
        # Packs are all that a stage trains on, so the files that the config names go first.
        return ["~cascade.stages.sft.data.train", f"cascade.stages.sft.data.train.packed.data_path={out}"]
    keys: dict[str, Path] = {}
    for name in report["files"]:
        subset, domain, split = Path(name).parts
        where = f"cascade.stages.{released.subset(subset).stage}.data" if split == "train.jsonl" else "data"
        # What several subsets have of a domain is split alike, so that one validation file does.
        keys.setdefault(f"++{where}.{Path(split).stem}.{domain}.data_path", out / name)
    return [f"{key}={path}" for key, path in keys.items()]


def _told(counts: dict[str, int]) -> str:
    """The most frequent first."""
    return "\n".join(f"{count:,} {name}" for name, count in sorted(counts.items(), key=lambda each: (-each[1], each[0])))
