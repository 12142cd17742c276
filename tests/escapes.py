"""Programs that try to get out of the sandbox, or to harm what is outside: the attempts of
test_sandbox.py. Each function is one; to return is to have got out, to raise is to have been held.

outside: what there is to reach: a file that all may read and write with a secret in it, a folder that
all may write, a process, a port of this machine that listens, an abstract and a path Unix socket.
Written for nothing but this project's own sandbox."""

PYTHON = r'''
import ctypes, errno, fcntl, mmap, os, resource, signal, socket, struct, sys, threading, time

libc = ctypes.CDLL(None, use_errno=True)
AT = sys.platform == "linux" and os.uname().machine == "aarch64"

def checked(result):
    if result == -1:
        raise OSError(ctypes.get_errno(), "refused")
    return result

def call(x86, arm, *arguments):
    number = arm if AT else x86
    if number < 0:
        raise OSError(errno.ENOSYS, "no such call on this machine")
    return checked(libc.syscall(number, *[ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]))

# ---- files
def read_a_secret(outside): open(outside["file"]).read()
def read_the_users(outside): open("/etc/passwd").read()
def read_the_folder_of_root(outside): os.listdir("/root/.ssh")
def write_to_tmp(outside): open("/tmp/r1grpo-escape", "w")
def write_to_shared_memory(outside): open("/dev/shm/r1grpo-escape", "w")
def write_a_file_outside(outside): open(outside["file"], "a").write("was here")
def cut_a_file_outside(outside): os.truncate(outside["file"], 0)
def remove_a_file_outside(outside): os.unlink(outside["file"])
def change_the_rights_of_a_file(outside): os.chmod(outside["file"], 0)
def change_the_times_of_a_file(outside): os.utime(outside["file"], (0, 0))
def set_an_attribute_of_a_file(outside): os.setxattr(outside["file"], "user.r1grpo", b"1")
def make_a_symbolic_link(outside): os.symlink(outside["file"], outside["folder"] + "/link")
def make_a_hard_link(outside): os.link(outside["file"], outside["folder"] + "/link")
def make_a_fifo(outside): os.mkfifo(outside["folder"] + "/fifo")
def make_a_folder(outside): os.mkdir(outside["folder"] + "/a" * 100)
def write_anywhere(outside):
    for folder, names, files in os.walk("/"):
        for name in ("r1grpo-escape", "x" * 255, "\n", "json.py"):
            try: open(os.path.join(folder, name), "w")
            except OSError: continue
            return
        if time.process_time() > 1.5: break
    raise OSError("nowhere")
def change_the_library(outside): open(os.__file__, "a")
def leave_a_startup_file(outside): open(os.path.join(os.path.dirname(os.__file__), "sitecustomize.py"), "w")
def import_from_the_current_folder(outside):
    sys.path.insert(0, outside["folder"])
    import planted
def read_devices(outside): open("/dev/mem", "rb"); open("/dev/kmsg")
def read_the_system(outside): os.listdir("/sys/kernel")
def read_what_lies_beside_the_system(outside): os.listdir("/usr/src")
def read_the_manuals(outside): os.listdir("/usr/share/doc")
def lock_a_file_of_all(outside): fcntl.flock(open(os.__file__), fcntl.LOCK_EX)
def lock_a_part_of_it(outside): fcntl.lockf(open(os.__file__), fcntl.LOCK_SH)
def lease_a_file(outside): fcntl.fcntl(open(os.__file__), 1024, fcntl.F_RDLCK)
def watch_a_folder(outside): fcntl.fcntl(os.open("/usr/bin", os.O_RDONLY), 1026, 2)  # F_NOTIFY
def watch_files(outside): call(294, 26, 0)
def open_a_tree(outside): call(428, 428, -100, b"/", 1)
def see_what_others_have_read(outside):
    page = mmap.mmap(-1, 4096)
    call(27, 232, ctypes.addressof(ctypes.c_char.from_buffer(page)), 4096, page[:8])  # mincore
def open_by_handle(outside): call(304, 265, -100, b"\x00" * 64, 0)
def mount_something(outside): checked(libc.mount(b"none", b"/tmp", b"tmpfs", 0, None))
def change_the_root(outside): os.chroot("/usr")

# ---- what was left open, and what the interpreter knows
def use_an_inherited_descriptor(outside):
    for fd in range(4, 4096):
        try: os.fstat(fd)
        except OSError: continue
        return
    raise OSError("none")
def read_the_environment(outside): os.environ["R1GRPO_SECRET"]
def read_an_environment(outside): open(f"/proc/{outside['process']}/environ", "rb").read()
def read_own_environment(outside): open("/proc/self/environ", "rb").read()
def read_the_parents_memory(outside): open(f"/proc/{os.getppid()}/mem", "rb").read(1)
def read_the_parents_files(outside): os.listdir(f"/proc/{os.getppid()}/fd")
def read_the_first_process(outside): os.listdir("/proc/1/root")
def read_kernel_memory(outside): open("/proc/kcore", "rb").read(1)

# ---- other processes
def signal_a_process(outside): os.kill(outside["process"], signal.SIGKILL)
def signal_the_parent(outside): os.kill(os.getppid(), signal.SIGKILL)
def signal_the_group(outside): os.killpg(0, signal.SIGCONT)
def signal_all(outside): os.kill(-1, signal.SIGKILL)
def signal_a_thread(outside): call(234, 131, outside["process"], outside["process"], 9)
def signal_by_a_descriptor(outside): signal.pidfd_send_signal(os.pidfd_open(outside["process"]), 9)
def signal_by_input(outside):
    there, here = os.pipe()
    fcntl.fcntl(there, fcntl.F_SETOWN, outside["process"])
    fcntl.fcntl(there, 10, signal.SIGKILL)  # F_SETSIG
    fcntl.fcntl(there, fcntl.F_SETFL, os.O_ASYNC)
    os.write(here, b"x")
def signal_by_a_queue(outside): call(129, 138, outside["process"], 9, b"\0" * 128)
def trace_a_process(outside): call(101, 117, 16, outside["process"], 0, 0)
def trace_itself(outside): call(101, 117, 0, 0, 0, 0)
def read_a_process(outside):
    space = ctypes.create_string_buffer(8)
    part = struct.pack("QQ", ctypes.addressof(space), 8)
    call(310, 270, os.getppid(), part, 1, part, 1, 0)
def compare_processes(outside): call(312, 272, os.getpid(), os.getppid(), 0, 0, 0)
def take_a_descriptor(outside): call(438, 438, call(434, 434, os.getppid(), 0), 1, 0)
def slow_a_process_down(outside): os.setpriority(os.PRIO_PROCESS, outside["process"], 19)
def move_the_memory_of_a_process(outside): call(256, 238, outside["process"], 1, b"\1" * 8, b"\1" * 8)
def outlive_the_parent(outside): checked(libc.prctl(ctypes.c_long(1), ctypes.c_long(0), 0, 0, 0))
def be_read_by_others(outside): checked(libc.prctl(ctypes.c_long(4), ctypes.c_long(1), 0, 0, 0))
def pass_a_descriptor(outside):
    one, other = socket.socketpair()
    socket.send_fds(one, [b"x"], [0])
def limit_a_process(outside): resource.prlimit(outside["process"], resource.RLIMIT_CPU, (1, 1))
def slow_a_process(outside): os.sched_setaffinity(outside["process"], {0})
def make_a_process(outside):
    if os.fork() == 0: os._exit(0)
def make_a_process_by_vfork(outside):
    if AT: raise OSError("no such call")
    call(58, -1)
def make_a_process_by_clone(outside):
    if call(56, 220, 17, 0, 0, 0, 0) == 0: os._exit(0)
def make_a_process_by_clone3(outside):
    if call(435, 435, struct.pack("11Q", *[0] * 4, 17, *[0] * 6), 88) == 0: os._exit(0)
def make_a_daemon(outside):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0: time.sleep(1000)
        os._exit(0)
def bomb_with_processes(outside):
    for _ in range(10_000): make_a_process(outside)
def leave_the_session(outside): os.setsid()
def leave_the_group(outside): os.setpgid(0, 0)
def run_a_program(outside): os.execv("/bin/true", ["true"])
def run_a_program_with_much(outside): os.execve("/bin/true", ["x" * 100_000] * 10, {"LD_PRELOAD": "x" * 100_000})
def run_a_program_from_memory(outside): os.execve(os.memfd_create("program"), ["x"], {})
def start_a_shell(outside):
    import subprocess
    subprocess.run(["/bin/sh", "-c", "true"])

# ---- the network
def connect_to_this_machine(outside): socket.create_connection(("127.0.0.1", outside["port"]), 1)
def connect_to_the_internet(outside): socket.create_connection(("1.1.1.1", 53), 1)
def connect_to_cloud_metadata(outside): socket.create_connection(("169.254.169.254", 80), 1)
def ask_for_a_name(outside): socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("1.1.1.1", 53))
def listen(outside): socket.create_server(("127.0.0.1", 0))
def connect_to_a_path(outside): socket.socket(socket.AF_UNIX).connect(outside["path"])
def connect_to_an_abstract_name(outside): socket.socket(socket.AF_UNIX).connect("\0" + outside["name"])
def send_to_a_path_from_a_pair(outside): socket.socketpair()[0].sendto(b"x", outside["path"])
def make_a_pair_of_datagrams(outside): socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
def open_a_raw_socket(outside): socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)
def open_a_packet_socket(outside): socket.socket(17, socket.SOCK_RAW)
def open_netlink(outside): socket.socket(16, socket.SOCK_RAW, 0)
def open_a_machines_socket(outside): socket.socket(40, socket.SOCK_STREAM)
def open_kernel_crypto(outside): socket.socket(38, socket.SOCK_SEQPACKET)

# ---- the kernel
def make_a_user_namespace(outside): call(272, 97, 0x10000000)
def make_a_thread_with_a_namespace(outside): call(56, 220, 0x10000 | 0x800 | 0x100 | 0x40000000, 0, 0, 0, 0)
def make_a_mount_namespace(outside): call(272, 97, 0x00020000)
def enter_a_namespace(outside): call(308, 268, 0, 0)
def load_bpf(outside): call(321, 280, 0, b"\0" * 64, 64)
def open_performance_counters(outside): call(298, 241, b"\0" * 128, 0, -1, -1, 0)
def open_io_uring(outside): call(425, 425, 1, b"\0" * 128)
def catch_page_faults(outside): call(323, 282, 0)
def make_memory_files(outside): os.memfd_create("escape")
def read_the_kernels_log(outside): call(103, 116, 3, ctypes.create_string_buffer(64), 64)
def hold_memory_in_place(outside): call(151, 230, 1)
def hold_memory_in_pipes(outside): fcntl.fcntl(os.pipe()[1], 1031, 1 << 20)  # F_SETPIPE_SZ
def use_keys(outside): call(250, 219, 0, -3)
def change_the_filter(outside): call(317, 277, 1, 0, b"\0" * 16)
def change_the_personality(outside): call(135, 92, 0x0040000)
def share_memory(outside): call(29, 194, 0, 4096, 0o1666)
def push_characters_to_a_terminal(outside): fcntl.ioctl(0, 0x5412, b"x")
def become_root(outside):
    os.setuid(0)
    os.listdir("/root")
def become_another(outside): os.setresuid(1, 1, 1)
def raise_the_limits(outside): resource.setrlimit(resource.RLIMIT_AS, (1 << 50, 1 << 50))
def raise_the_cpu_limit(outside): resource.setrlimit(resource.RLIMIT_CPU, (1 << 20, 1 << 20))
def name_the_machine(outside): socket.sethostname("escaped")
def set_the_clock(outside): time.clock_settime(time.CLOCK_REALTIME, 0)

# ---- more than its share
def take_much_memory(outside):
    taken = [bytearray(1 << 26) for _ in range(32)]  # 2 GiB
def take_much_memory_by_maps(outside):
    taken = [mmap.mmap(-1, 1 << 28) for _ in range(16)]
def start_many_threads(outside):
    threading.stack_size(1 << 15)
    for i in range(1000): threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
def open_many_files(outside):
    files = [open("/dev/null") for _ in range(10_000)]
'''

