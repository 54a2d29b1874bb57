"""The filter's table says what the kernel's headers say, and the filter does what its table says."""

import errno
import struct
from pathlib import Path

import pytest

from nemo_cascade.sandbox import Program, Sandbox
from nemo_cascade.sandbox.inside import seccomp

MACHINES = ("x86_64", "aarch64")


def verdict(filter_: bytes, machine: str, number: int, argument: int = 0, architecture: int | None = None) -> int:
    """What the kernel would do: the instructions that the filter uses, as the kernel runs them."""
    data = struct.pack("<iI", number, architecture or seccomp.ARCHITECTURES[machine][1]) + struct.pack("<QQ", 0, argument)
    instructions = list(struct.iter_unpack("=HBBI", filter_))
    at = register = 0
    while True:
        code, yes, no, value = instructions[at]
        at += 1
        if code == 0x06:
            return value
        if code == 0x20:
            (register,) = struct.unpack_from("<I", data, value)
        else:
            holds = {0x15: register == value, 0x35: register >= value, 0x45: bool(register & value)}[code]
            at += yes if holds else no


REFUSED, UNKNOWN = seccomp.REFUSE | errno.EPERM, seccomp.REFUSE | errno.ENOSYS


@pytest.mark.parametrize("machine", MACHINES)
def test_each_call_of_the_table_is_refused_and_no_other_of_its_time(machine):
    filter_, column = seccomp.build(machine), MACHINES.index(machine)
    denied = {numbers[column] for numbers in seccomp.DENIED.values()} - {None}
    assert len(filter_) // 8 < 4096, "the kernel takes no more"
    for number in range(seccomp.SHARED):
        # Arguments that the three calls that depend on one may have: nothing new, AF_UNIX, oneself.
        argument = seccomp.AF_UNIX if number == seccomp.SOCKETPAIR[column] else 0
        assert verdict(filter_, machine, number, argument) == (REFUSED if number in denied else seccomp.ALLOW), number


@pytest.mark.parametrize("machine", MACHINES)
def test_what_newer_kernels_add_is_unknown_but_for_a_few(machine):
    filter_ = seccomp.build(machine)
    allowed = {number for number in range(seccomp.SHARED, 1000) if verdict(filter_, machine, number) == seccomp.ALLOW}
    assert allowed == set(seccomp.ALLOWED.values())
    assert verdict(filter_, machine, 435) == UNKNOWN, "clone3, whose flags a filter cannot see"


@pytest.mark.parametrize("machine", MACHINES)
def test_calls_that_depend_on_their_argument(machine):
    filter_, column = seccomp.build(machine), MACHINES.index(machine)
    clone, pair, limit = (numbers[column] for numbers in (seccomp.CLONE, seccomp.SOCKETPAIR, seccomp.PRLIMIT))
    threads = 0x3D0F00
    assert verdict(filter_, machine, clone, threads) == verdict(filter_, machine, clone, 17) == seccomp.ALLOW
    for flag in (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000):
        assert verdict(filter_, machine, clone, flag | 17) == REFUSED
    assert verdict(filter_, machine, pair, 1) == seccomp.ALLOW and verdict(filter_, machine, pair, 2) == REFUSED
    assert verdict(filter_, machine, limit, 0) == seccomp.ALLOW and verdict(filter_, machine, limit, 1) == REFUSED


@pytest.mark.parametrize("machine", MACHINES)
def test_other_tables_of_calls_are_death(machine):
    filter_ = seccomp.build(machine)
    assert verdict(filter_, machine, 1, architecture=0x40000003) == seccomp.KILL
    assert verdict(filter_, machine, 0x40000000 + 1) == seccomp.KILL


def test_numbers_of_x86_64_are_those_of_the_headers():
    names = sorted([*seccomp.DENIED, *seccomp.ALLOWED, "clone", "socketpair", "prlimit64"])
    source = "#include <sys/syscall.h>\n#include <stdio.h>\nint main() {\n"
    source += "".join(f'#ifdef SYS_{name}\nprintf("{name} %d\\n", SYS_{name});\n#endif\n' for name in names) + "}"
    with Sandbox(workers=1) as sandbox:
        said = dict(line.split() for line in sandbox.run(Program("cpp", source)).stdout.splitlines())
    column = MACHINES.index(__import__("platform").machine())
    ours = {name: numbers[column] for name, numbers in seccomp.DENIED.items()} | seccomp.ALLOWED
    ours |= {"clone": seccomp.CLONE[column], "socketpair": seccomp.SOCKETPAIR[column], "prlimit64": seccomp.PRLIMIT[column]}
    assert {name: int(number) for name, number in said.items()} == {name: ours[name] for name in said}
    # What this C library does not know yet.
    assert set(ours) - set(said) <= {"fchmodat2", "futex_waitv"} | {name for name in ours if ours[name] is None}


GENERIC = Path("/usr/include/asm-generic/unistd.h")


@pytest.mark.skipif(not GENERIC.exists(), reason="no kernel headers here")
def test_numbers_of_aarch64_are_those_of_the_headers():
    import re

    said = {name: int(number) for name, number in re.findall(r"#define __NR(?:3264)?_(\w+)\s+(\d+)", GENERIC.read_text())}
    ours = {name: numbers[1] for name, numbers in seccomp.DENIED.items() if numbers[1] is not None}
    ours |= {"clone": seccomp.CLONE[1], "socketpair": seccomp.SOCKETPAIR[1], "prlimit64": seccomp.PRLIMIT[1]}
    assert {name: said[name] for name in ours} == ours


def test_an_unknown_processor_is_told():
    with pytest.raises(OSError, match="no table of system calls for riscv64"):
        seccomp.build("riscv64")
