"""Evaluation: benchmarks with the settings of Nemotron-Cascade 2, replies of a checkpoint or of any OpenAI-compatible endpoint, scores
with intervals beside the paper's.

    benchmarks/     one small file a benchmark: its rows, its settings and where they stand, its demo set
    benchmark.py    what a benchmark is, and how a row becomes a prompt
    replies.py      who is asked, behind one protocol: `served` (an endpoint), `checkpoint` (weights in this process)
    conversation.py a reply over an endpoint, of several turns where the row has tools
    journal.py      what was said and how it was scored, kept sample by sample
    scoring.py      verdicts by `environments`, or by `pairwise`: a judge and a reference answer
    statistics.py   scores and intervals
    results.py      the table and results.json; paper.py has the paper's numbers
    run.py          the whole way; command.py is the command line

Rewards are those of `environments`; nothing here verifies anything a second time.
"""
