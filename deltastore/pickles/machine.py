"""The opcodes that ``torch.save`` writes, interpreted without running anything.

The rules of a pickle machine: a stack, marks on it, a memo of what was made before. Each opcode
takes time and memory in proportion to its own bytes, each value is made of what lies on the stack,
and none is looked into. Opcodes that name a class to call, read from elsewhere, or claim sizes of
more than four bytes are not here.
"""

from __future__ import annotations

from collections.abc import Callable

from deltastore.pickles.values import Other, Pairs, RefusedError, build, called, corrupt, find

MAX_OPCODES = 1 << 23
"""Of one file: some 240,000 tensors. They take some 5 s and 1 GiB if they do their worst."""

MAX_STRING_BYTES = 1 << 24
MAX_GLOBAL_BYTES = 256
MAX_MARKS = 1000
MAX_LONG_BYTES = 255

Persistent = Callable[[object], object]


class EndedError(RefusedError):
    """The bytes end within the pickle."""

    def __init__(self) -> None:
        super().__init__("corrupt", "ends within its pickle")


class Machine:
    """Reads one pickle out of ``data`` from position ``at``, which then is behind it."""

    def __init__(
        self,
        data: bytes,
        at: int = 0,
        persistent: Persistent | None = None,
        left: int = MAX_OPCODES,
    ) -> None:
        """Take bytes.

        Args:
            data: Bytes with the pickle in them.
            at: Where it begins.
            persistent: Makes a value of a persistent id; none is allowed if None.
            left: How many opcodes it may have; what of them is left is known afterwards.
        """
        self.data = data
        self.at = at
        self.persistent = persistent
        self.left = left
        self.stack: list[object] = []
        self.marks: list[list[object]] = []
        self.memo: dict[int, object] = {}

    def load(self) -> object:
        """Interpret the pickle, and give what it makes.

        Raises:
            EndedError: The bytes end before the pickle does.
            RefusedError: It is malformed, or needs what a state dict does not.
        """
        data, steps = self.data, _STEPS
        try:
            for used in range(1, self.left + 1):
                opcode = data[self.at]
                self.at += 1
                if opcode == _STOP:
                    self.left -= used
                    return self._result()
                step = steps.get(opcode)
                if step is None:
                    raise RefusedError("unsafe", f"its pickle has the opcode {opcode:#04x}")
                step(self)
        except IndexError as error:
            # Either the bytes are at their end, or a value is taken from an empty stack.
            if self.at >= len(data):
                raise EndedError from error
            raise corrupt("has a pickle that takes what it has not made") from error
        except KeyError as error:
            raise corrupt("has a pickle that recalls what it has not made") from error
        raise corrupt(f"has pickles of more than {MAX_OPCODES} opcodes")

    def next(self, persistent: Persistent | None = None) -> Machine:
        """The machine for the pickle behind this one, which shares the budget with it."""
        return Machine(self.data, self.at, persistent, self.left)

    def _result(self) -> object:
        if self.marks or len(self.stack) != 1:
            raise corrupt("has a pickle that ends before it is done")
        return self.stack.pop()

    # --- bytes

    def _take(self, count: int) -> bytes:
        end = self.at + count
        if end > len(self.data):
            raise EndedError
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def _number(self, count: int) -> int:
        return int.from_bytes(self._take(count), "little")

    def _sized(self, count: int) -> bytes:
        size = self._number(count)
        if size > MAX_STRING_BYTES:
            raise corrupt(f"has a string of {size} bytes; expected at most {MAX_STRING_BYTES}")
        return self._take(size)

    def _line(self) -> str:
        end = self.data.find(b"\n", self.at, self.at + MAX_GLOBAL_BYTES)
        if end < 0:
            if self.at + MAX_GLOBAL_BYTES > len(self.data):
                raise EndedError
            raise corrupt(f"names a global of more than {MAX_GLOBAL_BYTES} bytes")
        line = _text(self.data[self.at : end])
        self.at = end + 1
        return line

    # --- values

    def _push(self, value: object) -> None:
        self.stack.append(value)

    def _integer(self) -> None:
        self.stack.append(int.from_bytes(self._take(4), "little", signed=True))

    def _long(self, count: int) -> None:
        size = self._number(count)
        if size > MAX_LONG_BYTES:
            raise corrupt(f"has an integer of {size} bytes; expected at most {MAX_LONG_BYTES}")
        self.stack.append(int.from_bytes(self._take(size), "little", signed=True))

    def _float(self) -> None:
        # No tensor depends on it.
        self._take(8)
        self.stack.append(Other("float"))

    def _unicode(self, count: int) -> None:
        self.stack.append(_text(self._sized(count)))

    def _bytes(self, count: int) -> None:
        self._sized(count)
        self.stack.append(Other("bytes"))

    def _global(self) -> None:
        module = self._line()
        self.stack.append(find(module, self._line()))

    def _stack_global(self) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise corrupt(f"names a global by a {called(module)} and a {called(name)}")
        if len(name) + len(module) > MAX_GLOBAL_BYTES:
            raise corrupt(f"names a global of more than {MAX_GLOBAL_BYTES} bytes")
        self.stack.append(find(module, name))

    # --- containers

    def _mark(self) -> None:
        if len(self.marks) == MAX_MARKS:
            raise corrupt(f"has a pickle nested deeper than {MAX_MARKS}")
        self.marks.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[object]:
        items = self.stack
        self.stack = self.marks.pop()
        return items

    def _tuple(self) -> None:
        items = self._since_mark()
        self.stack.append(tuple(items))

    def _tuple_of(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def _append(self) -> None:
        item = self.stack.pop()
        self._list().append(item)

    def _appends(self) -> None:
        items = self._since_mark()
        self._list().extend(items)

    def _list(self) -> list[object]:
        target = self.stack[-1]
        if type(target) is not list:
            raise RefusedError("unsafe", f"its pickle appends to a {called(target)}")
        return target

    def _add_items(self) -> None:
        self._since_mark()
        target = self.stack[-1]
        if not isinstance(target, Other) or target.called != "set":
            raise RefusedError("unsafe", f"its pickle adds to a {called(target)}")

    def _set_item(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def _set_items(self) -> None:
        self._set(self._since_mark())

    def _set(self, items: list[object]) -> None:
        target = self.stack[-1]
        if isinstance(target, Other) and target.called == "Counter":
            return
        if not isinstance(target, Pairs):
            raise RefusedError("unsafe", f"its pickle sets an item of a {called(target)}")
        if len(items) % 2:
            raise corrupt("has a pickle with a key without a value")
        target.items += items

    # --- what would be calls

    def _call(self) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = build(self.stack[-1], arguments)

    def _set_state(self) -> None:
        # State dicts have attributes (``_metadata``), of which no tensor depends on any.
        self.stack.pop()
        if not isinstance(self.stack[-1], Pairs):
            raise RefusedError("unsafe", f"its pickle gives state to a {called(self.stack[-1])}")

    def _persistent(self) -> None:
        if self.persistent is None:
            raise RefusedError("unsafe", "its pickle refers to something outside of it")
        self.stack[-1] = self.persistent(self.stack[-1])

    # --- memo

    def _put(self, count: int) -> None:
        self.memo[self._number(count)] = self.stack[-1]

    def _memoize(self) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _get(self, count: int) -> None:
        self.stack.append(self.memo[self._number(count)])

    def _skip(self, count: int) -> None:
        self._take(count)


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError as error:
        raise corrupt("has a string in its pickle that is no UTF-8") from error


Step = Callable[[Machine], object]


def _of(method: Callable[[Machine, int], None], count: int) -> Step:
    return lambda machine: method(machine, count)


_STOP = ord(".")

_STEPS: dict[int, Step] = {
    0x80: _of(Machine._skip, 1),  # PROTO
    0x95: _of(Machine._skip, 8),  # FRAME: a hint of how much to read ahead
    ord("("): Machine._mark,
    ord("0"): lambda machine: machine.stack.pop(),
    ord("N"): lambda machine: machine._push(None),
    0x88: lambda machine: machine._push(True),
    0x89: lambda machine: machine._push(False),
    ord("J"): Machine._integer,
    ord("K"): lambda machine: machine._push(machine._number(1)),
    ord("M"): lambda machine: machine._push(machine._number(2)),
    0x8A: _of(Machine._long, 1),
    0x8B: _of(Machine._long, 4),
    ord("G"): Machine._float,
    ord("X"): _of(Machine._unicode, 4),
    0x8C: _of(Machine._unicode, 1),
    0x8D: _of(Machine._unicode, 8),
    # Strings of Python 2, whose state dicts have keys of them.
    ord("U"): _of(Machine._unicode, 1),
    ord("T"): _of(Machine._unicode, 4),
    ord("C"): _of(Machine._bytes, 1),
    ord("B"): _of(Machine._bytes, 4),
    0x8E: _of(Machine._bytes, 8),
    ord("]"): lambda machine: machine._push([]),
    ord("}"): lambda machine: machine._push(Pairs()),
    ord(")"): lambda machine: machine._push(()),
    0x8F: lambda machine: machine._push(Other("set")),
    ord("t"): Machine._tuple,
    0x85: _of(Machine._tuple_of, 1),
    0x86: _of(Machine._tuple_of, 2),
    0x87: _of(Machine._tuple_of, 3),
    ord("a"): Machine._append,
    ord("e"): Machine._appends,
    ord("s"): Machine._set_item,
    ord("u"): Machine._set_items,
    0x90: Machine._add_items,
    ord("c"): Machine._global,
    0x93: Machine._stack_global,
    ord("R"): Machine._call,
    0x81: Machine._call,  # NEWOBJ: the classes that are allowed make the same in both ways
    ord("b"): Machine._set_state,
    ord("Q"): Machine._persistent,
    ord("q"): _of(Machine._put, 1),
    ord("r"): _of(Machine._put, 4),
    0x94: Machine._memoize,
    ord("h"): _of(Machine._get, 1),
    ord("j"): _of(Machine._get, 4),
}
"""The opcodes, as :mod:`pickletools` calls them, by their bytes."""
