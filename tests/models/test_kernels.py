"""The C++ kernels against the torch forms they stand for, and both against float64."""

import shutil
import subprocess
import sys

import pytest
import torch

from nemo_cascade.models import kernels
from nemo_cascade.models.attention import packed_attention
from nemo_cascade.models.experts import ExpertsFunction
from nemo_cascade.models.layers import relu2
from nemo_cascade.models.mamba import conv_update, selective_state_update, split_conv1d_scan
from nemo_cascade.models.norm import rms_norm
from nemo_cascade.models.scan import CHUNK
from tests.models.recurrence import documents

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no compiler, so torch's operations are used")


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def results(function, leaves, dtype):
    """[output, gradients ..] of a weighted sum of the output."""
    leaves = [t.to(dtype).requires_grad_() for t in leaves]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, normal(*out.shape, seed=9).to(dtype))]


def error(found, exact):
    return float((found - exact).norm() / exact.norm().clamp(min=1e-30))


def check(function, leaves, monkeypatch, bound=3e-6):
    """The kernels' results are those of float64 and of torch's operations, and bit-equal by any number of threads."""
    assert kernels.library() is not None
    exact, threads = results(function, leaves, torch.float64), torch.get_num_threads()
    called = []
    call = kernels.call
    monkeypatch.setattr(kernels, "call", lambda *arguments: (called.append(arguments[0]), call(*arguments)))
    found = []
    for number in (1, 2, 5, 1):
        torch.set_num_threads(number)
        found.append(results(function, leaves, torch.float32))
    torch.set_num_threads(threads)
    assert called
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    monkeypatch.setattr(kernels, "usable", lambda *_, **__: False)
    by_torch = results(function, leaves, torch.float32)
    for mine, theirs, true in zip(found[0], by_torch, exact, strict=True):
        assert error(mine, true) < max(bound, 3 * error(theirs, true))


