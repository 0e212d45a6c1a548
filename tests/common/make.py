"""make.py PID FILE: has a process make system calls. The file has one "NUMBER ARGUMENTS" a line, arguments as in C.

Prints what each call returned, an error as the negative number of it. A program that a call executes is the last one. It
writes no register but the general ones (gdb writes all, which fails where it does not know the processor's newest).
"""

import ctypes
import os
import re
import struct
import sys

# sys/ptrace.h; x86-64 alone, as the registers are.
SEIZE, INTERRUPT, STEP, DETACH, GETREGS, SETREGS = 0x4206, 0x4207, 9, 17, 12, 13
NAMES = """r15 r14 r13 r12 rbp rbx r11 r10 r9 r8 rax rcx rdx rsi rdi orig_rax rip cs eflags rsp ss fs_base gs_base
ds es fs gs""".split()
WALL = 0x40000000
MMAP, PAGE, AT_ENTRY = 9, 4096, 9
# syscall; and for a child that goes on from there: exit(0).
CODE = bytes.fromhex("0f05 b83c000000 31ff 0f05")
TEXT, FIRST, SLOT = 0, 1024, 64
# What lies in the page for calls that take a pointer. struct open_how begins with its flags, in eight bytes; nobody waits for the
# other end of a FIFO.
PREPARED = {
    "$read": bytes(8),
    "$write": (os.O_WRONLY | os.O_NONBLOCK).to_bytes(8, "little"),
    "$both": (os.O_RDWR | os.O_NONBLOCK).to_bytes(8, "little"),
    "$append": (os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK).to_bytes(8, "little"),
    "$truncate": (os.O_TRUNC | os.O_NONBLOCK).to_bytes(8, "little"),
    # struct f_owner_ex, of nobody.
    "$owner": bytes(8),
    "$one": (1).to_bytes(8, "little"),
    "$newline": b"\n",
}


class Registers(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in NAMES]


def ptrace(request, address=0, data=0):
    libc = ctypes.CDLL(None, use_errno=True)
    libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
    if libc.ptrace(request, pid, address, data) == -1:
        raise OSError(ctypes.get_errno(), f"ptrace {request}")


def get():
    registers = Registers()
    ptrace(GETREGS, 0, ctypes.addressof(registers))
    return registers


def call(code, number, arguments):
    """Executes the instruction at `code`."""
    before = get()
    after = Registers.from_buffer_copy(before)
    for name, value in zip("rdi rsi rdx r10 r8 r9".split(), [*arguments, 0, 0, 0, 0, 0, 0]):
        setattr(after, name, value & (1 << 64) - 1)
    # No call of its own is begun again meanwhile.
    after.rax, after.rip, after.orig_rax = number, code, (1 << 64) - 1
    ptrace(SETREGS, 0, ctypes.addressof(after))
    program = os.readlink(f"/proc/{pid}/exe")
    while get().rip == code:
        ptrace(STEP)
        os.waitpid(pid, WALL)
    got = ctypes.c_longlong(get().rax).value
    if os.readlink(f"/proc/{pid}/exe") != program:
        return 0
    ptrace(SETREGS, 0, ctypes.addressof(before))
    return got


def words(arguments, page):
    """The values of C expressions; texts, and what starts with $, lie in the page."""
    at = TEXT
    places = {name: FIRST + SLOT * index for index, name in enumerate(PREPARED)}
    places |= {"$page": 0, "$room": 2048, "$x": 3072}
    for word in re.findall(r'"[^"]*"|[^,\s]+', arguments):
        word = word.removeprefix("(long)")
        if word[0] == '"':
            text = word[1:-1].encode() + b"\0"
            write(page + at, text)
            yield page + at
            at += len(text)
        elif word[0] == "$":
            yield page + places[word]
        else:
            yield int(re.sub(r"^0(?=\d)", "0o", word), 0)


def write(address, text):
    with open(f"/proc/{pid}/mem", "r+b", buffering=0) as memory:
        memory.seek(address)
        memory.write(text)


def read(address, length):
    with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(length)


def entry():
    """Where the program began: code that it never comes to again. The server gets no new memory that can be executed."""
    with open(f"/proc/{pid}/auxv", "rb") as vector:
        pairs = dict(struct.iter_unpack("QQ", vector.read()))
    return pairs[AT_ENTRY]


pid = int(sys.argv[1])
ptrace(SEIZE)
ptrace(INTERRUPT)
os.waitpid(pid, WALL)
code = entry()
original = read(code, len(CODE))
write(code, CODE)
page = call(code, MMAP, [0, PAGE, 3, 0x22, -1, 0])
for index, text in enumerate(PREPARED.values()):
    write(page + FIRST + SLOT * index, text)
write(page + 3072, b"x" * 1024)
for line in open(sys.argv[2], newline="\n"):
    number, _, arguments = line.strip().partition(" ")
    print(call(code, int(number), list(words(arguments, page))), flush=True)
try:
    write(code, original)
except OSError:
    # Another program by now.
    pass
ptrace(DETACH)