# These end by a deadline, a signal or a limit, and are looked at from outside.
HEAVY = {
    "spin": "while True: pass",
    "sleep": "import time\ntime.sleep(1000)",
    "spin without signals": """import signal, itertools
for i in range(1, 65):
    try: signal.signal(i, signal.SIG_IGN)
    except (OSError, ValueError): pass
sum(itertools.repeat(1))""",
    "stop itself": "import os, signal\nos.kill(os.getpid(), signal.SIGSTOP)\nwhile True: pass",
    "flood the output": "while True: print('x' * 100000)",
    "flood the errors": "import os\nwhile True: os.write(2, b'x' * 100000)",
    "read for ever": "import sys\nwhile True: sys.stdin.read()",
    "close everything": "import os\nos.closerange(0, 1000)\nwhile True: pass",
    "fork for ever": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "recurse": "import sys\nsys.setrecursionlimit(10**9)\ndef f(): return f() + 1\nf()",
    "nest": "eval('(' * 100000 + ')' * 100000)",
    "power": "9 ** 9 ** 9 ** 9",
    "grow": "x = [0]\nwhile True: x += x",
    "threads that stay": """import threading, time
for i in range(30): threading.Thread(target=time.sleep, args=(1000,)).start()""",
    "a long source": "x = [" + "0," * 100000 + "]\nwhile True: pass",
    "a timer": "import signal\nsignal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)\nwhile True: pass",
}