def mixer_inputs(lengths, rows, heads, groups, p, n, forget=1.0):
    """Leaves of the mixer, and the function of them."""
    inner, length = heads * p, sum(lengths)
    channels = inner + 2 * groups * n
    seq_idx = documents(lengths).repeat(rows, 1)
    shapes = (rows, length, inner + channels + heads), (channels, 4), (channels,), (heads,), (heads,), (heads,)
    leaves = [normal(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    leaves[4] = -leaves[4].exp() * forget

    def mixer(*leaves):
        return split_conv1d_scan(*leaves, CHUNK, headdim=p, ngroups=groups, seq_idx=seq_idx)

    return mixer, leaves


@pytest.mark.parametrize("lengths", [[1], [1, 1, 1], [3, CHUNK + 2, 1, CHUNK], [5 * CHUNK], [1, CHUNK - 1, 4 * CHUNK + 1, 70]])
@pytest.mark.parametrize("heads, groups, p, n", [(4, 1, 16, 32), (8, 2, 32, 16), (8, 8, 16, 48)])
def test_the_mixer(lengths, heads, groups, p, n, monkeypatch):
    check(*mixer_inputs(lengths, 1, heads, groups, p, n), monkeypatch)


def test_rows_of_a_batch_do_not_hear_each_other(monkeypatch):
    check(*mixer_inputs([2, CHUNK, 131], 3, 4, 2, 16, 16), monkeypatch)


@pytest.mark.parametrize("forget", [30.0, 1e4, 0.0], ids=["forgets", "forgets completely", "never forgets"])
def test_extreme_decays(forget, monkeypatch):
    check(*mixer_inputs([CHUNK + 5, 3 * CHUNK], 1, 4, 2, 16, 16, forget), monkeypatch, bound=5e-6)


def test_the_mixers_gradient_is_that_of_finite_differences_in_its_own_precision():
    """Along a random direction, by a step that float32 still resolves."""
    mixer, leaves = mixer_inputs([5, CHUNK + 3], 1, 4, 2, 16, 16)
    weights = normal(1, CHUNK + 8, 64, seed=9)
    _, *gradients = results(mixer, leaves, torch.float32)
    for leaf, gradient in enumerate(gradients):
        step = 3e-3 * normal(*leaves[leaf].shape, seed=5)
        ends = []
        for sign in (1, -1):
            moved = [t + sign * step if i == leaf else t for i, t in enumerate(leaves)]
            ends.append((mixer(*moved).double() * weights).sum())
        along = (gradient.double() * step).sum()
        scale = gradient.double().norm() * step.double().norm()
        assert abs((ends[0] - ends[1]) / 2 - along) < 2e-3 * scale, leaf


@pytest.mark.parametrize("lengths", [[1], [1, 1, 2, 33, 7], [CHUNK, 2 * CHUNK, 75], [300]])
@pytest.mark.parametrize("heads, groups, width", [(4, 4, 16), (4, 2, 32), (8, 1, 48)])
def test_attention(lengths, heads, groups, width, monkeypatch):
    boundaries = documents(lengths)[0].bincount(minlength=len(lengths)).cumsum(0)
    boundaries = torch.cat([torch.zeros(1, dtype=torch.long), boundaries]).int()
    leaves = [normal(sum(lengths), number, width, seed=seed) * 2 for seed, number in enumerate((heads, groups, groups))]
    check(lambda *leaves: packed_attention(*leaves, boundaries), leaves, monkeypatch)


def test_attention_reads_keys_and_values_that_lie_apart(monkeypatch):
    mixed = normal(40, 2, 64)
    boundaries = torch.tensor([0, 13, 40]).int()

    def attend(mixed):
        return packed_attention(mixed[..., :32].reshape(40, 4, 16), mixed[..., 32:48], mixed[..., 48:], boundaries)

    check(attend, [mixed], monkeypatch)


@pytest.mark.parametrize("shape, weight", [((1, 16), (16,)), ((300, 2, 48), (48,)), ((129, 1, 2, 32), (2, 32)), ((5, 8, 16), (8, 16))])
def test_the_norm(shape, weight, monkeypatch):
    check(lambda x, w: rms_norm(x, w, 1e-5), [normal(*shape), normal(*weight, seed=1)], monkeypatch)


@pytest.mark.parametrize("rows, heads, groups, p, n", [(1, 4, 1, 16, 32), (37, 8, 2, 24, 16), (5, 8, 8, 16, 48)])
def test_decoding(rows, heads, groups, p, n, monkeypatch):
    """Three tokens of every row through convolution and state, as megatron-core's decoding hands them over."""
    inner, channels = heads * p, heads * p + 2 * groups * n
    shapes = (3, rows, channels + 7), (channels, 4), (channels,), (3, rows, heads), (heads,), (heads,), (heads,)
    leaves = [normal(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    leaves[5] = -leaves[5].exp()

    def decoded(x, weight, bias, dt, dt_bias, A, D):
        held = torch.zeros(rows, 4, channels, dtype=x.dtype).transpose(1, 2)
        state = torch.zeros(rows, heads, p, n, dtype=x.dtype)
        wide_A, wide_D, wide_bias = A[:, None, None].expand(heads, p, n), D[:, None].expand(heads, p), dt_bias[:, None].expand(heads, p)
        said = []
        for token, step in zip(x, dt):
            mixed = conv_update(token[:, :channels], held, weight, bias, "silu")
            parts = mixed.split([inner, groups * n, groups * n], -1)
            shaped = (part.view(rows, -1, width) for part, width in zip(parts, (p, n, n)))
            one, B, C = shaped
            step = step[..., None].expand(rows, heads, p)
            said.append(selective_state_update(state, one, step, wide_A, B, C, wide_D, dt_bias=wide_bias, dt_softplus=True).clone())
        return torch.stack([torch.cat([y.flatten() for y in said]), torch.cat([state.flatten(), held.flatten()])[: 3 * rows * inner]])

    with torch.no_grad():
        check_decoding(decoded, leaves, monkeypatch)


def check_decoding(function, leaves, monkeypatch):
    """The kernels' output is that of float64, as near as torch's operations are, by any number of threads."""
    exact, threads, found, called = function(*(t.double() for t in leaves)), torch.get_num_threads(), [], []
    call = kernels.call
    monkeypatch.setattr(kernels, "call", lambda *arguments: (called.append(arguments[0]), call(*arguments)))
    for number in (1, 3, 1):
        torch.set_num_threads(number)
        found.append(function(*leaves))
    torch.set_num_threads(threads)
    assert set(called) == {"conv_step", "state_step"} and all(torch.equal(found[0], other) for other in found)
    monkeypatch.setattr(kernels, "usable", lambda *_, **__: False)
    assert error(found[0], exact) < max(1e-6, 3 * error(function(*leaves), exact))


def test_relu2(monkeypatch):
    check(relu2, [normal(131, 48)], monkeypatch)


def test_the_experts(monkeypatch):
    sizes, weights = [3, 0, 140], [normal(48, 16, seed=i) for i in range(3)] + [normal(16, 48, seed=i) for i in range(3, 6)]
    leaves = [normal(143, 16), torch.rand(143, generator=torch.Generator().manual_seed(1)), *weights]
    check(lambda x, probs, *weights: ExpertsFunction.apply(x, probs, sizes, False, *weights), leaves, monkeypatch)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_so(bad):
    """Or a step on it would not be refused."""
    mixer, leaves = mixer_inputs([40], 1, 4, 2, 16, 16)
    attention = torch.tensor([0, 40]).int()
    cases = [
        (lambda x: mixer(x, *leaves[1:]), leaves[0]),
        (lambda x: packed_attention(x, x, x, attention), normal(40, 2, 16)),
        (lambda x: rms_norm(x, torch.ones(16), 1e-5), normal(40, 16)),
        (relu2, normal(40, 16)),
    ]
    for function, x in cases:
        x = x.clone()
        x.view(40, -1)[20, 0] = bad
        x.requires_grad_()
        out = function(x)
        (grad,) = torch.autograd.grad(out.sum(), x)
        assert not out.isfinite().all() or not grad.isfinite().all()
        if bad != bad:
            assert out.isnan().any()


def test_other_types_widths_and_devices_are_left_to_torch():
    x = torch.zeros(2, 16)
    assert kernels.usable(x, widths=(16, 32))
    assert not kernels.usable(x, widths=(24,))
    assert not kernels.usable(x, x.double())
    assert not kernels.usable(x.bfloat16())
    assert not kernels.usable(x.to("meta"))


def test_processes_that_build_at_once_get_the_same_library(tmp_path):
    code = f"from nemo_cascade.models import kernels; print(kernels.build({shutil.which('g++')!r}, kernels.cache_folder()))"
    environment = {"XDG_CACHE_HOME": str(tmp_path), "PATH": "/usr/bin:/bin", "PYTHONPATH": ":".join(sys.path)}
    processes = [
        subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True) for _ in range(2)
    ]
    said = {process.communicate(timeout=120)[0].splitlines()[-1] for process in processes}
    (path,) = tmp_path.glob("nemo_cascade/*")
    assert said == {str(path)}


def test_without_a_compiler_that_works_torch_is_used(tmp_path, monkeypatch, caplog):
    broken = tmp_path / "g++"
    broken.write_text("#!/bin/sh\necho no such target >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernels.library.cache_clear()
    try:
        assert kernels.library() is None
        assert "torch's operations are used" in caplog.text
        monkeypatch.setenv("NEMO_CASCADE_KERNELS", "0")
        kernels.library.cache_clear()
        assert kernels.library() is None
    finally:
        kernels.library.cache_clear()
