"""What pip installs: the files of the wheel, and lists of requirements that agree."""

import importlib.metadata
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import shatter_tf

ROOT = pathlib.Path(__file__).parents[1]
LEFT_OUT = {"opencv-python-headless", "kaggle", "pycocotools"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of a copy of the files that it is made of."""
    base = tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, base)
    shutil.copytree(ROOT / "configs", base / "configs")
    shutil.copytree(ROOT / "shatter_tf", base / "shatter_tf", symlinks=True)
    command = "-m pip wheel --quiet --no-deps --no-build-isolation --no-index --wheel-dir dist ."
    subprocess.run([sys.executable, *command.split()], cwd=base, check=True, capture_output=True)
    (path,) = (base / "dist").glob("*.whl")
    with zipfile.ZipFile(path) as archive:
        yield archive


def test_the_wheel_has_the_whole_package(wheel):
    assert wheel.filename.endswith(f"shatter_tf-{shatter_tf.__version__}-py3-none-any.whl")
    names = {name for name in wheel.namelist() if ".dist-info/" not in name}
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "shatter_tf").rglob("*.py")}
    configs = {f"shatter_tf/configs/{path.name}": path for path in (ROOT / "configs").glob("*.yaml")}
    assert names == modules | configs.keys() | {"shatter_tf/py.typed"}
    for name, path in configs.items():
        assert wheel.read(name) == path.read_bytes()
    (entry_points,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "shatter = shatter_tf.__main__:main" in wheel.read(entry_points).decode()


def pins(name):
    """Returns the lines of a list of requirements, and those that hold for this Python as {name: line}."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.startswith("#")]
    requirements = map(Requirement, lines)
    return lines, {
        canonicalize_name(requirement.name): line
        for requirement, line in zip(requirements, lines, strict=True)
        if not requirement.marker or requirement.marker.evaluate()
    }


def needed():
    """Returns the names of all that shatter_tf needs, directly or not, but for what is left out."""
    found = set()
    left = [("shatter_tf", frozenset())]
    while left:
        name, extras = left.pop()
        for requirement in map(Requirement, importlib.metadata.requires(name) or []):
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": extra}) for extra in extras | {""}):
                continue
            pair = canonicalize_name(requirement.name), frozenset(requirement.extras)
            if pair[0] not in LEFT_OUT and pair not in found:
                found.add(pair)
                left.append(pair)
    return {name for name, _ in found}


def test_the_slim_list_has_all_that_is_needed_in_the_versions_of_constraints():
    constraints, _ = pins("constraints.txt")
    lines, here = pins("requirements-slim.txt")
    assert len(needed()) > 50
    assert needed() <= here.keys()
    assert here.keys().isdisjoint(LEFT_OUT)
    slim = {canonicalize_name(Requirement(line).name) for line in lines}
    assert lines == [line for line in constraints if canonicalize_name(Requirement(line).name) in slim]
