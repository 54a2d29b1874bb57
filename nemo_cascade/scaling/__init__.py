"""Test-time scaling: more computing for one answer, as the paper spends it on proofs and contests [paper, section 7.3].

Four loops, each a function of a problem and a `Work`: `best_of_n`, `refine` (generate, verify, refine proofs), `ioi` (subtasks, rounds,
earlier submissions) and `icpc` (submit until accepted). A loop only says what to ask and what to grade. `Work` does it within the
budget and remembers it in a journal, so that a run that was killed goes on without asking anything twice. Who answers is a
`Proposer` (`proposers.py`), who grades a `Grader` (`graders.py`). `run.py` takes problems through a loop.
"""
