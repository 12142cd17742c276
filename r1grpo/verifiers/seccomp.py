"""seccomp.py - which system calls a program of a model may make: allow lists as classic BPF.

    of another machine type, or of x86's second number space     the process is killed
    in the list, with the arguments that its rule asks for       allowed
    everything else                                              EPERM (other ioctl: ENOTTY; clone3:
                                                                 ENOSYS, so libc takes clone instead)

What follows for a program: memory, threads, reading what the file system lets it, and its own pipes.
No process, no signal to another one, no socket but a connected pair, no change to a file, no
namespace, no limit of another process. A compiler (COMPILE) may start processes and make files as well.

Sources: seccomp(2), linux/seccomp.h and linux/filter.h; numbers from the kernel's asm/unistd_64.h and
asm-generic/unistd.h. Knows nothing about what runs under a filter.
"""

from __future__ import annotations

import functools
import struct

# name number, for every call that a list below names
NUMBERS = {"x86_64": """
    read 0 write 1 readv 19 writev 20 pread64 17 pwrite64 18 close 3 close_range 436 lseek 8 mmap 9
    mprotect 10 munmap 11 mremap 25 madvise 28 brk 12 open 2 openat 257 stat 4 fstat 5 lstat 6
    newfstatat 262 statx 332 access 21 faccessat 269 faccessat2 439 readlink 89 readlinkat 267
    getdents64 217 getcwd 79 chdir 80 dup 32 dup2 33 dup3 292 fcntl 72 pipe 22 pipe2 293 poll 7
    ppoll 271 select 23 pselect6 270 epoll_create1 291 epoll_ctl 233 epoll_wait 232 epoll_pwait 281
    socketpair 53 sendto 44 recvfrom 45 rt_sigaction 13 rt_sigprocmask 14 rt_sigreturn 15
    rt_sigpending 127 rt_sigtimedwait 128 sigaltstack 131 nanosleep 35 clock_nanosleep 230
    clock_gettime 228 clock_getres 229 gettimeofday 96 time 201 times 100 getrusage 98 alarm 37
    setitimer 38 getitimer 36 pause 34 clone 56 clone3 435 futex 202 set_robust_list 273 rseq 334
    set_tid_address 218 arch_prctl 158 gettid 186 getpid 39 getppid 110 exit 60 exit_group 231
    sched_yield 24 sched_getaffinity 204 membarrier 324 restart_syscall 219 getuid 102 geteuid 107
    getgid 104 getegid 108 getgroups 115 getpgrp 111 getresuid 118 getresgid 120 uname 63 sysinfo 99
    getrandom 318 getrlimit 97 prlimit64 302 prctl 157 ioctl 16 execve 59 vfork 58 fork 57 wait4 61
    waitid 247 unlink 87 unlinkat 263 rename 82 renameat 264 renameat2 316 chmod 90 fchmod 91
    fchmodat 268 umask 95 ftruncate 77
""", "aarch64": """
    read 63 write 64 readv 65 writev 66 pread64 67 pwrite64 68 close 57 close_range 436 lseek 62
    mmap 222 mprotect 226 munmap 215 mremap 216 madvise 233 brk 214 openat 56 fstat 80 newfstatat 79
    statx 291 faccessat 48 faccessat2 439 readlinkat 78 getdents64 61 getcwd 17 chdir 49 dup 23
    dup3 24 fcntl 25 pipe2 59 ppoll 73 pselect6 72 epoll_create1 20 epoll_ctl 21 epoll_pwait 22
    socketpair 199 sendto 206 recvfrom 207 rt_sigaction 134 rt_sigprocmask 135 rt_sigreturn 139
    rt_sigpending 136 rt_sigtimedwait 137 sigaltstack 132 nanosleep 101 clock_nanosleep 115
    clock_gettime 113 clock_getres 114 gettimeofday 169 times 153 getrusage 165 setitimer 103
    getitimer 102 clone 220 clone3 435 futex 98 set_robust_list 99 rseq 293 set_tid_address 96
    gettid 178 getpid 172 getppid 173 exit 93 exit_group 94 sched_yield 124 sched_getaffinity 123
    membarrier 283 restart_syscall 128 getuid 174 geteuid 175 getgid 176 getegid 177 getgroups 158
    getresuid 148 getresgid 150 uname 160 sysinfo 179 getrandom 278 getrlimit 163 prlimit64 261
    prctl 167 ioctl 29 execve 221 wait4 260 waitid 95 unlinkat 35 renameat 38 renameat2 276
    fchmod 52 fchmodat 53 umask 166 ftruncate 46
"""}
_ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # AUDIT_ARCH_*

