"""The layout that `src/papsmear` links together: what is installed, what it is called, and who may import whom."""

import ast
import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement

from papsmear.cli import COMMANDS, TRAINING, main

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("tiling", "ssl", "probes", "mil")
CONFIGS = sorted((ROOT / "configs").rglob("*.yaml"))
# Which command a configuration is for; those in configs/ssl and configs/mil are for fit.
COMMAND_OF = {
    "tiling": "tile", "crop": "crop", "embed": "embed", "probes": "probe", "c3p": "c3p",
    "finetune": "finetune", "mil": "fit",
}  # fmt: skip


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _python(*words: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *words], cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=300
    )


# --- the folder ssl/ beside Python's own ssl ----------------------------------------------------------------------


@pytest.mark.parametrize("words", [("-c",), ("-W", "error", "-c")])
def test_python_started_in_the_root_has_its_own_ssl(words: tuple[str, ...]) -> None:
    code = "import ssl, urllib.request, asyncio; ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT); print(ssl.__file__)"
    said = _python(*words, code)
    assert said.returncode == 0, said.stderr
    assert not said.stdout.startswith(str(ROOT / "ssl"))


def test_python_m_papsmear_in_the_root_has_its_own_ssl() -> None:
    said = _python("-v", "-m", "papsmear", "tile", "--help")
    assert said.returncode == 0, said.stderr[-500:]
    loaded = [line for line in said.stderr.splitlines() if line.startswith("import 'ssl'")]
    assert not any("Namespace" in line for line in loaded), loaded
    assert _python("-m", "asyncio", "--help").returncode in (0, 2)


def test_no_folder_that_would_shadow_a_module_is_a_package() -> None:
    for folder in (*STAGES, "tests"):
        assert not list((ROOT / folder).rglob("__init__.py")), folder


def test_the_links_are_relative_and_lead_to_the_stages() -> None:
    links = {path.name: path for path in (ROOT / "src" / "papsmear").iterdir() if path.is_symlink()}
    assert links.keys() == set(STAGES)
    for name, link in links.items():
        assert os.readlink(link) == f"../../{name}"  # noqa: PTH115, readlink gives what is stored
        assert link.resolve() == ROOT / name


def test_every_module_says_what_it_is() -> None:
    modules = [*(ROOT / "src" / "papsmear").glob("*.py"), *(f for s in STAGES for f in (ROOT / s).rglob("*.py"))]
    silent = [str(file.relative_to(ROOT)) for file in modules if not ast.get_docstring(ast.parse(file.read_text()))]
    assert len(modules) > 10
    assert not silent


# --- what is built and installed --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A wheel built from the tree, and one built from the sdist, each unpacked; made from a copy of the tree."""
    tree = tmp_path_factory.mktemp("tree") / "papsmear"
    tree.mkdir()
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in ("src", "tests", *STAGES):
        shutil.copytree(ROOT / name, tree / name, symlinks=True, ignore=ignore)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree)
    unpacked = {}
    for name, words in {"tree": ["--wheel"], "sdist": []}.items():
        out = tree.parent / name
        said = _python("-m", "build", "--no-isolation", "--outdir", str(out), *words, cwd=tree)
        assert said.returncode == 0, said.stdout[-1000:] + said.stderr[-1000:]
        (wheel,) = out.glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(out / "installed")
        unpacked[name] = out / "installed"
    return unpacked


@pytest.mark.parametrize("source", ["tree", "sdist"])
def test_a_wheel_holds_all_that_the_tree_holds_and_no_tests(source: str, wheels: dict[str, Path]) -> None:
    inside = {str(path.relative_to(wheels[source])) for path in wheels[source].rglob("*") if path.is_file()}
    kinds = (".py", ".html", ".json", ".yaml", ".typed")
    source_files = [path for path in (ROOT / "src" / "papsmear").iterdir() if path.suffix in kinds]
    source_files += [path for stage in STAGES for path in (ROOT / stage).rglob("*") if path.suffix in kinds]
    expected = {f"papsmear/{path.relative_to(ROOT)}".replace("papsmear/src/", "") for path in source_files}
    assert {"papsmear/page.html", "papsmear/py.typed", "papsmear/tiling/tile.py"} <= expected
    assert {path for path in inside if path.startswith("papsmear/")} == expected
    assert {path.partition("/")[0] for path in inside - expected} == {
        f"papsmear-{_project()['project']['version']}.dist-info"
    }


@pytest.mark.parametrize("source", ["tree", "sdist"])
def test_an_installed_wheel_imports_all_stages_and_finds_its_templates(source: str, wheels: dict[str, Path]) -> None:
    code = f"""
import importlib, pathlib, pkgutil, ssl, sys
sys.path.insert(0, {str(wheels[source])!r})
import papsmear, papsmear.page
assert papsmear.__file__.startswith({str(wheels[source])!r}), papsmear.__file__
for stage in {STAGES}:
    importlib.import_module("papsmear." + stage)
print(papsmear.page.render("page.html"))
ssl.SSLContext
"""
    said = _python("-I", "-c", code, cwd=wheels[source])
    assert said.returncode == 0, said.stderr
    assert "Research use only" in said.stdout


