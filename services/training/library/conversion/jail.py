"""Take a process's rights away before it reads the file of a stranger.

What holds everywhere: limits of memory, time and file size, no further process, no further open file. On Linux besides,
where the kernel lets a process without privileges do so: namespaces of its own without a network, and a filter of
system calls that lets it read and write what is open, ask for memory, and end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import resource
import sys
from collections.abc import Sequence
from typing import Final

_PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 22, 38  # linux/prctl.h
_SECCOMP_MODE_FILTER = 2  # linux/seccomp.h
_KILL_PROCESS, _ALLOW, _ERRNO_EPERM = 0x80000000, 0x7FFF0000, 0x00050001
_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x15, 0x35, 0x06  # linux/bpf_common.h
_X32_CALLS = 0x40000000
_CLONE_NEWIPC, _CLONE_NEWUSER, _CLONE_NEWNET = 0x08000000, 0x10000000, 0x40000000  # linux/sched.h
_OWN_NAMESPACES = _CLONE_NEWIPC | _CLONE_NEWUSER | _CLONE_NEWNET

# read, write, close, fstat, lseek, mmap, mprotect, munmap, brk, rt_sigaction, rt_sigprocmask, rt_sigreturn, pread64,
# pwrite64, readv, writev, mremap, madvise, getpid, exit, fsync, ftruncate, sigaltstack, gettid, futex, clock_gettime,
# exit_group, getrandom, rseq
_CALLS: Final = {
    # AUDIT_ARCH_X86_64 (linux/audit.h), and the numbers of arch/x86/entry/syscalls/syscall_64.tbl
    "x86_64": (
        0xC000003E,
        "0 1 3 5 8 9 10 11 12 13 14 15 17 18 19 20 25 28 39 60 74 77 131 186 202 228 231 318 334",
    ),
    # AUDIT_ARCH_AARCH64, and the numbers of include/uapi/asm-generic/unistd.h
    "aarch64": (
        0xC00000B7,
        "63 64 57 80 62 222 226 215 214 134 135 139 67 68 65 66 216 233 172 93 82 46 132 178 98 113 94 278 293",
    ),
}


class _Instruction(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint16), ("jt", ctypes.c_uint8), ("jf", ctypes.c_uint8), ("k", ctypes.c_uint32))


class _Program(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.POINTER(_Instruction)))


def enter(*, memory_bytes: int, file_bytes: int, cpu_seconds: int, keep: Sequence[int]) -> list[str]:
    """Enter it; there is no way back.

    Args:
        memory_bytes: Address space at most.
        file_bytes: Largest file that may be written.
        cpu_seconds: Computing time at most.
        keep: Descriptors that stay open; all others are closed.

    Returns:
        What holds beside the limits: `namespaces`, `seccomp`.
    """
    _close_others(keep)
    measures = []
    libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None
    if libc is not None and libc.unshare(_OWN_NAMESPACES) == 0:
        measures.append("namespaces")
    _limit(
        {
            resource.RLIMIT_AS: memory_bytes,
            resource.RLIMIT_FSIZE: file_bytes,
            resource.RLIMIT_CPU: cpu_seconds,
            resource.RLIMIT_CORE: 0,
            resource.RLIMIT_NOFILE: 0,
            resource.RLIMIT_NPROC: 0,
        }
    )
    if libc is not None and _filter_calls(libc):
        measures.append("seccomp")
    return measures


def _close_others(keep: Sequence[int]) -> None:
    begin = 0
    for descriptor in sorted({*keep, 1 << 16}):
        os.closerange(begin, descriptor)
        begin = descriptor + 1


def _limit(limits: dict[int, int]) -> None:
    for limit, most in limits.items():
        # Some systems know a limit and do not let it be set; the parent's time limit holds there all the same.
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, (most, most))


def _filter_calls(libc: ctypes.CDLL) -> bool:
    known = _CALLS.get(platform.machine())
    if known is None or libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        return False
    architecture, calls = known[0], [int(call) for call in known[1].split()]
    lines = [
        (_LOAD, 0, 0, 4),  # struct seccomp_data: the architecture
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, 0),  # the number of the call
        (_JUMP_GREATER_EQUAL, len(calls), 0, _X32_CALLS),
        *((_JUMP_EQUAL, len(calls) - at, 0, call) for at, call in enumerate(calls)),
        (_RETURN, 0, 0, _ERRNO_EPERM),
        (_RETURN, 0, 0, _ALLOW),
    ]
    instructions = (_Instruction * len(lines))(*(_Instruction(*line) for line in lines))
    program = _Program(len(lines), instructions)
    return bool(libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) == 0)
