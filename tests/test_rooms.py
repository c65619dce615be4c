"""The rooms of the package: who may import whom."""

import ast
import graphlib
import pathlib

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "shatter_tf"
# A room imports only rooms before it; commands come last.
ROOMS = (
    *("errors", "plugins", "cluster", "console", "files", "config_files", "checkpoints"),
    *("layers", "encoders", "data", "tasks", "training", "serving", "converting", "measuring"),
)
FAMILIES = {path.parent.name for path in PACKAGE.glob("encoders/*/__init__.py")}


def module_name(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_name(path): path for path in PACKAGE.rglob("*.py")}


def imports(path: pathlib.Path) -> set[str]:
    """The modules of the package that a file imports anywhere, in functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names] + [node.module]
        else:
            continue
        found |= {name for name in names if name in MODULES}
    # `from package import module` needs the module; the package's own file counts only where it defines names.
    return {name for name in found if not any(other.startswith(f"{name}.") for other in found)}


IMPORTS = {name: imports(path) - {name} for name, path in MODULES.items()}


def room(name: str) -> int:
    top = name.split(".")[1] if "." in name else ""
    return ROOMS.index(top) if top in ROOMS else len(ROOMS) if top else -1


def test_every_room_is_listed():
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert folders <= set(ROOMS)


def test_no_room_imports_a_later_one():
    assert [(name, other) for name, others in IMPORTS.items() for other in others if room(other) > room(name)] == []


def test_commands_import_no_other_command():
    commands = {name for name in MODULES if room(name) == len(ROOMS)}
    assert [(name, other) for name in commands for other in IMPORTS[name] & commands] == []


def test_there_are_no_circles():
    # What a package's own file lists for its users is not what its modules need.
    graph = {name: others for name, others in IMPORTS.items() if MODULES[name].name != "__init__.py"}
    graphlib.TopologicalSorter(graph).prepare()


def test_no_family_imports_another():
    for name, others in IMPORTS.items():
        for family in FAMILIES:
            if name.startswith(f"shatter_tf.encoders.{family}."):
                named = {other.split(".")[2] for other in others if other.startswith("shatter_tf.encoders.")}
                assert named <= {family, "base"}, name


def test_commands_are_thin():
    for path in PACKAGE.glob("*.py"):
        if "__main__" in path.read_text():
            assert len(path.read_text().splitlines()) < 100, path


def test_nothing_asks_for_a_kind_by_its_name():
    """Families and tasks answer for themselves; only registries know their names."""
    experiments = {f"shatter/{path.stem}" for path in PACKAGE.glob("tasks/*.py")} | {"shatter/pretrain"}
    kinds = experiments | FAMILIES | {"any"}
    asked = [
        (name, node.lineno)
        for name, path in MODULES.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Compare)
        for constant in ast.walk(node)
        if isinstance(constant, ast.Constant) and constant.value in kinds
    ]
    assert asked == []


def test_only_commands_and_heavy_libraries_are_imported_late():
    """An import inside a function hides what a module needs."""
    late = {
        (name, node.module)
        for name, path in MODULES.items()
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom) and node.module.startswith("shatter_tf")
    }
    of_commands = {(name, module) for name, module in late if room(name) == len(ROOMS)}
    assert late - of_commands == {("shatter_tf.data.corpus.build", "shatter_tf.data.corpus")}  # Beam is optional
    assert len({name for name, _ in of_commands}) == len(of_commands)  # one for each command
