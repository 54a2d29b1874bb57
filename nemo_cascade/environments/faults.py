"""What is no verdict: whatever kept a reply from one, and was not the reply's own doing.

A reply that breaks a limit that it knows of (its program runs for ever, prints a gigabyte, forks without end, its answer cannot be
read) has a verdict, and that is bad. Where the fault lies with those who judge, a verdict names the fault's kind under "fault" and
gives the least there is as its reward, to be reported and never to be trained on or counted in a score (docs/environments.md).
"""

KINDS = {
    "verifier_timeout": "its verifier took longer than it may",
    "verifier_raised": "its verifier raised",
    "verifier_died": "its verifier's process ended",
    "sandbox_lost": "the host ended its sandbox",
    "server_failed": "its server of NeMo Gym refused it, failed at it or answered with garbage",
    "judge_unreachable": "no answer came from its judge",
    "judge_refused": "its judge's server refused the question",
    "judge_unreadable": "its judge said nothing that can be read",
    "tool_timeout": "its tools took too long",
    "tool_failed": "the host ended its tool's sandbox",
}


def no_verdict(kind: str, reason: str, least: float) -> dict:
    """What stands for the verdict. kind: one of KINDS; reason: in words; least: what is reported as the reward."""
    assert kind in KINDS, kind
    return {"reward": least, "fault": kind, "verifier_error": reason}


def said_beside(verdict: dict) -> dict:
    """What a verdict says beside its reward. A "fault" of another kind is a word of somebody else's, with a meaning of its own."""
    own = verdict.get("fault") in list(KINDS)  # whatever a server sends, which need not be hashable
    return {key: value for key, value in verdict.items() if key != "reward" and (own or key != "fault")}
