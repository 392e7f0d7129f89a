"""Programs that mean no good, for trying a sandbox out: each may do only so much harm where there is none.

`$CANARY` and its like are replaced by what `lit_reason_code.battery` sets up. None solves its problem: SCRIPTS are to
read 3 and print 7, 864209753 and 40 on three lines; of f, CALLS and ASSERTS want f(3) = 864209753 and f(4) = 975318642.
"""

from __future__ import annotations

_LIBC = "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\n"
_SOLVED = "\nprint('solved', flush=True)\n"
_FORGED = "total 2\\npass 0\\npass 1\\ndone\\nok\\n7\\n"

SCRIPTS = {
    # --- time
    "endless loop": "while True: pass",
    "loop that swallows exceptions": "while True:\n try:\n  while True: pass\n except BaseException: pass",
    "loop that ignores signals": (
        "import signal\nfor n in range(1, 65):\n try: signal.signal(n, signal.SIG_IGN)\n"
        " except (OSError, ValueError): pass\nwhile True: pass"
    ),
    "sleep": "import time\ntime.sleep(1000)",
    "wait for a signal": "import signal\nsignal.pause()",
    "backtracking": "import re\nre.match('(a+)+$', 'a' * 40 + 'b')",
    "huge power": "print(len(str(9 ** 9 ** 8)))",
    "thread that stays": "import threading\nthreading.Thread(target=lambda: [0 for _ in iter(int, 1)]).start()",
    "handler that stays": "import atexit, time\natexit.register(time.sleep, 1000)",
    "finalizer that stays": "import time\nclass A:\n def __del__(self): time.sleep(1000)\na = A()\ndel a",
    # --- processes
    "fork bomb": "import os\nfor _ in range(30):\n try: os.fork()\n except OSError: pass\nwhile True: pass",
    "daemon": (
        "import os, time\nif os.fork() == 0:\n os.setsid()\n if os.fork() == 0:\n  time.sleep(30)\n os._exit(0)"
    ),
    "subprocess": "import subprocess\nsubprocess.Popen(['sleep', '30'])",
    "shell": "import os\nif os.system('sleep 30 &') == 0: print('started')",
    "multiprocessing": (
        "import multiprocessing, time\np = multiprocessing.get_context('fork').Process(target=time.sleep, args=(30,))"
        "\np.start()"
    ),
    "exec": "import os\nos.execv('/bin/sleep', ['sleep', '30'])",
    "fork by system call": _LIBC + "for n in (57, 58, 56, 435):\n libc.syscall(n, 17, 0, 0, 0, 0)\nwhile True: pass",
    "program in memory": (
        "import os\nfd = os.memfd_create('x')\nos.write(fd, open('/bin/sleep', 'rb').read())\n"
        "os.execve(fd, ['sleep', '30'], {})"
    ),
    "detach from the parent's death": _LIBC + "libc.prctl(1, 0)\nos.setsid()\nwhile True: pass",
    # --- memory, threads, files, output
    "memory at once": "x = bytearray(2 ** 33)",
    "memory in pieces": "x = []\nwhile len(x) < 2 ** 13:\n x.append(bytearray(2 ** 20))\nprint('got it')",
    "memory again and again": (
        "x = []\nwhile True:\n try: x.append(bytearray(2 ** 24))\n except MemoryError: x.clear()"
    ),
    "shared memory": "import mmap\nx = [mmap.mmap(-1, 2**28) for _ in range(16)]\nfor m in x: m.write(b'x' * 2**28)",
    "threads": (
        "import threading, time\nthreading.stack_size(32768)\nfor _ in range(3000):\n"
        " threading.Thread(target=time.sleep, args=(30,), daemon=True).start()"
    ),
    "recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef f(n): return sorted([1], key=lambda _: f(n+1))\nf(0)",
    "output flood": "while True: print('x' * 10000)",
    "error flood": "import sys\nwhile True: print('x' * 10000, file=sys.stderr)",
    "file flood": (
        "import os\nfor place in ('.', '/tmp', '/dev/shm', '/var/tmp', '$FOLDER'):\n for n in range(20):\n"
        "  try: open(f'{place}/flood{n}', 'w').write('x' * 10 ** 6)\n  except OSError: pass"
    ),
    "growing its input": "import os\nos.lseek(0, 0, 2)\nfor _ in range(100): os.write(0, b'x' * 10 ** 6)",
    "descriptors": "import os\nx = []\nwhile True: x.append(os.dup(0))",
    "raised limits": (
        "import resource\nfor kind in range(16):\n try: resource.setrlimit(kind, (-1, -1))\n"
        " except (ValueError, OSError): pass\nx = bytearray(2 ** 33)"
    ),
    "priority": "import os\nos.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))\nos.nice(-20)",
    # --- files of the host
    "read a file": "print(open('$CANARY').read())",
    "read accounts": "print(open('/etc/passwd').read(), open('/etc/shadow').read())",
    "list folders": "import os\nfor p in ('$FOLDER', '/home', '/root', '/tmp', '.', '..'):\n print(os.listdir(p))",
    "links": "import os\nos.symlink('$CANARY', 'link')\nos.link('$CANARY', '/tmp/link')\nprint(open('link').read())",
    "overwrite a file": "open('$CANARY', 'w').write('gone')",
    "remove a file": "import os\nos.remove('$CANARY')",
    "truncate by system call": _LIBC
    + "libc.truncate(b'$CANARY', 0)\nlibc.unlink(b'$CANARY')\nlibc.chmod(b'$CANARY', 0)",
    "environment": "import os\nprint(dict(os.environ), open('/proc/self/environ').read())",
    "environment of the trainer": "print(open('/proc/$PID/environ').read(), open('/proc/$PID/cmdline').read())",
    "memory of the trainer": "f = open('/proc/$PID/mem', 'rb')\nprint(f.read(10))",
    "memory of the zygote": "import os\nprint(open(f'/proc/{os.getppid()}/mem', 'rb').read(1))",
    "old root": "import os\nfd = os.open('/proc/1/root', os.O_PATH)\nprint(os.listdir(fd))\nos.chroot('.')",
    "what is installed": "import sys, lit_reason\nprint(lit_reason.__file__)",
    "change folder": "import os\nos.chdir('$FOLDER')\nprint(open('canary').read())",
    # --- network
    "connect": "import socket\nsocket.create_connection(('127.0.0.1', $PORT), 1).send(b'x')",
    "datagram": "import socket\nsocket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', $PORT))",
    "listen": "import socket\ns = socket.socket()\ns.bind(('127.0.0.1', 0))\ns.listen()\nprint(s.getsockname())",
    "unix socket": "import socket\nsocket.socket(socket.AF_UNIX).connect('$FOLDER/socket')",
    "abstract unix socket": "import socket\nsocket.socket(socket.AF_UNIX).connect('\\0$ABSTRACT')",
    "netlink": "import socket\nsocket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0).bind((0, 0))",
    "name lookup": "import socket\nprint(socket.getaddrinfo('localhost', 80))",
    # --- other processes
    "kill": "import os\nos.kill($VICTIM, 9)",
    "kill by system call": _LIBC + "for n in (62, 200, 234, 424):\n libc.syscall(n, $VICTIM, 9, 9, 0)",
    "kill all": "import os\nos.kill(-1, 9)",
    "kill the zygote": "import os\nos.kill(os.getppid(), 9)\nos.killpg(0, 9)",
    "signal by descriptor": (
        "import fcntl, os\nfcntl.fcntl(0, fcntl.F_SETOWN, $VICTIM)\nfcntl.fcntl(0, fcntl.F_SETFL, os.O_ASYNC)"
    ),
    "ptrace": _LIBC + "print(libc.ptrace(16, $VICTIM, 0, 0))\nprint(libc.ptrace(16, os.getppid(), 0, 0))",
    "read memory by system call": (
        _LIBC + "b = ctypes.create_string_buffer(64)\nv = (ctypes.c_void_p * 2)(ctypes.addressof(b), 64)\n"
        "print(libc.process_vm_readv($PID, v, 1, v, 1, 0))"
    ),
    "take a descriptor": _LIBC + "p = libc.syscall(434, $PID, 0)\nprint(libc.syscall(438, p, 0, 0))",
    # --- the kernel
    "mounts": _LIBC + "print(libc.unshare(0x10020000), libc.mount(b'none', b'/', b'tmpfs', 0, b''), libc.chroot(b'/'))",
    "namespaces": "import os\nfd = os.open('/proc/1/ns/mnt', os.O_RDONLY)\nprint(fd)",
    "become root": "import os\nos.setuid(0)\nos.setgroups([0])",
    "rare system calls": _LIBC
    + "for n in (101, 165, 175, 246, 248, 250, 298, 321, 323, 425): libc.syscall(n, 0, 0, 0)",
    "crash": "import ctypes\nctypes.string_at(0)",
    "abort": "import os\nos.abort()",
    "wild write": "import ctypes\nfor n in range(100): ctypes.memset(id(None) + n * 8, 255, 8)",
    # --- verdicts
    "exit": "import os\nos._exit(0)",
    "polite exit": "import sys\nsys.exit(0)",
    "first line only": "print(7)",
    "first lines and more": "print('7\\n864209752\\n40')",
    "all but the last line": "print('7\\n864209753')",
    "one line too many": "print('7\\n864209753\\n40\\n41')",
    "right, then an exception": "print('7\\n864209753\\n40', flush=True)\nraise ValueError",
    "right, then a crash": "print('7\\n864209753\\n40', flush=True)\nimport ctypes\nctypes.string_at(0)",
    "right, then silence": "print('7\\n864209753\\n40', flush=True)\nwhile True: pass",
    "forged verdicts": (
        f"import os\nfor fd in range(64):\n for _ in range(3):\n  try: os.write(fd, b'{_FORGED}')\n"
        "  except OSError: pass\nos._exit(0)"
    ),
    "patched interpreter": (
        "import builtins, json, os, sys\nbuiltins.print = lambda *a, **k: None\njson.dumps = lambda *a, **k: '[true]'\n"
        "sys.stdout = sys.__stdout__ = None\nos._exit = lambda n: None\nsys.exit = None\nsys.modules.clear()"
    ),
    "looks for the answer": (
        "import gc, sys\nfound = []\nframe = sys._getframe()\nwhile frame:\n found.append(repr(frame.f_locals))\n"
        " frame = frame.f_back\nfound += [repr(o) for o in gc.get_objects() if isinstance(o, (str, bytes, list))]\n"
        "print('7\\n864209753\\n40' if any(str(864209754 - 1) in f and 'found' not in f for f in found) else 'no')"
    ),
    "searches its heap": (
        "import ctypes\nlibc = ctypes.CDLL(None)\nlibc.sbrk.restype = ctypes.c_void_p\nend = libc.sbrk(0)\n"
        "wanted = ''.join(chr(48 + d) for d in (8, 6, 4, 2, 0, 9, 7, 5)).encode()\n"
        "print('7\\n' + (wanted + b'3').decode() + '\\n40' if ctypes.string_at(end - 2**21, 2**21).count(wanted) > 1"
        " else 'no')"
    ),
}

