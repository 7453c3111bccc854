"""Loops are found by what branches do, in both dialects, however the blocks are laid out."""

import pytest

from tools.parts.assembly import Instruction, loops, with_instruction

ARM = """
	.globl	product
product:
	cbz	x1, .LBB0_4            // nothing to do
.LBB0_1:
	mov	x3, #-4
	ldr	q9, [sp, #16]
.LBB0_2:
	ldp	q17, q18, [x25]
	sdot	v5.4s, v17.16b, v21.16b
	adds	x3, x3, #1
	b.lo	.LBB0_2
	fmla	v2.4s, v17.4s, v6.4s
	subs	x1, x1, #1
	b.ne	.LBB0_1
.LBB0_4:
	bl	other
	ret
"""

# The loop's last block stands before its first one, and the way in jumps over it.
X86 = """
product:                                # @product
# %bb.0:
	jmp	.LBB0_2
.LBB0_1:
	vmovups	%zmm4, 64(%rsp)         # 64-byte Spill
	addq	$64, %rdi
	decq	%rsi
	je	.LBB0_3
.LBB0_2:
	vpdpbusd	(%rbx,%rcx){1to16}, %zmm9, %zmm4
	jmp	.LBB0_1
.LBB0_3:
	retq
other:
	jmp	product
"""


def test_inner_and_outer_loops() -> None:
    outer, inner = loops(ARM)
    assert [i.op for i in inner.own] == ["ldp", "sdot", "adds", "b.lo"]
    assert (inner.inner, outer.inner) == ([], [inner])
    assert [i.op for i in outer.own] == ["mov", "ldr", "fmla", "subs", "b.ne"]
    assert len(outer.instructions) == 9
    assert with_instruction(ARM, "sdot") == [inner]
    assert with_instruction(ARM, "fmla|ldr") == [outer]
    assert [outer.count("sdot"), outer.count("ld."), inner.count("fmla")] == [1, 2, 0]
    assert inner.own[1] == Instruction("sdot", "v5.4s, v17.16b, v21.16b")


def test_the_order_of_blocks_does_not_matter_and_a_jump_to_a_function_is_no_loop() -> None:
    (loop,) = loops(X86)
    assert [i.op for i in loop.own] == ["vmovups", "addq", "decq", "je", "vpdpbusd", "jmp"]


def test_a_way_into_the_middle_makes_no_loop() -> None:
    """Compilers call it irreducible: neither block is passed by all ways to the other."""
    assert loops("f:\n\tcbz x0, .L2\n.L1:\n\tnop\n.L2:\n\tcbnz x1, .L1\n\tret\n") == []


@pytest.mark.parametrize("assembly", ["", "f:\n\tret\n", "f:\n\tbl f\n\tret\n", "f:\n\tjmpq *%rax\n"])
def test_what_has_no_loop(assembly: str) -> None:
    assert loops(assembly) == []


@pytest.mark.parametrize(
    ("operands", "expected"),
    [
        ("q9, [sp, #16]", True),
        ("x29, x30, [sp]", True),
        ("%zmm4, 64(%rsp)", True),
        ("%zmm4, -8(%rsp,%rax)", True),
        ("q9, [x29]", False),
        ("%zmm4, 64(%rdi)", False),
        ("sp, sp, #16", False),
        ("$64, %rsp", False),
    ],
)
def test_what_is_on_the_stack(operands: str, expected: bool) -> None:
    assert Instruction("mov", operands).on_stack is expected
