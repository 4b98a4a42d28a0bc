"""What is packed, and what an installation gives: with a compiler, without one, and without the extras."""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
LIBRARY = {"win32": "liblptensor.dll", "darwin": "liblptensor.dylib"}.get(sys.platform, "liblptensor.so")
CUDA_LIBRARY = LIBRARY.replace("lptensor", "lptensor_cuda")
LAUNCH_LIBRARY = LIBRARY.replace("lptensor", "lptensor_launch")
WITHOUT_CUDA = ("--config-settings", "cmake.define.LPT_CUDA=OFF")  # half a minute less
EXTRAS = ("sklearn", "scipy", "matplotlib", "pytest", "hypothesis", "ml_dtypes", "gfloat")

# Rounds twice and prints what it was warned of, then the results.
ROUND_TWICE = """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, lptensor
    x = torch.tensor([0.1, -3.3, 1e6, 1e-7])
    first, second = lptensor.round(x, lptensor.E5M2), lptensor.round(x, lptensor.FP16)
print([w.category.__name__ for w in caught])
print(lptensor.backend().split(":")[0])
print(torch.equal(first, x.to(torch.float8_e5m2).float()), torch.equal(second, x.half().float()))
"""


def run(*command: str | Path, cwd: Path, env: Mapping[str, str] | None = None) -> str:
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, cwd=cwd, env=env)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="session")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    run(sys.executable, "-c", f"from scikit_build_core.build import build_sdist as b; b({str(folder)!r})", cwd=ROOT)
    return next(folder.iterdir())


@pytest.fixture(scope="session")
def unpacked(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as tar:
        tar.extractall(folder, filter="data") if hasattr(tarfile, "data_filter") else tar.extractall(folder)
    return next(folder.iterdir())


def sources(*patterns: str) -> set[str]:
    found = (path for pattern in patterns for path in ROOT.glob(pattern))
    return {path.relative_to(ROOT).as_posix() for path in found if path.is_file()}


def test_sdist_holds_what_is_needed_to_build_and_to_test(unpacked: Path) -> None:
    packed = {path.relative_to(unpacked).as_posix() for path in unpacked.rglob("*") if path.is_file()}
    needed = sources("csrc/*", "lptensor/**/*.py", "lptensor/py.typed", "tests/**/*.py", "docs/**/*.md", "docs/**/*.py")
    assert not needed - packed
    top = {"CHANGELOG.md", "CMakeLists.txt", "LICENSE", "Makefile", "README.md", "constraints.txt", "pyproject.toml"}
    assert not top - packed


def test_sdist_holds_nothing_that_was_made(unpacked: Path) -> None:
    made = {".so", ".dylib", ".dll", ".pyc", ".whl", ".o"}
    assert [path for path in unpacked.rglob("*") if path.suffix in made] == []
    assert not {path.name for path in unpacked.iterdir()} & {".venv", ".git", "build", "dist", "out"}


def test_metadata_says_what_installs(unpacked: Path) -> None:
    about = email.message_from_string((unpacked / "PKG-INFO").read_text(encoding="utf-8"))
    needed = [row for row in about.get_all("Requires-Dist", []) if "extra ==" not in row]
    assert (about["Name"], about["License-Expression"]) == ("lptensor", "MIT")
    assert about["Requires-Python"] == ">=3.10"
    assert sorted(needed) == ["numpy", "rich", "torch>=2.11", "typer"]
    assert about["Version"] in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_building_needs_no_torch() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["build-system"]
    assert [row.split(">")[0] for row in build["requires"]] == ["scikit-build-core"]


def test_constraints_pin_torch_and_every_package_exactly() -> None:
    rows = [row for row in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines() if row[:1] != "#"]
    assert "torch==2.13.0" in rows
    assert all(row.split(";")[0].count("==") == 1 and "//" not in row for row in rows)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *(row for extra in project["optional-dependencies"].values() for row in extra)]
    names = {re.split(r"[^\w-]", row)[0].lower().replace("_", "-") for row in asked} - {"lptensor"}
    assert names <= {row.split("==")[0].lower() for row in rows}


def test_without_the_library_one_warning_and_the_same_values(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "lptensor", tmp_path / "lptensor", ignore=shutil.ignore_patterns(LIBRARY, "__pycache__"))
    here_first = (
        "import sys, importlib.machinery\n"  # before the finder of an editable install
        f"sys.path.insert(0, {str(tmp_path)!r}); sys.meta_path.insert(0, importlib.machinery.PathFinder)\n"
    )
    printed = run(sys.executable, "-B", "-c", here_first + ROUND_TWICE, cwd=tmp_path).splitlines()
    assert printed == ["['RuntimeWarning']", "torch", "True True"]