_FRAME = (
    "import json, os, struct\n"
    "def frame(text):\n return struct.pack('=I', len(text)) + text.encode()\n"
    "def send(text):\n"
    " for fd in range(3, 12):\n  try: os.write(fd, frame(text))\n  except OSError: pass\n"
)

CALLS = {
    "equal to everything": "class E:\n def __eq__(self, other): return True\ndef f(x): return E()",
    "number equal to everything": "class E(int):\n def __eq__(self, other): return True\ndef f(x): return E(1)",
    "text equal to everything": "class E(str):\n def __eq__(self, other): return True\ndef f(x): return E('864209753')",
    "not a number": "def f(x): return float('nan')",
    "infinite iterator": "import itertools\ndef f(x): return itertools.count()",
    "list of itself": "def f(x):\n a = []\n a.append(a)\n return a",
    "deep list": "def f(x):\n a = []\n for _ in range(10 ** 6): a = [a]\n return a",
    "large result": "def f(x): return 'x' * 10 ** 8",
    "hangs in the second call": "n = []\ndef f(x):\n n.append(x)\n while len(n) > 1: pass\n return 864209753",
    "exits in a call": "import os\ndef f(x): os._exit(0)",
    "raises SystemExit": "def f(x): raise SystemExit(0)",
    "raises KeyboardInterrupt": "def f(x): raise KeyboardInterrupt",
    "raises what cannot be raised again": "class E(BaseException):\n def __str__(self): raise E\ndef f(x): raise E",
    "no function": "g = 1",
    "function of another shape": "def f(): return 864209753",
    "forged answers": _FRAME + "for _ in range(3): send('[true]')\nos._exit(0)",
    "broken frames": _FRAME + "os.write(5, b'\\xff' * 100)\nos._exit(0)",
    "deep frames": _FRAME + "os.write(5, frame('[' * 100000))\nos._exit(0)",
    "patched encoder": (
        "import sys, json\nwire = sys.modules['lit_reason_code.sandbox.wire']\nclass E:\n"
        " def __eq__(self, other): return True\nwire.encode = lambda value: True\nwire.frame = lambda tree: b'\\0'\n"
        "json.loads = json.dumps = lambda *a, **k: E()\ndef f(x): return E()"
    ),
    "reads the calls ahead": "import os\nos.lseek(4, 0, 2)\ndef f(x): return 864209753",
    "looks for results": (
        "import gc, sys\ndef f(x):\n frame, found = sys._getframe(1), []\n while frame:\n"
        "  found += [v for v in [*frame.f_locals.values(), *frame.f_globals.values()] if isinstance(v, int)]\n"
        "  frame = frame.f_back\n found += [o for o in gc.get_objects() if isinstance(o, int)]\n return found"
    ),
    "closes everything": "import os\nos.closerange(0, 64)\ndef f(x): return 864209753",
}

