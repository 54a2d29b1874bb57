"""Orders of visit that can be resumed: indices of one source, and draws from several sources by share.

They know numbers only, not rows; all state is a few integers.
"""

import random


class Loader:
    """Batches of `batch_size` indices below n_rows, endless; every epoch visits each row once, in a new order if shuffled.

    A batch may span two epochs. Raises ValueError when there is nothing to visit.
    """

    def __init__(self, n_rows: int, batch_size: int = 1, *, shuffle: bool = True, seed: int = 0):
        if n_rows < 1:
            raise ValueError("a loader needs at least one row")
        self.n_rows, self.batch_size, self.shuffle, self.seed = n_rows, batch_size, shuffle, seed
        self.position = 0
        self._epoch, self._order = -1, []

    def next(self, count: int | None = None) -> list[int]:
        """The next `count` indices (a batch unless told)."""
        taken = []
        for _ in range(self.batch_size if count is None else count):
            epoch, place = divmod(self.position, self.n_rows)
            taken.append(self._order_of(epoch)[place])
            self.position += 1
        return taken

    def state_dict(self) -> dict:
        return {"position": self.position, "n_rows": self.n_rows}

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError when the state was saved over another number of rows."""
        if state["n_rows"] != self.n_rows:
            raise ValueError(
                f"the checkpoint's loader went over {state['n_rows']} rows, the data now has {self.n_rows}; "
                "resume with the same data files or start the stage anew"
            )
        self.position = state["position"]

    def _order_of(self, epoch: int) -> list[int]:
        if epoch != self._epoch:
            self._order = list(range(self.n_rows))
            if self.shuffle:
                random.Random(f"{self.seed}-{epoch}").shuffle(self._order)
            self._epoch = epoch
        return self._order


class Mixture:
    """Draws (source, index) from several sources by share; in the long run each gets exactly its share.

    sources: name -> (number of rows, share). The source with the largest debt is next (the stride scheduler of Waldspurger &
    Weihl 1995), so any n draws hold each share to within one draw a source.
    """

    def __init__(self, sources: dict[str, tuple[int, float]], *, shuffle: bool = True, seed: int = 0):
        total = sum(share for _, share in sources.values())
        if not sources or total <= 0:
            raise ValueError("a mixture needs a source with a positive share")
        self.shares = {name: share / total for name, (_, share) in sources.items()}
        self.loaders = {
            name: Loader(rows, shuffle=shuffle, seed=seed) for name, (rows, _) in sources.items() if self.shares[name] > 0
        }
        self.drawn = {name: 0 for name in self.loaders}

    def next(self, count: int) -> list[tuple[str, int]]:
        draws = []
        for _ in range(count):
            total = sum(self.drawn.values()) + 1
            name = max(self.drawn, key=lambda name: (self.shares[name] * total - self.drawn[name], name))
            self.drawn[name] += 1
            draws.append((name, self.loaders[name].next(1)[0]))
        return draws

    def state_dict(self) -> dict:
        return {"drawn": dict(self.drawn), "loaders": {name: loader.state_dict() for name, loader in self.loaders.items()}}

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError when the state was saved over other sources."""
        if state["drawn"].keys() != self.drawn.keys():
            raise ValueError(f"the checkpoint mixed {sorted(state['drawn'])}, the data is now {sorted(self.drawn)}")
        self.drawn = dict(state["drawn"])
        for name, loader in self.loaders.items():
            loader.load_state_dict(state["loaders"][name])
