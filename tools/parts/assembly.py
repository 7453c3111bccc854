"""Loops in the assembly that LLVM writes, for x86-64 and ARM: what is in them, what they keep on the stack.

A loop is what compilers call a natural loop: a branch back to a block through which all ways into the loop
lead, and all blocks from which that branch can be reached without passing there again. So neither the order
in which blocks are written down nor the names of labels count.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

Edges = list[set[int]]  # of each block, the blocks to which it may go on, or from which it may be reached


class Instruction(NamedTuple):
    """`op` is its name (`sdot`), `operands` the rest of the line (`v5.4s, v25.16b, v23.16b`)."""

    op: str
    operands: str

    @property
    def on_stack(self) -> bool:
        """Whether it reads or writes the stack: a register that had to be stored away, for one."""
        return bool(re.search(r"\[sp\b|\[x29, #-|\(%rsp\b|-\d+\(%rbp\)", self.operands))

    @property
    def spills(self) -> bool:
        """Whether it stores a vector register on the stack or takes it from there."""
        return self.on_stack and bool(re.search(r"%[xyz]mm\d|\b[qv]\d", self.operands))

    def __str__(self) -> str:
        return f"\t{self.op}\t{self.operands}"


class Loop(NamedTuple):
    """The instructions of a loop, those of the loops within it included."""

    instructions: list[Instruction]
    own: list[Instruction]  # without those of inner loops
    inner: list["Loop"]  # at any depth

    @property
    def spilled(self) -> list[Instruction]:
        """Its own instructions that keep vector registers on the stack. A loop that moves %rbp on has another
        pointer in it than the stack's.
        """
        elsewhere = any(i.operands.endswith(", %rbp") for i in self.own)
        return [i for i in self.own if i.spills and not (elsewhere and "(%rbp)" in i.operands)]

    def count(self, op: str) -> int:
        """How many of its instructions have a name that matches."""
        return sum(bool(re.fullmatch(op, i.op)) for i in self.instructions)


class Block(NamedTuple):
    """Instructions that run one after the other, with one way in and one way out."""

    labels: list[str]
    instructions: list[Instruction]


def loops(assembly: str) -> list[Loop]:
    """All loops of all functions, in the order in which their first blocks are written."""
    blocks = _blocks(assembly)
    after = _successors(blocks)
    before: Edges = [set() for _ in blocks]
    for i, targets in enumerate(after):
        for target in targets:
            before[target].add(i)
    bodies: dict[int, set[int]] = {}
    above = _dominators(blocks, before)
    for i, targets in enumerate(after):
        for head in targets & above[i]:  # a branch back to a block that every way to here passes
            bodies.setdefault(head, {head}).update(_reaching(i, head, before))

    def code(members: set[int]) -> list[Instruction]:
        return [instruction for i in sorted(members) for instruction in blocks[i].instructions]

    found: dict[int, Loop] = {}
    for head, body in sorted(bodies.items(), key=lambda item: len(item[1])):  # inner ones first
        inner = [h for h in found if h in body]
        own = body.difference(*(bodies[h] for h in inner))
        found[head] = Loop(code(body), code(own), [found[h] for h in inner])
    return [found[head] for head in sorted(found)]


def with_instruction(assembly: str, op: str) -> list[Loop]:
    """The innermost loops that hold an instruction whose name matches."""
    return [loop for loop in loops(assembly) if any(re.fullmatch(op, i.op) for i in loop.own)]


def _blocks(assembly: str) -> list[Block]:
    blocks = [Block([], [])]
    for line in assembly.splitlines():
        line = re.sub(r"\s*(//|#[^\d-]|## ).*", "", line).strip()  # a comment; ARM's numbers have a # too
        line = re.sub(r"^\{vex\}\s*", "", line)  # how an instruction is encoded
        if label := re.fullmatch(r'("[^"]+"|[^\s:"]+):', line):
            if blocks[-1].instructions:
                blocks.append(Block([], []))
            blocks[-1].labels.append(label[1])
        elif line and not line.startswith("."):
            if blocks[-1].instructions and _leaves(blocks[-1].instructions[-1]) is not None:
                blocks.append(Block([], []))
            op, _, operands = line.partition("\t") if "\t" in line else line.partition(" ")
            blocks[-1].instructions.append(Instruction(op, operands.strip()))
    return blocks


def _leaves(instruction: Instruction) -> bool | None:
    """Whether control goes elsewhere: True always, False perhaps, None never (a call comes back)."""
    op = instruction.op
    if re.fullmatch(r"jmpq?|retq?|b|br|ud2|brk", op):
        return True
    return False if re.fullmatch(r"j[a-z]+|b\.[a-z]+|cbn?z|tbn?z", op) else None


def _successors(blocks: list[Block]) -> Edges:
    where = {label: i for i, block in enumerate(blocks) for label in block.labels}
    edges: Edges = []
    for i, block in enumerate(blocks):
        last = block.instructions[-1] if block.instructions else Instruction("nop", "")
        leaves = _leaves(last)
        targets = {where[name] for name in re.findall(r"[.\w$]+", last.operands) if name in where}
        edges.append(targets if leaves is not None else set())
        if not leaves and i + 1 < len(blocks):
            edges[i].add(i + 1)
    return edges


def _dominators(blocks: list[Block], before: Edges) -> Edges:
    """Of each block, those that every way to it passes, itself included. Ways start at functions."""

    def starts(i: int) -> bool:
        return not before[i] or any(not label.startswith(".L") for label in blocks[i].labels)

    everything = set(range(len(blocks)))
    above: Edges = [{i} if starts(i) else everything for i in everything]
    changed = True
    while changed:
        changed = False
        for i in everything:
            if not starts(i):
                now = set.intersection(*(above[j] for j in before[i])) | {i}
                changed |= now != above[i]
                above[i] = now
    return above


def _reaching(block: int, head: int, before: Edges) -> Iterator[int]:
    """The blocks from which `block` can be reached without passing `head`, itself included."""
    todo, seen = [block], {head}
    while todo:
        i = todo.pop()
        if i not in seen:
            seen.add(i)
            yield i
            todo.extend(before[i])


def of_kernel(kernel: Any) -> str:
    """What a `kernels.kernel.Kernel` is compiled to, for the CPU that Numba compiles for."""
    from numba import njit

    from mvlm_np.kernels.code.compile import OPTIONS
    from mvlm_np.kernels.machine_code import definition

    # Numba shows no assembly of what it had from the disk.
    defined = definition(kernel.name)
    fresh = njit(nogil=True, **OPTIONS)(defined.function)
    fresh.compile(defined.signature)
    (text,) = fresh.inspect_asm().values()
    return str(text)
