"""A jinja2 environment for templates that come with a model: sandboxed, and bounded in work.

jinja2's immutable sandbox keeps a template from reaching Python (no name that begins with an
underscore, nothing modified, no loader, so nothing included). It does not keep one from running for
ever or filling the memory, so here every rendering has a budget. Work is counted, not timed: the
same template fails at the same place on every machine.

    spent                                                        on
    LOOP + constant text of the body / CHARS                     every turn of a loop, call of a macro
    CALL + size of arguments and result                          every call, filter, test (of a macro:
                                                                 CALL and the result)
    size of operands and result                                  + - * / // % ** ~ == in [a:b] [...] {...}
    size                                                         every value printed
    size = 1 an element, of nested ones too, + length / CHARS of a string (a range: its length)

What an operation would make out of little (`"x" * 10**9`, center, join, replace, indent, format) is
computed and spent before it runs. Since every value was paid for when it was made, memory is bounded
by BUDGET x CHARS characters, output by MAX_OUTPUT, ranges by jinja2's 100,000, integers by 4,096
bits, recursion by Python's limit, and the source by MAX_SOURCE. Filters that no chat template needs
and that cannot be bounded so are absent (ABSENT), as are a few string methods.

Otherwise it is what `transformers` sets up (utils/chat_template_utils.py): blocks trimmed, break and
continue, {% generation %}, raise_exception, strftime_now, a tojson that escapes no HTML. Imports
jinja2, so import it late. Knows nothing about messages or tokens.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.runtime import LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError
from jinja2.utils import Namespace, pass_context
from jinja2.visitor import NodeTransformer

BUDGET = 2_000_000  # of one rendering; real templates spend hundreds to thousands
CHARS = 32  # characters that count as one element
LOOP, CALL = 10, 20  # about ten for every microsecond that they take
MAX_SOURCE = 1 << 16  # characters
MAX_OUTPUT = 1 << 24  # characters
_MAX_BITS = 4096

ABSENT = {"pprint", "random", "striptags", "urlize", "wordwrap", "xmlattr"}
_REFUSED_METHODS = {"decode", "encode", "hex", "maketrans", "translate"}
# what these make, or how long they take, is about their text times their argument
_PRODUCTS = {"expandtabs", "indent", "lstrip", "rfind", "rindex", "rpartition", "rsplit", "rstrip",
             "strip", "tojson", "trim"}
# these look at the outside of a value only
_SHALLOW = {"attr", "count", "d", "default", "first", "last", "length"}
_TO_LISTS = {"batch", "list", "map", "reject", "select", "slice", "sort", "unique"}
_VIEWS = (type({}.keys()), type({}.values()), type({}.items()))


class OverBudget(Exception):
    """The template asks for more work or memory than a chat can need."""


# ---- the compiler's part: where jinja2 has no hook, a call is put into the syntax tree ------------

def _call(method: str, arguments: list[nodes.Expr], lineno: int) -> nodes.Call:
    """environment.METHOD(arguments)"""
    return nodes.Call(nodes.EnvironmentAttribute(method), arguments, [], None, None,
                      lineno=lineno).set_lineno(lineno)


class _Meter(NodeTransformer):
    """Loops and macros pay for each turn, operators for their operands and results."""

    def _body(self, node: Any) -> Any:
        self.generic_visit(node)
        text = sum(len(data.data) for one in node.body for data in _template_data(one))
        cost = nodes.Const(LOOP + text // CHARS, lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(_call("spend", [cost], node.lineno),
                                           lineno=node.lineno))
        return node

    visit_Macro = visit_CallBlock = visit_Block = _body

    def visit_For(self, node: nodes.For) -> nodes.For:
        if node.test is not None:  # it runs for items that the body never sees
            cost = nodes.Const(LOOP, lineno=node.lineno)
            node.test = nodes.And(_call("spend", [cost], node.lineno), node.test,
                                  lineno=node.lineno)
        return self._body(node)

    def _made(self, node: Any) -> Any:
        self.generic_visit(node)
        return _call("made", [node], node.lineno)

    visit_List = visit_Dict = _made

    def visit_Tuple(self, node: nodes.Tuple) -> Any:
        return self._made(node) if node.ctx == "load" else self.generic_visit(node)

    def visit_Getitem(self, node: nodes.Getitem) -> Any:
        return self._made(node) if isinstance(node.arg, nodes.Slice) else self.generic_visit(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Call:
        self.generic_visit(node)
        return _call("concat_values", node.nodes, node.lineno)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        node.expr = _call("seen", [node.expr], node.lineno)
        for operand in node.ops:
            operand.expr = _call("seen", [operand.expr], node.lineno)
        return node


def _template_data(node: nodes.Node) -> Iterator[nodes.TemplateData]:
    if isinstance(node, nodes.TemplateData):
        yield node
    yield from node.find_all(nodes.TemplateData)


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}: what the assistant says. Where spans are wanted the
    text comes out between two marks."""

    tags = {"generation"}

    def parse(self, parser: Any) -> nodes.CallBlock:
        lineno = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_marked"), [], [], body).set_lineno(lineno)

    def _marked(self, caller: Callable[[], str]) -> str:
        start, end = self.environment.span_marks
        return f"{start}{caller()}{end}"