def test_both_scripts_are_ours() -> None:
    scripts = importlib.metadata.entry_points(group="console_scripts")
    for name in ("papsmear", "lightning"):
        assert {entry.value for entry in scripts.select(name=name)} == {"papsmear.cli:main"}
        script = Path(sys.executable).with_name(name)
        said = subprocess.run([script, "--help"], capture_output=True, text=True)
        assert said.returncode == 0
        assert said.stdout.startswith("usage: papsmear")


def test_the_version_stands_in_two_places_and_is_one() -> None:
    from papsmear import __version__

    assert _project()["project"]["version"] == __version__ == importlib.metadata.version("papsmear")


# --- dependencies -----------------------------------------------------------------------------------------------


def _requirements() -> list[Requirement]:
    project = _project()["project"]
    return [Requirement(line) for line in (*project["dependencies"], *project["optional-dependencies"]["dev"])]


def _lock() -> list[Requirement]:
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def _canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_lock_pins_every_dependency_at_a_version_that_fits() -> None:
    pinned: dict[str, list[Requirement]] = {}
    for entry in _lock():
        pinned.setdefault(_canonical(entry.name), []).append(entry)
    for wanted in _requirements():
        entries = pinned.get(_canonical(wanted.name), [])
        assert entries, f"{wanted.name} is not in requirements.lock; run make lock"
        for entry in entries:
            (specifier,) = entry.specifier
            assert specifier.operator == "=="
            assert wanted.specifier.contains(specifier.version, prereleases=True), f"{wanted} but {entry}"


def test_the_lock_holds_no_addresses_or_paths() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    assert not re.search(r"://|^-|^[./]|\s@\s|--\w", text, re.MULTILINE)


def test_no_dependency_takes_the_name_lightning() -> None:
    takers = {"lightning-sdk", "litlogger", "litmodels"}
    assert not takers & {_canonical(entry.name) for entry in (*_lock(), *_requirements())}


# --- layers -----------------------------------------------------------------------------------------------------


def _lint_imports(cwd: Path) -> subprocess.CompletedProcess[str]:
    script = Path(sys.executable).with_name("lint-imports")
    env = {**os.environ, "PYTHONPATH": str(cwd / "src")}
    return subprocess.run([script, "--no-cache"], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)


def test_imports_go_up_the_layers_only() -> None:
    said = _lint_imports(ROOT)
    assert said.returncode == 0, said.stdout[-2000:]


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("tiling/new.py", "import papsmear.mil.metrics"),
        ("ssl/new.py", "from papsmear.probes import knn"),
        ("src/papsmear/files.py", "import papsmear.tiling.reader"),
    ],
)
def test_the_contract_sees_an_import_down_the_layers(module: str, line: str, tmp_path: Path) -> None:
    for name in ("src", *STAGES):
        shutil.copytree(ROOT / name, tmp_path / name, symlinks=True, ignore=shutil.ignore_patterns("*.egg-info"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / module).open("a") as file:
        file.write(f"{line}\n")
    said = _lint_imports(tmp_path)
    assert said.returncode == 1, said.stdout
    assert "BROKEN" in said.stdout


# --- configurations ---------------------------------------------------------------------------------------------


def test_there_are_configurations() -> None:
    names = {str(file.relative_to(ROOT / "configs")) for file in CONFIGS}
    ssl = {f"ssl/{name}.yaml" for name in ("tiny", "vits16", "resnet50")}
    assert ssl | {"tiling.yaml", "embed.yaml", "probes.yaml", "mil.yaml"} <= names


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: str(file.relative_to(ROOT / "configs")))
def test_a_configuration_is_loaded_and_each_of_its_values_is_taken(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    command = COMMAND_OF.get(file.stem, "fit") if file.parent.name == "configs" else "fit"
    with pytest.raises(SystemExit) as stop:
        main([command, "-c", str(file), "--print_config"])
    printed = capsys.readouterr()
    assert stop.value.code == 0, printed.err
    text = file.read_text(encoding="utf-8")
    assert text.startswith("#"), "a configuration opens with what it is for"
    resolved = yaml.safe_load(printed.out)
    for path, value in _leaves(yaml.safe_load(text)):
        taken = resolved
        for key in path:
            taken = taken[key]
        assert taken == value or "${" in str(value), path


def _leaves(tree: Any, path: tuple[str, ...] = ()) -> list[tuple[tuple[str, ...], Any]]:
    if not isinstance(tree, dict):
        return [(path, tree)]
    return [leaf for key, child in tree.items() for leaf in _leaves(child, (*path, str(key)))]


# --- what the documents promise ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_commands_and_files_that_a_document_names_are_there(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"(?s:```.*?```)|`[^`]+`|^ {4}.*$", text, re.MULTILINE))
    for command in re.findall(r"\b(?:papsmear|lightning) ([a-z-]+)\b", code):
        assert command in {*COMMANDS, *TRAINING}, command
    for path in re.findall(r"\b(?:configs|slurm|tests|src|docs)/[\w/.-]*\w\.\w+", code):
        assert (ROOT / path).is_file(), path
    for target in re.findall(r"^\s*(?:\$ )?make ([a-z]+)", code, re.MULTILINE):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE), target
