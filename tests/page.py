"""Reads pocketbase.py as a page: its chapters, and who uses what from where. `make map` prints the chapters."""
import dis
import os
import re
import types
from typing import NamedTuple

PAGE = os.path.join(os.path.dirname(os.path.dirname(os.path.abspath(__file__))), "pocketbase.py")
BANNER = re.compile(r"^# =+\n#  (\d+)\. (.+)\n# =+$", re.M)
CONTENTS_LINE = re.compile(r"^ *(\d+)\. (\S+(?: \S+)*)", re.M)    # what follows two spaces is a remark
GLOBAL_LOADS = {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"}


class Chapter(NamedTuple):
    number: int
    name: str
    line: int      # of its banner
    lines: int


def chapters(source):
    """The chapters in their order, each from its banner to the next one."""
    banners = [(int(found[1]), found[2], source.count("\n", 0, found.start()) + 1) for found in BANNER.finditer(source)]
    ends = [line for _, _, line in banners[1:]] + [source.count("\n") + 1]
    return [Chapter(number, name, line, end - line) for (number, name, line), end in zip(banners, ends, strict=True)]


def contents(docstring):
    """(number, name) of each line of the table of contents."""
    return [(int(number), name) for number, name in CONTENTS_LINE.findall(docstring)]


def chapter_of(line, page):
    """The number of the chapter that a line stands in; 0 above the first banner."""
    return max((chapter.number for chapter in page if chapter.line <= line), default=0)


def early_uses(source):
    """What breaks "a chapter uses only chapters above it": (line, name, line of its definition) of each early use.

    Taken from the compiled module, so that local names, also those of nested functions, are told from global ones.
    """
    page, module = chapters(source), compile(source, "pocketbase.py", "exec")
    defined = {}
    for step in dis.get_instructions(module):
        if step.opname == "STORE_NAME":
            defined.setdefault(step.argval, step.positions.lineno)
    return sorted({(line, name, defined[name]) for line, name in _global_uses(module)
                   if name in defined and chapter_of(line, page) < chapter_of(defined[name], page)})


def _global_uses(code):
    """(line, name) of each use of a global name in a code object and in those inside it."""
    steps = list(dis.get_instructions(code))
    own = {step.argval for step in steps if step.opname == "STORE_NAME"} if code.co_name != "<module>" else set()    # a class body
    for step in steps:
        if step.opname in GLOBAL_LOADS and step.argval not in own:
            yield step.positions.lineno, step.argval
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _global_uses(constant)


def main():
    with open(PAGE, encoding="utf-8") as file:
        source = file.read()
    print(f"{'chapter':24} {'line':>6} {'lines':>6}")
    for chapter in chapters(source):
        print(f"{chapter.number:2}. {chapter.name:20} {chapter.line:6} {chapter.lines:6}")


if __name__ == "__main__":
    main()