_PROCESSES = {"fork", "vfork", "wait4", "waitid"}
_CHANGES = {"unlink", "unlinkat", "rename", "renameat", "renameat2", "chmod", "fchmod", "fchmodat",
            "umask", "ftruncate"}
_OWN_ERRNO = {"ioctl": 25, "clone3": 38}
_EPERM = 1

# call -> conditions on arguments, all to hold: (argument, upper half, mask, allowed values). The upper
# half of an int is not looked at by the kernel either.
_CLONE_THREAD = 0x10000
_ALL = 0xFFFFFFFF
_CONDITIONS = {
    "clone": [(0, False, _CLONE_THREAD, (_CLONE_THREAD,))],
    "fcntl": [(1, False, _ALL, (0, 1, 2, 3, 4, 1030))],  # dup, flags; not F_SETOWN, which signals
    "ioctl": [(1, False, _ALL, (0x5421, 0x5450, 0x5451))],  # non-blocking, close-on-exec
    "prctl": [(0, False, _ALL, (15, 16))],               # the thread's name
    "prlimit64": [(0, False, _ALL, (0,))],               # its own
    "sendto": [(4, False, _ALL, (0,)), (4, True, _ALL, (0,))],       # to its peer, no address
    "socketpair": [(0, False, _ALL, (1,)), (1, False, 0xFF, (1,))],  # AF_UNIX, SOCK_STREAM
}

_LOAD, _AND, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x54, 0x15, 0x35, 0x06
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000


def _numbers(machine: str) -> dict[str, int]:
    words = NUMBERS[machine].split()
    return dict(zip(words[::2], map(int, words[1::2])))


def supported(machine: str) -> bool:
    """Whether there is a list for a machine type (platform.machine())."""
    return machine in NUMBERS


@functools.cache
def make_filter(machine: str, profile: str) -> bytes:
    """The BPF program, struct sock_filter[], of a profile: "python" runs in the interpreter that is
    there, "binary" may execute a file, "compile" is a compiler's."""
    numbers = _numbers(machine)
    allowed = set(numbers) - _PROCESSES - _CHANGES - {"clone3", "execve"}
    conditions = dict(_CONDITIONS)
    if profile != "python":
        allowed.add("execve")
    if profile == "compile":
        allowed |= (_PROCESSES | _CHANGES) & set(numbers)
        del conditions["clone"]
    code = [(_LOAD, 0, 0, 4), (_EQUAL, 1, 0, _ARCHITECTURE[machine]), (_RETURN, 0, 0, _KILL),
            (_LOAD, 0, 0, 0), (_AT_LEAST, 0, 1, 0x40000000), (_RETURN, 0, 0, _KILL)]
    for name, number in sorted(numbers.items(), key=lambda item: item[1]):
        if name in allowed:
            rule = _rule(conditions.get(name, []), _refusal(name))
        elif name in _OWN_ERRNO:
            rule = [_refusal(name)]
        else:
            continue
        code += [(_EQUAL, 0, len(rule), number), *rule]
    code.append(_refusal(""))
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in code)


def _refusal(name: str) -> tuple[int, int, int, int]:
    return _RETURN, 0, 0, _ERRNO | _OWN_ERRNO.get(name, _EPERM)


def _rule(conditions: list[tuple[int, bool, int, tuple[int, ...]]], refusal: tuple[int, int, int, int]
          ) -> list[tuple[int, int, int, int]]:
    """Allowed where all conditions hold; each leads past its refusal or into it."""
    code = []
    for argument, upper, mask, values in conditions:
        code += [(_LOAD, 0, 0, 16 + 8 * argument + 4 * upper), (_AND, 0, 0, mask)]
        code += [(_EQUAL, len(values) - i, 0, value) for i, value in enumerate(values)]
        code.append(refusal)
    return [*code, (_RETURN, 0, 0, _ALLOW)]
