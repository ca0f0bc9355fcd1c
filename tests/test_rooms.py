"""The house rules that a reader relies on: who may import whom, no module too long, nothing executed from files."""

import ast
import re

import pytest
from conftest import ROOT

FOLDERS = ("iis", "extractor", "IP_training", "concept_library", "demo", "reproduction")
FORBIDDEN = {"iis": {"extractor", "IP_training", "demo", "reproduction", "concept_library"},
             "extractor": {"IP_training", "demo", "reproduction"}, "IP_training": {"extractor", "demo", "reproduction"}}


def modules(folder):
    return sorted((ROOT / folder).glob("*.py"))


def imported(module):
    """Top-level packages a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[0] for name in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("folder", FORBIDDEN)
def test_what_passes_between_rooms_are_files(folder):
    for module in modules(folder):
        assert not set(imported(module)) & FORBIDDEN[folder], module


def test_no_module_is_longer_than_250_lines():
    long = [module for folder in FOLDERS for module in modules(folder) if len(module.read_text().splitlines()) > 250]
    assert not long


def test_nothing_is_executed_from_files():
    unsafe = re.compile(r"weights_only=False|allow_pickle=True|yaml\.(load|unsafe_load)\(|pickle\.loads?\(")
    for folder in FOLDERS:
        for module in modules(folder):
            assert not unsafe.search(module.read_text()), module


def test_the_mit_licence_and_the_paper_are_named():
    assert "MIT" in (ROOT / "LICENSE").read_text()
    assert "2510.24105" in (ROOT / "CITATION.cff").read_text() and "2510.24105" in (ROOT / "README.md").read_text()
