"""PTX as Triton's compiler writes it, from text to a table of instructions."""

import re
from dataclasses import dataclass, field

WIDTHS = {"p": 1, "rs": 2, "r": 4, "f": 4, "rd": 8, "fd": 8}  # bytes, by the name of a register
SPECIAL = [f"%{name}.{axis}" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"]
SPECIAL.append("%laneid")  # in the order of `Special` in core/machine.h
HINTS = re.compile(r"\.(uni|aligned|L1::\w+|L2::\w+)(?=\.|$)")  # that change no result
SHARED_BASE = 1024  # as in core/machine.h

STATEMENT = re.compile(r"(?:@(!?)(%\w+)\s+)?([a-z][\w.:]*)\s*(.*)", re.DOTALL)
OPERAND = re.compile(r"\{[^}]*\}|\[[^\]]*\]|[^\s,|]+")
PARAMETER = re.compile(r"\.param\s+\.(\w+)[^,()]*?(\w+)\s*(?=[,)\n])")


@dataclass
class Operand:
    """``registers`` of ``items`` are registers, in front; the others are offsets or targets."""

    items: list[int]
    registers: int


@dataclass
class Instruction:
    """``name``: the mnemonic without hints. ``guard``: a predicate, or -1. ``text``: as it was
    written.
    """

    name: str
    guard: int
    negated: bool
    operands: list[Operand]
    text: str
    place: str  # in the source of the kernel


@dataclass
class Kernel:
    """Registers are numbers. ``constants``: values by register; ``special``: positions in
    `SPECIAL`, by register. ``parameters``: the type and the register of each.
    """

    instructions: list[Instruction] = field(default_factory=list)
    registers: dict[str, int] = field(default_factory=dict)
    constants: dict[int, int] = field(default_factory=dict)
    special: dict[int, int] = field(default_factory=dict)
    parameters: list[tuple[str, int]] = field(default_factory=list)

    @property
    def widths(self) -> list[int]:
        """Bytes by register, 0 of those that are taken at any width."""
        return [width_of(name) for name in self.registers]

    def register(self, name: str) -> int:
        """The number of a register, or of a new one."""
        return self.registers.setdefault(name, len(self.registers))

    def constant(self, text: str) -> int:
        """The register of a number."""
        made = self.register(text)
        self.constants[made] = value_of(text) % 2**64
        return made


def value_of(text: str) -> int:
    """The bits of a number; a float is written as 0f or 0d and its bits."""
    if text[:2] in ("0f", "0d", "0F", "0D"):
        return int(text[2:], 16)
    return int(text.removesuffix("U"), 0)


def width_of(name: str) -> int:
    """Bytes of a register, 0 of anything else."""
    found = re.fullmatch(r"%(\D+)\d+", name)
    return WIDTHS[found[1]] if found and name not in SPECIAL else 0


def parse(text: str) -> Kernel:
    """The kernel of a module of PTX that has one."""
    text = re.sub(r"//[^\n]*", "", text)
    head, body = text[text.index(".entry") :].split("{", 1)
    kernel = Kernel()
    for kind, name in PARAMETER.findall(head):
        kernel.parameters.append((kind, kernel.register(name)))
    files = dict(re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', text))
    return _Body(kernel, files).read(body[: body.index("\n}")])


class _Body:
    """Reads the statements of a kernel."""

    def __init__(self, kernel: Kernel, files: dict[str, str]):
        self.kernel = kernel
        self.files = files
        self.place = ""

    def read(self, body: str) -> Kernel:
        statements, labels = [], {}
        for line in body.splitlines():
            if found := re.match(r"\s*\.loc\s+(\d+)\s+(\d+)", line):
                name = self.files.get(found[1], found[1]).rpartition("/")[2]
                self.place = f"{name}:{found[2]}"
                continue
            for part in re.findall(r"[^;:]+:(?!:)|[^;]+", line):
                self._read_statement(part.strip(), statements, labels)
        self.kernel.instructions = [self._instruction(*each, labels) for each in statements]
        return self.kernel

    def _read_statement(self, part: str, statements: list, labels: dict[str, int]) -> None:
        if re.fullmatch(r"[$\w]+:", part):
            labels[part[:-1]] = len(statements)
        elif part and part not in "{}" and not part.startswith("."):
            statements.append((part, self.place))

    def _instruction(self, text: str, place: str, labels: dict[str, int]) -> Instruction:
        negated, guard, name, rest = STATEMENT.fullmatch(text).groups()
        name = HINTS.sub("", name)
        words = OPERAND.findall(rest)
        if name.startswith("ld.param."):
            return self._parameter(name, words, text, place)
        operands = [self._operand(word, labels) for word in words]
        guard = self.kernel.register(guard) if guard else -1
        return Instruction(name, guard, bool(negated), operands, text, place)

    def _operand(self, word: str, labels: dict[str, int]) -> Operand:
        if word in labels:
            return Operand([labels[word]], 0)
        if word[0] == "[":
            base, _, offset = word.strip("[] ").partition("+")
            return Operand([self._register(base.strip()), int(offset or 0)], 1)
        items = [self._register(each) for each in re.split(r"[\s,]+", word.strip("{} "))]
        return Operand(items, len(items))

    def _register(self, name: str) -> int:
        if name in SPECIAL:
            made = self.kernel.register(name)
            self.kernel.special[made] = SPECIAL.index(name)
            return made
        if name[0] == "%" or name == "_":
            return self.kernel.register(name)
        if name == "global_smem":
            name = str(SHARED_BASE)
        return self.kernel.constant(name)

    def _parameter(self, name: str, words: list[str], text: str, place: str) -> Instruction:
        """A parameter is a register that holds a constant, from which it is taken."""
        kind, width = name.removeprefix("ld.param."), width_of(words[0])
        if 8 * width != int(kind[1:]):
            name = f"cvt.{kind[0]}{8 * width}.{kind}"
        else:
            name = f"mov.b{8 * width}"
        found = [self.kernel.register(words[0]), self.kernel.registers[words[1].strip("[] ")]]
        operands = [Operand([each], 1) for each in found]
        return Instruction(name, -1, False, operands, text, place)