C = {
    "a 32-bit call": """#include <stdio.h>
int main(void) {
#ifdef __x86_64__
    long r; __asm__ volatile("int $0x80" : "=a"(r) : "a"(20) : "memory"); /* getpid */
    if (r > 0) puts("escaped");
#endif
    return 0; }""",
    "a call of the second number space": """#include <stdio.h>
#include <unistd.h>
int main(void) { if (syscall(0x40000000 | 39) > 0) puts("escaped"); return 0; }""",
    "a fork": "#include <stdio.h>\n#include <unistd.h>\nint main(void) { if (fork() >= 0) puts(\"escaped\"); }",
    "a shell": """#include <stdlib.h>
#include <stdio.h>
int main(void) { if (system("echo escaped") == 0) puts("escaped"); return 0; }""",
    "a program that reads": """#include <unistd.h>
int main(void) { execl("/bin/sh", "sh", "-c", "while read l; do echo escaped; done < /etc/passwd", (char *)0); }""",
    "its own binary": """#include <stdio.h>
int main(int n, char **v) { (void)n; FILE *f = fopen(v[0], "r+"); if (f && fputc('x', f) >= 0) puts("escaped");
remove(v[0]); if (!fopen(v[0], "r")) puts("escaped"); }""",
    "a file beside it": """#include <stdio.h>
#include <string.h>
int main(int n, char **v) { (void)n; strcpy(strrchr(v[0], '/'), "/x"); if (fopen(v[0], "w")) puts("escaped"); }""",
    "a socket": """#include <stdio.h>
#include <sys/socket.h>
int main(void) { if (socket(AF_INET, SOCK_STREAM, 0) >= 0) puts("escaped"); }""",
}

# What the compiler must not read or do; SECRET is the path of a file with the text of a number.
SOURCES = {
    "include": '#include <stdio.h>\nint secret =\n#include "SECRET"\n; int main(void) { printf("%d", secret); }',
    "assemble": '#include <stdio.h>\n__asm__(".globl secret\\nsecret: .incbin \\"SECRET\\"\\n.byte 0");\n'
                'extern char secret[]; int main(void) { puts(secret); }',
    "fill the disk": "char a[1L << 40] = {1}; int main(void) { return a[0]; }",
    "include itself": "#include __FILE__\n#include __FILE__\nint main(void) {}",
}
