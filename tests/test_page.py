"""The house rules of pocketbase.py as one page, and of what stands beside it."""
import ast
import collections
import os
import re
import subprocess

import pytest

import kit
import page

LONGEST_FUNCTION = 60    # lines: more does not fit a screen
TOP_LEVEL = {"pocketbase.py", "assets", "tests", "build.spec", "Makefile", "requirements.txt", "requirements-dev.txt", "README.md",
             "CHANGELOG.md", "LICENSE"}


@pytest.fixture(scope="module")
def source():
    with open(page.PAGE, encoding="utf-8") as file:
        return file.read()


@pytest.fixture(scope="module")
def tree(source):
    return ast.parse(source)


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]


def test_table_of_contents_equals_the_banners(source, tree):
    banners = [(chapter.number, chapter.name) for chapter in page.chapters(source)]
    assert page.contents(ast.get_docstring(tree)) == banners
    assert [number for number, _ in banners] == list(range(1, len(banners) + 1))
    assert len({name for _, name in banners}) == len(banners) > 1


def test_every_banner_has_the_one_form(source):
    loose = re.findall(r"^#\s*\d+\..*$", source, re.M)
    assert len(loose) == len(page.chapters(source)), loose


def test_a_chapter_uses_only_chapters_above_it(source):
    assert page.early_uses(source) == []


def test_an_early_use_is_seen():
    banner = "# ====\n#  {}. {}\n# ====\n"
    source = (banner.format(1, "One") + "def first(other):\n    return second(), other\nclass A:\n    other = 1\n    also = other\n"
              + banner.format(2, "Two") + "def second():\n    return first, third\ndef third(): pass\nother = 1\n")
    assert page.early_uses(source) == [(5, "second", 12)]


def test_functions_fit_a_screen(tree):
    long = {f"{node.name} (line {node.lineno})": node.end_lineno - node.lineno + 1 for node in functions(tree)}
    assert {name: lines for name, lines in long.items() if lines > LONGEST_FUNCTION} == {}


def test_a_name_is_defined_once(tree):
    names = collections.Counter(node.name for node in tree.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)))
    assert [name for name, count in names.items() if count > 1] == []


def test_the_map_lists_every_chapter(source):
    printed = subprocess.run(["make", "map"], cwd=kit.HOME, capture_output=True, text=True, check=True).stdout
    for chapter in page.chapters(source):
        assert re.search(rf"^ *{chapter.number}\. {re.escape(chapter.name)} +{chapter.line} +{chapter.lines}$", printed, re.M)


def test_readme_names_every_flag_of_serve():
    flags = set(re.findall(r"--[A-Za-z][\w-]*", kit.run(["serve", "--help"]).stdout)) - {"--help"}
    with open(os.path.join(kit.HOME, "README.md"), encoding="utf-8") as file:
        readme = file.read()
    assert "--http" in flags
    assert [flag for flag in sorted(flags) if not re.search(rf"{flag}\b", readme)] == []


def test_the_top_level_stays_small():
    with open(os.path.join(kit.HOME, ".gitignore"), encoding="utf-8") as file:
        made = {line.strip("/\n") for line in file}
    present = {name for name in os.listdir(kit.HOME) if not name.startswith(".")} - made
    assert present == TOP_LEVEL
