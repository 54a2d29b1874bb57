"""The stages as a picture: a row each, the main line straight down, what leaves it beside it, in lanes.

A stage that only teaches or was rolled back stands in a lane of its own, joined with its parent above and, by an arrow, with the
stages that it teaches below. Lines leave and reach a stage at its side. Only places are computed here; the page draws them.
"""

from dataclasses import dataclass

from nemo_cascade.cascade.manifest import Manifest

# Pixels; where a screen is narrow rows are taller and lanes narrower. A main-line stage's arrow to a later one runs BEND to its
# left.
ROW, TALL_ROW, LANE, NARROW_LANE, MARGIN, BEND = 58, 86, 24, 19, 16, 22
CORNER, RADIUS = 7, 7


@dataclass
class Edge:
    """A line of the picture as an SVG path. kind: start, teacher. says: what it means."""

    path: str
    kind: str
    says: str


@dataclass
class Graph:
    """nodes: stage -> (x, y) in pixels."""

    width: int
    height: int
    nodes: dict[str, tuple[int, int]]
    edges: list[Edge]


def draw(manifest: Manifest, row: int = ROW, lane: int = LANE) -> Graph:
    """The picture of a manifest's stages in their order, each `row` pixels high, lines `lane` pixels apart."""
    rows = {name: place for place, name in enumerate(manifest.stages)}
    lanes = _lanes(manifest, rows)
    taught = {(t, name) for name, record in manifest.stages.items() for t in record.teachers.values() if t != record.parent}
    left = MARGIN + (BEND if any(lanes.get(teacher) == lanes[name] for teacher, name in taught) else 0)
    nodes = {name: (left + lane * lanes[name], row * place + row // 2) for name, place in rows.items()}
    edges = []
    for name, record in manifest.stages.items():
        if record.parent in nodes:
            edges.append(Edge(_start_path(nodes[record.parent], nodes[name]), "start", f"{name} starts from {record.parent}"))
        for teacher in dict.fromkeys(record.teachers.values()):
            if teacher in nodes and teacher != record.parent:
                domains = ", ".join(domain for domain, of in record.teachers.items() if of == teacher)
                path = _teacher_path(nodes[teacher], nodes[name])
                edges.append(Edge(path, "teacher", f"{teacher} teaches {name}: {domains}"))
    width = left + MARGIN + lane * max(lanes.values(), default=0)
    return Graph(width, row * len(rows), nodes, edges)


def _lanes(manifest: Manifest, rows: dict[str, int]) -> dict[str, int]:
    """Stage -> lane: 0 for the main line, else the first that is free from the parent to the last stage taught."""
    lanes, taken = {}, []  # taken: (lane, first row, last row)
    for name, record in manifest.stages.items():
        if not record.teacher_only and not record.rolled_back:
            lanes[name] = 0
            continue
        first = rows.get(record.parent, rows[name])
        last = max([rows[name], *(rows[s] for s, r in manifest.stages.items() if name in r.teachers.values())])
        lane = 1
        while any(lane == other and first <= end and begin <= last for other, begin, end in taken):
            lane += 1
        lanes[name] = lane
        taken.append((lane, first, last))
    return lanes


def _start_path(parent: tuple[int, int], child: tuple[int, int]) -> str:
    """Straight down, or out of the parent's side into the child's lane and down that."""
    (x, y), (u, v) = parent, child
    if x == u:
        return f"M{x} {y}V{v}"
    corner = CORNER if u > x else -CORNER
    return f"M{x} {y}H{u - corner}Q{u} {y} {u} {y + CORNER}V{v}"


def _teacher_path(teacher: tuple[int, int], student: tuple[int, int]) -> str:
    """Down the teacher's lane and into the student's side; between stages of one line, around what lies between them."""
    (x, y), (u, v) = teacher, student
    if x != u:
        side = 1 if x > u else -1
        return f"M{x} {y}V{v - CORNER}Q{x} {v} {x - side * CORNER} {v}H{u + side * (RADIUS + 3)}"
    bend = x - BEND
    return f"M{x} {y}H{bend + CORNER}Q{bend} {y} {bend} {y + CORNER}V{v - CORNER}Q{bend} {v} {bend + CORNER} {v}H{u - RADIUS - 3}"
