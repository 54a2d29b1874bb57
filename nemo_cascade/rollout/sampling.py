"""From logits and one uniform a row to a token and its log-prob under the distribution it was drawn from. Pure functions."""

import torch


def distribution(logits: torch.Tensor, temperature: float, top_p: float) -> torch.Tensor:
    """Log-probs [.., vocab] in float64 after temperature and top-p; -inf outside the nucleus.

    The nucleus is the smallest set of most likely tokens whose mass reaches top_p (Holtzman et al. 2020, section 3.1);
    of equally likely ones the lower ids come first, so that sampler and trainer choose the same.
    """
    logprobs = (logits.double() / temperature).log_softmax(-1)
    if top_p >= 1:
        return logprobs
    ordered, order = logprobs.sort(dim=-1, descending=True, stable=True)
    mass_before = ordered.exp().cumsum(-1) - ordered.exp()
    dropped = torch.zeros_like(mass_before, dtype=torch.bool).scatter(-1, order, mass_before >= top_p)
    return logprobs.masked_fill(dropped, -torch.inf).log_softmax(-1)


def sample(
    logits: torch.Tensor, uniforms: torch.Tensor, temperature: float, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """logits [rows, vocab], uniforms [rows] in (0, 1) -> (tokens [rows], their log-probs [rows] in float64).

    Inverse-CDF sampling, so that a row's token depends on its own logits and uniform only. temperature 0 takes the most
    likely token and returns its log-prob at temperature 1.
    """
    if temperature == 0:
        logprobs = logits.double().log_softmax(-1)
        tokens = logits.argmax(-1)
    else:
        scores = logits.double() / temperature if top_p >= 1 else distribution(logits, temperature, top_p)
        # One exp for both results; log-probs first and then their exp would take two.
        scores = scores - scores.amax(-1, keepdim=True)
        cumulative = scores.exp().cumsum(-1)
        total = cumulative[:, -1]
        # Scaled by the last value, so that rounding in the sum cannot leave a gap at the end.
        tokens = torch.searchsorted(cumulative, (uniforms * total)[:, None], right=True)[:, 0]
        tokens = tokens.clamp(max=logits.shape[-1] - 1)
        return tokens, scores.gather(-1, tokens[:, None])[:, 0] - total.log()
    return tokens, logprobs.gather(-1, tokens[:, None])[:, 0]
