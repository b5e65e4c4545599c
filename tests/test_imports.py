"""Imports run one way, as docs/architecture.md states; no module is in a circle."""

import ast
import re
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("plr", "plr_kernels")


def module_files():
    """The files of both packages by the names of their modules."""
    files = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


FILES = module_files()


def is_type_checking(node):
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def import_statements(node):
    """Yield all import statements below a node, those in functions too, but none under `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif is_type_checking(child):
            for part in child.orelse:
                yield from ([part] if isinstance(part, ast.Import | ast.ImportFrom) else import_statements(part))
        else:
            yield from import_statements(child)


def imported_names(module):
    """Return the modules, ours and others', that a module names in its imports."""
    found = set()
    for statement in import_statements(ast.parse(FILES[module].read_text(encoding="utf-8"))):
        if isinstance(statement, ast.Import):
            found.update(alias.name for alias in statement.names)
            continue
        assert statement.level == 0, f"{module}: imports are written out from the package on"
        for alias in statement.names:
            if alias.name == "_cpp":
                continue  # a compiled extension, built or not: it imports nothing
            within = f"{statement.module}.{alias.name}"
            found.add(within if within in FILES else statement.module)
    return found


@pytest.fixture(scope="module")
def imports():
    """What every module names: read here once, and not by each process that collects the tests."""
    return {module: imported_names(module) for module in FILES}


def own(names):
    return {name for name in names if name in FILES}


def stated_order():
    """Return the levels of plr's packages and the modules beside them, lowest last, from docs/architecture.md."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    chain = re.search(r"(?:^ {4}.*->.*\n)+", text, re.MULTILINE)[0]
    return [re.findall(r"[\w.]+", level) for level in chain.replace("\n", " ").split("->")]


ORDER = stated_order()
LEVELS = {name: number for number, level in enumerate(ORDER) for name in level}


def level_of(module):
    """Return the level of a module: that of the longest name in the order that it belongs to; None for `plr` itself."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in LEVELS:
            return LEVELS[".".join(parts[:length])]
    return None


def test_the_test_sees_imports_in_functions_and_none_for_type_checkers(imports):
    source = "if TYPE_CHECKING:\n    import a\nelse:\n    import b\ndef f():\n    if x:\n        from c import d\n"
    assert [ast.unparse(each) for each in import_statements(ast.parse(source))] == ["import b", "from c import d"]
    assert "plr.api" in imports["plr.cli.commands"]  # in a function


def test_every_module_has_a_level():
    levels = {module: level_of(module) for module in FILES if module != "plr"}
    assert not [module for module, level in levels.items() if level is None]
    assert not [name for name in LEVELS if name not in FILES], "the order names what there is not"


def test_no_module_imports_itself_by_way_of_others(imports):
    graph = {module: own(names) - {module} for module, names in imports.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" <- ".join(error.args[1]))


def test_imports_run_down_the_order_of_the_architecture(imports):
    against = [
        f"{module} -> {name}"
        for module, names in imports.items()
        for name in own(names)
        if module != "plr" and name != "plr" and level_of(module) > level_of(name)
    ]
    assert not against


def test_the_kernels_import_nothing_of_plr(imports):
    for module, names in imports.items():
        if module.startswith("plr_kernels"):
            assert not [name for name in names if name.split(".")[0] == "plr"], module


@pytest.mark.parametrize("start", ["plr.options", "plr.systems", "plr.config", "plr.prepare", "plr.cli.prepare"])
def test_no_pytorch_is_reached(start):
    """Neither from a module nor from one that it imports when it is itself imported, packages' own files included."""
    code = f"import sys, {start}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_help_of_training_lists_options_and_does_not_wait_for_pytorch():
    code = (
        "import sys\nfrom plr.cli import main\ntry:\n    main(['train', '--help'])\n"
        "except SystemExit:\n    print('PyTorch', 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--temperature" in done.stdout
    assert "--provenance" not in done.stdout  # written by training, no option
    assert done.stdout.endswith("PyTorch False\n")
