"""The stages as a picture: a row each, the main line straight down, what leaves it beside it, in lanes.

A stage that only teaches or was rolled back stands in a lane of its own, joined with its parent above and, dotted, with the
stages that it teaches below. Only places are computed here; the page draws them.
"""

from dataclasses import dataclass

from nemo_cascade.cascade.manifest import Manifest

ROW, LANE, MARGIN = 58, 22, 16


@dataclass
class Edge:
    """A line of the picture as an SVG path. kind: start, teacher."""

    path: str
    kind: str


@dataclass
class Graph:
    """nodes: stage -> (x, y) in pixels."""

    width: int
    height: int
    nodes: dict[str, tuple[int, int]]
    edges: list[Edge]


def draw(manifest: Manifest) -> Graph:
    """The picture of a manifest's stages in their order."""
    rows = {name: row for row, name in enumerate(manifest.stages)}
    lanes = _lanes(manifest, rows)
    nodes = {name: (MARGIN + LANE * lanes[name], ROW * row + ROW // 2) for name, row in rows.items()}
    edges = []
    for name, record in manifest.stages.items():
        if record.parent in nodes:
            edges.append(Edge(_start_path(nodes[record.parent], nodes[name]), "start"))
        for teacher in dict.fromkeys(record.teachers.values()):
            if teacher in nodes and teacher != record.parent:
                edges.append(Edge(_teacher_path(nodes[teacher], nodes[name]), "teacher"))
    width = 2 * MARGIN + LANE * max(lanes.values(), default=0)
    return Graph(width, ROW * len(rows), nodes, edges)


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
        while any(lane == other and first < end and begin < last for other, begin, end in taken):
            lane += 1
        lanes[name] = lane
        taken.append((lane, first, max(last, first + 1)))
    return lanes


def _start_path(parent: tuple[int, int], child: tuple[int, int]) -> str:
    """Out of the parent into the child's lane, then down."""
    (x, y), (u, v) = parent, child
    if x == u:
        return f"M{x} {y}V{v}"
    turn = y + ROW * 3 // 4
    return f"M{x} {y}C{x} {turn} {u} {turn - ROW // 2} {u} {min(turn, v)}V{v}"


def _teacher_path(teacher: tuple[int, int], student: tuple[int, int]) -> str:
    """Down the teacher's lane, then into the student."""
    (x, y), (u, v) = teacher, student
    if x == u:  # around what lies between on the same line
        bend = x - MARGIN // 2 - 3
        return f"M{x} {y}C{bend} {y + ROW // 2} {bend} {v - ROW // 2} {u} {v}"
    turn = v - ROW * 3 // 4
    return f"M{x} {y}V{max(turn, y)}C{x} {v - ROW // 4} {u} {v - ROW // 2} {u} {v}"