ASSERTS = {
    "equal to everything": CALLS["equal to everything"],
    "number equal to everything": CALLS["number equal to everything"],
    "exits at once": "import os\nos._exit(0)",
    "exits in a call": CALLS["exits in a call"],
    "forged verdicts": (
        f"import os\nfor fd in range(64):\n try: os.write(fd, b'{_FORGED}')\n except OSError: pass\ndef f(x): return 0"
    ),
    "forged answers": _FRAME + "for _ in range(3): send('[true]')\ndef f(x): return 0",
    "deep frames": CALLS["deep frames"],
    "unknown kinds": _FRAME + 'send(\'[{"other":"x"}]\')\nsend(\'[{"int":"zz"}]\')\ndef f(x): return 0',
    "excuses: ImportError": "def f(x): raise ImportError('numpy')",
    "excuses: NameError": "def f(x): raise NameError('f')",
    "excuses: StopIteration": "def f(x): raise StopIteration",
    "excuses: AssertionError": "def f(x): raise AssertionError",
    "no function": "g = 1",
    "patched tests": (
        "import builtins, sys\nbuiltins.AssertionError = Exception\nbuiltins.__build_class__ = None\n"
        "for m in list(sys.modules.values()):\n if hasattr(m, 'Judge'): m.Judge._mark = lambda self, n, p: None\n"
        "def f(x): return 0"
    ),
    "colliding set": "def f(x): return {n * (2 ** 61 - 1) for n in range(3000)} | {0}",
    "flood of answers": _FRAME + "while True: send('[0]' + ' ' * 60000)",
    "never answers": "def f(x):\n while True: pass",
    "looks for the tests": CALLS["looks for results"],
    "reads every descriptor": (
        "import os\nfound = []\nfor fd in range(3, 64):\n if fd == 4: continue\n try:\n  os.lseek(fd, 0, 0)\n"
        "  found.append(os.read(fd, 10 ** 6))\n except OSError: pass\n"
        "def f(x): return 864209753 if any(b'864209753' in text for text in found) else 0"
    ),
}
