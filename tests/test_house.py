"""The three packages: who imports whom, what a wheel holds, and how light the front door is."""

from __future__ import annotations

import ast
import importlib
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
ROOTS = {
    "dover_kernels": REPOSITORY / "kernels" / "dover_kernels",
    "dover_eval": REPOSITORY / "dover_eval",
    "dover_integrations": REPOSITORY / "integrations" / "dover_integrations",
}
MAY_IMPORT = {
    "dover_kernels": set(),
    "dover_eval": {"dover_kernels"},
    "dover_integrations": {"dover_kernels", "dover_eval"},
}


def imported_modules(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def imported_packages(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imported_modules(path)}


@pytest.mark.parametrize("package", ROOTS)
def test_imports_point_one_way(package: str) -> None:
    files = list(ROOTS[package].rglob("*.py"))
    assert files
    forbidden = set(ROOTS) - MAY_IMPORT[package] - {package}
    if package == "dover_eval":  # its command line is where the integrations' server becomes a command
        files = [file for file in files if file.name != "serve.py"]
    wrong = {str(file): found for file in files if (found := imported_packages(file) & forbidden)}
    assert not wrong


def test_the_library_does_not_import_its_command_line() -> None:
    library = ROOTS["dover_eval"]
    doors = {library / "__main__.py", *(library / "cli").rglob("*.py")}
    files = set(library.rglob("*.py")) - doors
    assert files
    is_command = lambda name: f"{name}.".startswith("dover_eval.cli.")
    wrong = {str(file): found for file in files if (found := set(filter(is_command, imported_modules(file))))}
    assert not wrong


def run_python(code: str, *, python: str = sys.executable, cwd: Path | None = None, **env: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run([python, "-c", code], capture_output=True, text=True, cwd=cwd, env=clean | env, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_import_loads_nothing_heavy() -> None:
    code = "import sys, dover_eval; print(*(m for m in ('torch', 'transformers', 'av', 'numpy') if m in sys.modules))"
    assert run_python(code) == ""


def test_models_load_nothing_heavier_than_torch_and_the_hub_client() -> None:
    code = (
        "import sys; from dover_eval import DOVERModel, VideoScorer; "
        "print(*(m for m in ('transformers', 'diffusers', 'scipy', 'sentence_transformers', 'torch._dynamo') "
        "if m in sys.modules))"
    )
    assert run_python(code) == ""


@pytest.mark.parametrize("name", ["dover_eval", "dover_integrations.rewards", "dover_integrations.server"])
def test_a_type_checker_sees_the_names_that_are_imported_when_used(name: str) -> None:
    package = importlib.import_module(name)
    tree = ast.parse(Path(str(package.__file__)).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.asname or alias.name
        for node in ast.walk(block)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == set(package.__all__) - {"__version__"}
    assert all(hasattr(package, told) for told in package.__all__)


def test_hugging_face_kernels_are_not_shadowed_from_the_repository_root(tmp_path: Path) -> None:
    """Our `kernels/` has no `__init__.py`, so a package of that name on the path wins from the root as well."""
    installed = tmp_path / "kernels"
    installed.mkdir()
    (installed / "__init__.py").write_text("origin = 'hugging face'")
    code = "import kernels, dover_kernels; print(kernels.origin, dover_kernels.__name__)"
    assert run_python(code, cwd=REPOSITORY, PYTHONPATH=str(tmp_path)) == "hugging face dover_kernels"


def test_a_source_distribution_runs_its_own_tests(tmp_path: Path) -> None:
    source = tmp_path / "source"  # setuptools leaves its metadata where it builds
    kept_out = shutil.ignore_patterns(".*", "*.egg-info", "__pycache__", "build", "dist", "out")
    shutil.copytree(REPOSITORY, source, ignore=kept_out)
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        held = {name.partition("/")[2] for name in tar.getnames()}
    wanted = {path.relative_to(source).as_posix() for path in source.rglob("*") if path.is_file()}
    assert {name for name in wanted - held if ".egg-info" not in name} == set()


@pytest.mark.slow
def test_a_wheel_installs_into_an_empty_environment_and_imports_from_elsewhere(tmp_path: Path) -> None:
    source = tmp_path / "source"  # setuptools leaves its build folder where it builds
    for name in ("dover_eval", "kernels", "integrations"):
        shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source / name)
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(source)]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "env"], check=True)
    python = str(tmp_path / "env" / "bin" / "python")
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index", str(wheel)]
    done = subprocess.run(install, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    # With nothing but the wheel: the front door opens.
    assert run_python("import dover_eval; print(dover_eval.__version__)", python=python, cwd=tmp_path)

    # With its dependencies, which lie in this environment: everything imports, from the wheel.
    site = run_python("import sysconfig; print(sysconfig.get_path('purelib'))", python=python, cwd=tmp_path)
    (Path(site) / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    code = (
        "import dover_eval, dover_kernels, dover_integrations; from dover_eval import VideoScorer; "
        "from importlib.resources import files; "
        "print(*(m.__file__ for m in (dover_eval, dover_kernels, dover_integrations))); "
        "print(sorted(p.name for p in (files('dover_eval') / 'assets').iterdir())); "
        "print(sorted(p.name for p in (files('dover_kernels') / 'dwconv3d_layernorm').iterdir()))"
    )
    origins, assets, kernels = run_python(code, python=python, cwd=tmp_path).splitlines()
    assert all(origin.startswith(site) for origin in origins.split())
    assert "model.safetensors" in assets
    assert "config.json" in assets
    assert "README.md" in assets

    # What only the repository reads is not in it.
    assert "heldout.json" not in assets
    assert "configs.json" in kernels
    assert ".md" not in kernels