def without_extras(code: str) -> str:
    blocked = "".join(f"sys.modules[{name!r}] = None\n" for name in EXTRAS)
    return run(sys.executable, "-B", "-c", f"import sys\n{blocked}{code}", cwd=ROOT)


def test_every_module_imports_without_the_extras() -> None:
    names = [
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for path in sorted((ROOT / "lptensor").rglob("*.py"))
    ]
    without_extras(f"import {', '.join(names)}")


def test_the_command_lists_formats_without_the_extras() -> None:
    printed = without_extras("sys.argv = ['lptensor', 'formats']\nfrom lptensor.cli import main; main()")
    assert all(name in printed for name in ("E4M3", "E5M2", "BF16"))


class Environment:
    """A new virtual environment that sees this one's torch, but none of this one's lptensor."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, with_pip=True, symlinks=True)
        self.python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
        self.folder = folder
        self.site = Path(self.run("import sysconfig; print(sysconfig.get_path('purelib'))")[0])
        (self.site / "torch_of_the_tests.pth").write_text(f"{Path(torch.__file__).parents[1]}\n", encoding="utf-8")

    def install(self, *what: str | Path, env: Mapping[str, str] | None = None) -> None:
        run(self.python, "-I", "-m", "pip", "install", "--no-deps", *what, cwd=self.folder, env=env)

    def run(self, code: str) -> list[str]:
        return run(self.python, "-I", "-c", code, cwd=self.folder).splitlines()


@pytest.fixture(scope="session")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", folder, sdist, cwd=folder)
    return next(folder.iterdir())


@pytest.mark.slow
def test_wheel_serves_every_python_of_this_platform(wheel: Path) -> None:
    platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
    assert wheel.name.endswith(f"-py3-none-{platform}.whl")


@pytest.mark.slow
def test_wheel_holds_the_package_its_libraries_and_the_kernels_texts(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as packed:
        names = {name for name in packed.namelist() if ".dist-info/" not in name}
        entry = next(name for name in packed.namelist() if name.endswith("entry_points.txt"))
        assert "lptensor = lptensor.cli:main" in packed.read(entry).decode()
    built = {LIBRARY, CUDA_LIBRARY if shutil.which("nvcc") else LAUNCH_LIBRARY}
    headers = {f"lptensor/{name}" for name in sources("csrc/*.h")}
    assert names == sources("lptensor/**/*.py", "lptensor/py.typed") | headers | {f"lptensor/{name}" for name in built}


@pytest.mark.slow
def test_wheel_rounds_natively_in_a_new_environment(wheel: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    environment.install(wheel)
    assert environment.run(ROUND_TWICE) == ["[]", "native", "True True"]
    expected = "cuda" if shutil.which("nvcc") else "torch" if torch.version.cuda is None else "nvrtc"
    assert environment.run("import lptensor; print(lptensor.backend('cuda').split(':')[0])") == [expected]


@pytest.mark.slow
def test_editable_install_finds_its_library_and_follows_the_sources(unpacked: Path, tmp_path: Path) -> None:
    checkout = shutil.copytree(unpacked, tmp_path / "checkout")
    environment = Environment(tmp_path / "venv")
    environment.install(*WITHOUT_CUDA, "--editable", checkout)
    assert environment.run(ROUND_TWICE) == ["[]", "native", "True True"]
    libraries = "from lptensor import _native; print(*(_native.find(f'lptensor_{end}') for end in ('launch', 'cuda')))"
    assert [Path(path).name for path in environment.run(libraries)[0].split()] == [LAUNCH_LIBRARY, "None"]
    with (checkout / "lptensor" / "rounding.py").open("a", encoding="utf-8") as file:
        file.write("EDITED = 'yes'\n")
    assert environment.run("from lptensor.rounding import EDITED; print(EDITED)") == ["yes"]


@pytest.mark.slow
def test_without_a_compiler_it_installs_and_rounds_with_one_warning(sdist: Path, tmp_path: Path) -> None:
    environment = Environment(tmp_path / "venv")
    nothing = tmp_path / "nothing"
    nothing.mkdir()
    env = {name: value for name, value in os.environ.items() if name not in ("CXXFLAGS", "CFLAGS", "CUDACXX")}
    missing = str(nothing / "c++")  # CMake looks in /usr/bin too, whatever PATH says
    env |= {"PATH": str(nothing), "CC": missing, "CXX": missing}
    environment.install("--no-cache-dir", sdist, env=env)
    assert not list(environment.site.rglob(LIBRARY))
    assert environment.run(ROUND_TWICE) == ["['RuntimeWarning']", "torch", "True True"]
