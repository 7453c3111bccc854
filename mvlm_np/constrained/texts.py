"""The parts of JSON texts (RFC 8259), as patterns: strings, white space, what stands between commas."""

from collections.abc import Callable

from mvlm_np.constrained.automaton import Edge, Nodes, span


def string(nodes: Nodes, then: int, least: int = 0, most: int | None = None) -> int:
    """A string of `least` to `most` characters of Unicode; None: of any number."""
    quote = span('""', then)
    after = nodes.node(quote)  # as many characters as there may be, or, without a limit, as there must be
    if most is None:
        nodes.edges[after] += character(nodes, after)
    for k in reversed(range(least if most is None else most)):
        after = nodes.node([*(quote if k >= least else ()), *character(nodes, after)])
    return nodes.literal('"', after)


def character(nodes: Nodes, then: int) -> list[Edge]:
    """Edges that read one character within a string: in UTF-8 (RFC 3629), or escaped.

    An escaped one beyond U+FFFF is a pair of surrogates. Half a pair is no character, and not read.
    """
    one = nodes.node([(0x80, 0xBF, then)])  # byte more of the character
    two = nodes.node([(0x80, 0xBF, one)])
    three = nodes.node([(0x80, 0xBF, two)])
    last = nodes.hexadecimal(2, then)
    second = nodes.literal("\\u", nodes.one_of("DDdd", nodes.one_of("CFcf", last)))
    after_d = nodes.node([*span("07", last), *span("89ABab", nodes.hexadecimal(2, second))])
    code = nodes.node([*span("09ACEFacef", nodes.hexadecimal(1, last)), *span("DDdd", after_d)])
    escaped = nodes.node([*span('""\\\\//bbffnnrrtt', then), *span("uu", code)])
    return [
        (0x20, 0x21, then), (0x23, 0x5B, then), (0x5C, 0x5C, escaped), (0x5D, 0x7F, then),
        (0xC2, 0xDF, one),
        (0xE0, 0xE0, nodes.node([(0xA0, 0xBF, one)])), (0xE1, 0xEC, two),
        (0xED, 0xED, nodes.node([(0x80, 0x9F, one)])), (0xEE, 0xEF, two),
        (0xF0, 0xF0, nodes.node([(0x90, 0xBF, two)])), (0xF1, 0xF3, three),
        (0xF4, 0xF4, nodes.node([(0x80, 0x8F, two)])),
    ]  # fmt: skip


def space(nodes: Nodes, depth: int, then: int) -> int:
    """White space as in most JSON: nothing, a space, or a line break and up to 4 characters a level."""
    indented = nodes.up_to(4 * depth, "  \t\t", then)
    return nodes.node([*span("  ", then), *span("\n\n", indented)], [then])


def colon(nodes: Nodes, then: int) -> int:
    """A colon, and perhaps a space."""
    return nodes.literal(":", nodes.node(span("  ", then), [then]))


def comma(nodes: Nodes, depth: int, then: int) -> list[Edge]:
    """Edges that read a comma and white space."""
    return span(",,", space(nodes, depth, then))


def sequence(
    nodes: Nodes, depth: int, item: Callable[[int], int], close: int, least: int, most: int | None
) -> int:
    """`least` to `most` items with commas between them, and then `close`.

    item  makes the pattern of an item before a node
    """
    if most == 0:
        return close
    after = nodes.node(jumps=[close])  # all items that there may be, or, without a limit, that there must be
    one = item(after)
    if most is None:
        nodes.edges[after] += comma(nodes, depth, one)
    for k in reversed(range(1, max(least, 1) if most is None else most)):
        after = nodes.node(comma(nodes, depth, one), [close] if k >= least else [])
        one = item(after)
    return nodes.any_of([one, *([close] if least == 0 else [])])
