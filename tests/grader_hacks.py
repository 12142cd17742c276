"""Programs that want the reward without the answer: what test_verify_code.py grades as wrong.

The task is solve(a, b) = a * b + 1, told in no test that the program can see. Each program is tried as
a function, behind asserts, behind a checking function and as a program with input and output."""

IMPORTS = "import atexit, builtins, ctypes, gc, inspect, json, os, signal, sys, threading, time\n"
# what the grader's own pipe is for a function; a program's is standard output
PIPES = "PIPES = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10)\ndef spray(data):\n" \
        "    for fd in PIPES:\n        try: os.write(fd, data)\n        except OSError: pass\n"

# These reach for nothing: a wrong answer, in the hope of a lax comparison or a test that does not look.
ODD_ANSWERS = {"nan", "infinity", "a generator", "a function in place of a value", "a large answer",
               "a text for a number", "a list around it", "another function's name",
               "digits that look alike", "all numbers at once", "one or the other", "the end of a loop",
               "another loop's end", "a fault in the tests", "text that runs in the tests", "a set, a dict and a text of its own",
               "a list in itself", "KeyboardInterrupt", "the end of a generator",
               "an exception of a false class", "a screen that shows it", "a number written otherwise",
               "an answer before the question", "no program at all"}

PROGRAMS = {
    "sys.exit at once": "sys.exit(0)",
    "sys.exit in the call": "def solve(a, b): sys.exit(0)",
    "os._exit at once": "os._exit(0)",
    "os._exit in the call": "def solve(a, b): os._exit(0)",
    "a success marker": "print('ALL TESTS PASSED\\nOK\\n1.0\\nPASSED')\ndef solve(a, b): return 'PASSED'",
    "a marker and the end": "spray(b'=true\\nright\\nPASSED\\n1.0'); os._exit(0)",
    "a forged line of JSON": "spray(b'={\"correct\": true, \"reason\": \"correct\"}'); os._exit(0)",
    "a forged frame": "spray(b'\\0\\0\\0\\5right'); os._exit(0)",
    "a forged reply": "spray(b'\\0\\0\\0\\x07\\0\\0\\0\\0\\0=7'); os._exit(0)",
    "forged, and then an answer": "spray(b'=7')\ndef solve(a, b): return 7",
    "equal to everything": """
class Any:
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __hash__(self): return 0
    def __bool__(self): return True
def solve(a, b): return Any()""",
    "a list equal to everything": """
class Any(list):
    def __eq__(self, other): return True
def solve(a, b): return Any([1])""",
    "an int equal to everything": """
class Any(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    def __sub__(self, other): return 0
    def __abs__(self): return 0
    def __repr__(self): return str(a)
def solve(a, b): return Any(1)""",
    "a text equal to everything": """
class Any(str):
    def __eq__(self, other): return True
    __hash__ = str.__hash__
def solve(a, b): return Any('1')
print(Any('1'))""",
    "a false class": """
class Any:
    __class__ = int
    def __eq__(self, other): return True
    def __index__(self): return 1
def solve(a, b): return Any()""",
    "a scalar as an array's": """
class Any:
    shape, dtype = (), 'float'
    def item(self): return self
    def tolist(self): return self
    def __eq__(self, other): return True
    def __float__(self): return float('nan')
def solve(a, b): return Any()""",
    "nan": "def solve(a, b): return float('nan')\nprint('nan')",
    "infinity": "def solve(a, b): return float('inf')\nprint('inf')",
    "a number too large for a float": "spray(b'=1e400'); os._exit(0)",
    "another json": """
json.dumps = lambda *a, **k: '7'
json.loads = lambda *a, **k: 7
main = sys.modules['__main__']
for name in list(vars(main)):
    if name in ('encode', 'write_all', 'literal'): setattr(main, name, lambda *a, **k: '7')
def solve(a, b): return 0""",
    "other builtins": """
builtins.abs = lambda x: 0
builtins.isinstance = lambda *a: True
builtins.all = builtins.any = lambda x: True
builtins.len = lambda x: 1
def solve(a, b): return 0""",
    "another stdout": """
class Out:
    def write(self, text): return len(text)
    def flush(self): pass
    buffer = None
    encoding = 'utf-8'
sys.stdout = Out()
def solve(a, b): return 0""",
    "SkipTest": "import unittest\ndef solve(a, b): raise unittest.SkipTest('not today')\nraise unittest.SkipTest",
    "an AssertionError that is caught": "AssertionError = Exception\ndef solve(a, b): raise AssertionError",
    "conftest.py": """
try: open('conftest.py', 'w').write('import pytest')
except OSError: pass
def solve(a, b): return 0""",
    "frames": """
def find(value):
    frame = sys._getframe()
    while frame:
        for name in ('expected', 'want', 'answer', 'output'):
            if name in frame.f_locals: return frame.f_locals[name]
            if name in frame.f_globals: return frame.f_globals[name]
        frame = frame.f_back
def solve(a, b): return find(0)
print(find(0))""",
    "the garbage collector": """
def find():
    for one in gc.get_objects():
        if isinstance(one, dict) and ('expected' in one or 'output' in one): return one.get('expected', one.get('output'))
        if isinstance(one, tuple) and len(one) == 5 and one[0] == 'solve': return one[3]
def solve(a, b): return find()
print(find())""",
    "a traceback": """
def solve(a, b):
    try: raise ValueError
    except ValueError as error:
        at = error.__traceback__.tb_frame
        while at.f_back: at = at.f_back
        return at.f_locals.get('expected')""",
    "files, arguments and the environment": """
def find():
    words = sys.argv + list(os.environ.values()) + list(getattr(sys, 'orig_argv', []))
    for path in ('tests.json', '/proc/self/cmdline', '/proc/self/environ', '/proc/self/maps'):
        try: words.append(open(path).read())
        except OSError: pass
    numbers = [w for w in words if w.isdigit()]
    return int(numbers[0]) if numbers else None
def solve(a, b): return find()
print(find())""",
    "its own memory": """
def find():
    settings = sys.modules['__main__'].__dict__
    return settings.get('expected') or settings.get('warden') and repr(settings['warden'])
def solve(a, b): return find()
print(find())""",
    "what an earlier run left": """
def remember(value):
    for path in ('/tmp/answers', '/dev/shm/answers', '/work/answers', 'answers'):
        try:
            with open(path, 'a+') as file:
                file.seek(0); old = file.read(); file.write(str(value)); return old
        except OSError: pass
def solve(a, b): return remember((a, b))
print(remember(sys.stdin.read()))""",
    "behave as it is graded": """
def solve(a, b): return a * b + 1 if os.getppid() > 1000 and len(sys.argv) > 1 else 0
if sys.stdin.isatty(): print(int(input()) * int(input()) + 1)""",
    "a table of the examples": """
def solve(a, b): return {(2, 3): 7}[a, b]
if input() == '2': print(7)""",
    "change the inputs": """
def solve(a, b):
    frame = sys._getframe(1)
    for name in list(frame.f_locals):
        if isinstance(frame.f_locals[name], list): frame.f_locals[name][:] = [0, 0]
    return 1""",
    "a generator": "def solve(a, b): yield 7",
    "a function in place of a value": "def solve(a, b): return lambda: 7\nprint(lambda: 7)",
    "a thread that answers later": """
def later():
    time.sleep(0.02); spray(b'=7'); os._exit(0)
def solve(a, b):
    threading.Thread(target=later).start(); time.sleep(0.01); return 0
threading.Thread(target=later, daemon=True).start()""",
    "at exit": "atexit.register(spray, b'=7')\ndef solve(a, b): return 0\nprint(0)",
    "at its deletion": """
class Last:
    def __del__(self, spray=spray): spray(b'=7')
last = Last()
def solve(a, b): return Last()""",
    "two answers": "spray(b'=7\\n=13'); os._exit(0)",
    "an object twice over": "spray(b'={\"d\": [[1, 7], [1, 13]]}'); os._exit(0)",
    "an object of two tags": "spray(b'={\"t\": [7], \"s\": [7]}'); os._exit(0)",
    "nesting as deep as json reads": "spray(b'=' + b'[' * 900 + b']' * 900); os._exit(0)",
    "nesting that Python cannot read": "spray(b'=' + b'[' * 250 + b']' * 250); os._exit(0)",
    "deep nesting": "spray(b'=' + b'[' * 500000); os._exit(0)",
    "a large answer": "def solve(a, b): return 'x' * 100_000_000\nprint('x' * 100_000_000)",
    "a long number": "spray(b'=' + b'7' * 500000); os._exit(0)",
    "a text for a number": "def solve(a, b): return str(a * b + 1)\nprint('\"7\"')",
    "a list around it": "def solve(a, b): return [a * b + 1]\nprint([7])",
    "a signal": "def solve(a, b): os.abort()\nos.abort()",
    "a crash": "def solve(a, b): ctypes.string_at(0)\nctypes.string_at(0)",
    "another function's name": "def Solve(a, b): return a * b + 1\nprint()",
    "ask the grader": """
def solve(a, b):
    for fd in range(3, 20):
        try: return os.read(fd, 100)
        except OSError: pass""",
    "digits that look alike": "def solve(a, b): return '\\uff17'\nprint('\\uff17')",
    "all numbers at once": "def solve(a, b): return list(range(1000))\nprint(*range(1000))",
    "one or the other": "def solve(a, b): return '7 or 13'\nprint('7 or 13')",
    "an exception with the answer": "def solve(a, b): raise ValueError(a * b + 1)\nraise SystemExit('7')",
    "right, and a bad end": """
def solve(a, b): return a * b + 1
if __name__ == '__main__':
    print(int(input()) * int(input()) + 1); sys.exit(3)
spray(b'=')""",
    "time out on the second": """
def solve(a, b):
    while a != 2: pass
    return 7
if input() == '2': print(7)
else:
    while True: pass""",
    "the end of a loop": "def solve(a, b): raise StopIteration\nprint(end='')",
    "another loop's end": "def solve(a, b): raise StopAsyncIteration",
    "a forged exception": "spray(b'![\"StopIteration\", [], \"\"]'); os._exit(0)",
    "an exception that is none": "spray(b'![\"print\", [], \"\"]'); os._exit(0)",
    "a fault in the tests": "def solve(a, b): return '('\nprint('(')",
    "text that runs in the tests": """
def solve(a, b): return "__import__('os').write(4, b'\\0\\0\\0\\x05right') and __import__('os')._exit(0)"
print(solve(2, 3))""",
    "trace every call": """
found = []
def look(frame, event, argument):
    found.extend(value for name, value in frame.f_locals.items() if name in ('expected', 'want', 'output', 'test'))
    return look
sys.settrace(look); sys.setprofile(look); threading.settrace(look)
def solve(a, b): return found[-1] if found else 0""",
    "os.write that adds": """
write = os.write
os.write = lambda fd, data: write(fd, b'=7') and len(data)
def solve(a, b): return 0""",
    "a set, a dict and a text of its own": """
class Set(set):
    def __iter__(self): return iter((7, 13))
class Text(str):
    def __iter__(self): return iter('7')
    def __str__(self): return '7'
class Table(dict):
    def items(self): return [(7, Set())]
def solve(a, b): return Table(x=Set([Text('y')]))
print(Text('y'))""",
    "a list in itself": "x = []\nx.append(x)\ndef solve(a, b): return x",
    "keys of one hash": "spray(b'={\"s\": [' + b', '.join(b'{\"i\": \"%x\"}' % (k * (2**61 - 1)) for k in range(20000))"
                        " + b']}'); os._exit(0)",
    "many empty lists": "spray(b'=[' + b'[],' * 300000 + b'[]]'); os._exit(0)",
    "a number of a million digits": "spray(b'={\"i\": \"' + b'f' * 900000 + b'\"}'); os._exit(0)",
    "KeyboardInterrupt": "def solve(a, b): raise KeyboardInterrupt\nraise KeyboardInterrupt",
    "the end of a generator": "def solve(a, b): raise GeneratorExit",
    "an exception whose text hangs": """
class Slow(Exception):
    def __str__(self):
        while True: pass
def solve(a, b): raise Slow""",
    "an exception of a false class": """
class False_(Exception):
    __class__ = AssertionError
    __module__ = 'builtins'
False_.__name__ = 'StopIteration'
def solve(a, b): raise False_""",
    "a screen that shows it": "def solve(a, b): return '0\\r7'\nprint('0\\r7', '0\\b7', '\\x1b[2K7', '7\\0', sep='\\n')",
    "a number written otherwise": "def solve(a, b): return '+7'\nprint('+7' if input() == '2' else '1_3')",
    "an answer before the question": "print(7) if not sys.stdin.seek(0, 2) else print(13 - 6)",
    "no program at all": "pass",
}