# ---- what templates find under these names, as in transformers -----------------------------------

def _raise_exception(message: Any) -> None:
    raise jinja2.TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(x: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None,
            sort_keys: bool = False) -> str:
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


class _Dict:
    """`dict` without the type behind it."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)


class _Namespace(Namespace):
    """A namespace that holds no name of Python's own."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that a key may be called self
        given = dict(*args[1:], **kwargs)
        for name in given:
            _check_name(name)
        Namespace.__init__(args[0], given)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: Any) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace holds no name like {name!r}")


@pass_context
def _printed(context: Any, value: Any) -> Any:
    """jinja2's finalize. Wanting the context, it also keeps constants from being evaluated while
    the template is compiled."""
    return context.environment.seen(value)


# ---- the environment -----------------------------------------------------------------------------

class Sandbox(ImmutableSandboxedEnvironment):
    """One template and its budget; renders one text at a time."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, source: str) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=_printed,
                         extensions=[_Generation, loopcontrols])
        if len(source) > MAX_SOURCE:
            raise OverBudget(f"its source has {len(source)} characters, at most {MAX_SOURCE} "
                             f"are read")
        self.left = BUDGET
        self.span_marks = ("", "")
        self.filters["tojson"] = _tojson
        self.filters = {name: self._metered(name, function)
                        for name, function in self.filters.items() if name not in ABSENT}
        self.tests = {name: self._metered_test(function) for name, function in self.tests.items()}
        self.globals = {"range": self.globals["range"], "cycler": self.globals["cycler"],
                        "joiner": self.globals["joiner"], "dict": _Dict(),
                        "namespace": _Namespace, "raise_exception": _raise_exception,
                        "strftime_now": _strftime_now}
        self.template = self.from_string(source)

    def render(self, variables: dict[str, Any], span_marks: tuple[str, str] = ("", "")) -> str:
        """The text; variables hold plain data. Raises whatever the template raises, OverBudget."""
        self.left, self.span_marks = BUDGET, span_marks
        pieces, length = [], 0
        for piece in self.template.generate(variables):
            pieces.append(piece)
            length += len(piece)
            if length > MAX_OUTPUT:
                raise OverBudget(f"it prints more than {MAX_OUTPUT} characters")
        return "".join(pieces)

    def _parse(self, source: str, name: Any, filename: Any) -> nodes.Template:
        return _Meter().visit(super()._parse(source, name, filename))

    # ---- the budget ----

    def spend(self, units: int) -> bool:
        self.left -= units
        if self.left < 0:
            raise OverBudget(f"it takes more than {BUDGET} steps: it loops or grows without end")
        return True

    def size(self, *values: Any) -> int:
        """See the head of the file; counts no further than what is left."""
        total, stack = 0, list(values)
        while stack:
            value = stack.pop()
            total += 1
            if isinstance(value, (str, bytes)):
                total += len(value) // CHARS
            elif isinstance(value, dict):
                stack += value.keys()
                stack += value.values()
            elif isinstance(value, (list, tuple, set, frozenset, *_VIEWS)):
                stack += value
            elif isinstance(value, range):
                total += len(value)
            elif isinstance(value, Namespace):
                stack.append(value._Namespace__attrs)
            if total + len(stack) > self.left:
                return total + len(stack)
        return total

    def seen(self, value: Any) -> Any:
        self.spend(self.size(value))
        return value

    def made(self, value: Any) -> Any:
        """A value that was computed; what is computed only when asked for pays item by item."""
        if isinstance(value, Iterator) and not isinstance(value, LoopContext):
            return self._paying(value)
        return self.seen(value)

    def _paying(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            self.spend(LOOP + self.size(item))
            yield item

    def concat_values(self, *values: Any) -> str:
        self.spend(2 * self.size(*values))
        return "".join(map(str, values))

    def _bound(self, name: str, text: Any, arguments: tuple[Any, ...]) -> None:
        """Spends what a filter or a string's method may make, before it does."""
        if name in _SHALLOW:
            self.spend(CALL)
            return
        own = self.size(text)
        self.spend(CALL + own + self.size(*arguments))
        for number in arguments:
            if isinstance(number, int):
                # as if it were a width, in characters; batch fills a list up to it
                self.spend(abs(number) // (1 if name == "batch" else CHARS))
        if name == "replace":
            texts = [one for one in arguments if isinstance(one, str)]
            self.spend(max((text.count(old) * len(new) for old in texts for new in texts),
                           default=0) // CHARS if isinstance(text, str) else 0)
        elif name in _PRODUCTS:
            self.spend(own * sum(abs(one) if isinstance(one, int) else self.size(one) * CHARS
                                 for one in arguments if one is not None))
        elif name in _TO_LISTS and isinstance(text, str):
            self.spend(len(text))
        elif name in ("split", "splitlines") and isinstance(text, str):
            self.spend(text.count(arguments[0]) if arguments and arguments[0] else len(text) // 8)
        elif name == "format" and isinstance(text, str):
            self._bound_format(text, arguments)
        elif name == "sum" and any(not isinstance(one, (int, float, str)) for one in arguments):
            raise OverBudget("sum adds numbers only")

    def _joinable(self, separator: Any, items: Any) -> Any:
        """What join takes, its separators paid for."""
        items = list(items) if isinstance(items, Iterator) else items
        self.spend(len(items) * self.size(separator) if hasattr(items, "__len__") else 0)
        return items

    def _bound_format(self, form: str, arguments: tuple[Any, ...]) -> None:
        """% and format: each field prints one argument, padded to at most four digits' width."""
        if re.search(r"\d{5}|\{[^{}]*\{|%[^%a-zA-Z]*\*", form):
            raise OverBudget("it formats to a width that no chat needs")
        fields = form.count("%") + form.count("{")
        self.spend(fields * (10_000 // CHARS * bool(re.search(r"\d\d", form))
                             + self.size(*arguments)))

    # ---- jinja2's hooks ----

    def call(self, context: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        owner = getattr(function, "__self__", None)
        if owner is self:  # one of the calls that _Meter put in
            return function(*args)
        given = (*args, *(value for key, value in kwargs.items() if not key.startswith("_")))
        if isinstance(owner, (str, bytes)):
            if function.__name__ in _REFUSED_METHODS:
                raise SecurityError(f"str.{function.__name__} is not available")
            if function.__name__ == "join" and given:
                args = given = (self._joinable(owner, given[0]), *given[1:])
            self._bound(function.__name__, owner, given)
        elif isinstance(function, Macro):
            self.spend(CALL)  # what it does with its arguments is counted there
        else:
            self._bound("", owner if isinstance(owner, (list, tuple)) else None, given)
        return self.made(super().call(context, function, *args, **kwargs))

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        inner = super().wrap_str_format(value)
        if inner is None:
            return None

        def bounded(*args: Any, **kwargs: Any) -> str:
            self._bound_format(value.__self__, (*args, *kwargs.values()))
            return inner(*args, **kwargs)
        return bounded

    def getitem(self, obj: Any, argument: Any) -> Any:
        if not isinstance(argument, (str, int)):
            self.seen(argument)  # hashing it takes its size
        return super().getitem(obj, argument)

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        self.spend(self.size(left, right))
        if operator == "*":
            for times, thing in ((left, right), (right, left)):
                if isinstance(times, int) and isinstance(thing, (str, bytes)):
                    self.spend(len(thing) * max(times, 0) // CHARS)
                elif isinstance(times, int) and isinstance(thing, (list, tuple)):
                    self.spend(self.size(thing) * max(times, 0))
        if operator in "**" and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() * right if operator == "**" \
                else left.bit_length() + right.bit_length()
            if bits > _MAX_BITS:
                raise OverBudget(f"a number has more than {_MAX_BITS} bits")
        if operator == "%" and isinstance(left, str):
            self._bound_format(left, (right,))
        return self.seen(super().call_binop(context, operator, left, right))

    def _metered(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter; its first argument is jinja2's own where it asked for one."""
        own = int(hasattr(function, "jinja_pass_arg"))

        @functools.wraps(function)
        def filtered(*args: Any, **kwargs: Any) -> Any:
            given = (*args[own + 1:], *kwargs.values())
            text = args[own]
            if name == "join":
                text = self._joinable(given, text)
                args = (*args[:own], text, *args[own + 1:])
            self._bound(name, text, given)
            return self.made(function(*args, **kwargs))
        return filtered

    def _metered_test(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A test of one value is quick unless that is text; one of two compares."""
        own = int(hasattr(function, "jinja_pass_arg"))

        @functools.wraps(function)
        def tested(*args: Any, **kwargs: Any) -> Any:
            value, *others = args[own:]
            self.spend(CALL + self.size(*others, *kwargs.values())
                       + (len(value) // CHARS if isinstance(value, str) else 0))
            return function(*args, **kwargs)
        return tested
