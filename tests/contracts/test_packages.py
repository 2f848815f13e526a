"""What every package has in common: files, versions, requirements, exports."""

import ast
import importlib
import importlib.metadata
import re
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from repository import PACKAGES, ROOT, import_name, list_files, public_names

# Who may require whom, as in the table of layers.
LAYER_0 = {"mtron-parallel", "mtron-data", "mtron-models", "mtron-optim", "mtron-ckpt"}
SIBLINGS = {
    **{package: set() for package in LAYER_0},
    "mtron-train": LAYER_0,
    "mtron-infer": LAYER_0,
    "mtron-eval": LAYER_0 | {"mtron-infer"},
}
# Needed at run time though the package's own code never names them.
UNNAMED = {"mtron-train": {"tensorboard"}}  # by torch.utils.tensorboard
# Import name -> the distributions that bring it.
DISTRIBUTIONS = importlib.metadata.packages_distributions()


@pytest.fixture(params=PACKAGES)
def package(request):
    return request.param


@pytest.fixture
def project(package):
    """The [project] table of a package."""
    return load_project(package)


def load_project(package):
    text = (ROOT / "packages" / package / "pyproject.toml").read_text("utf-8")
    return tomllib.loads(text)["project"]


def requirements(project):
    """Everything a package requires, its extras included, as {name: specifier}."""
    lists = [project["dependencies"], *project.get("optional-dependencies", {}).values()]
    parsed = [Requirement(text) for one in lists for text in one]
    return {requirement.name: requirement.specifier for requirement in parsed}


def test_every_folder_is_a_known_package():
    folders = {path.parent.name for path in (ROOT / "packages").glob("*/pyproject.toml")}
    assert folders == set(PACKAGES)


def test_files(package):
    folder = ROOT / "packages" / package
    source = folder / "src" / import_name(package)
    for path in (
        folder / "README.md",
        folder / "CHANGELOG.md",
        source / "py.typed",
        source / "__init__.py",
    ):
        assert path.is_file(), path
    assert list((folder / "tests").glob("test_*.py")), "a package without tests"


def test_metadata(package, project):
    assert project["name"] == package
    assert project["license"] == "Apache-2.0"
    supported = SpecifierSet(project["requires-python"])
    assert "3.10" not in supported
    assert all(version in supported for version in ("3.11", "3.12", "3.13", "3.14"))


def test_changelog_begins_with_the_version(package, project):
    changelog = (ROOT / "packages" / package / "CHANGELOG.md").read_text("utf-8")
    versions = re.findall(r"^## \[?(\d+\.\d+\.\d+)", changelog, re.MULTILINE)
    assert versions[:1] == [project["version"]]
    entries = changelog.partition(f"## {versions[0]}")[2] or changelog
    assert re.search(r"^- \S", entries, re.MULTILINE), "the changelog says nothing"


def test_sibling_requirements(package, project):
    """Only lower layers, in ranges that hold the sibling's version and stop at a breaking one."""
    siblings = {name: spec for name, spec in requirements(project).items() if name in PACKAGES}
    assert set(siblings) <= SIBLINGS[package]
    for name, specifier in siblings.items():
        version = load_project(name)["version"]
        assert version in specifier, f"{name}{specifier} does not allow {version}"
        assert {part.operator for part in specifier} == {">=", "<"}, f"{name}{specifier}"


def test_imports_are_declared_and_used(package, project):
    """A package requires the distributions that it imports, and no others."""
    declared = {normalize(name) for name in requirements(project)}
    imported = imported_distributions(package) | UNNAMED.get(package, set())
    assert imported <= declared, f"imported but not required: {sorted(imported - declared)}"
    assert declared <= imported, f"required but not imported: {sorted(declared - imported)}"


def imported_distributions(package):
    """Distributions whose modules the sources of a package import, normalized names."""
    source = ROOT / "packages" / package / "src"
    modules = set()
    for path in list_files(".py"):
        if source not in (ROOT / path).parents:
            continue
        for node in ast.walk(ast.parse((ROOT / path).read_text("utf-8"))):
            if isinstance(node, ast.Import):
                modules |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                modules.add(node.module.partition(".")[0])
    third_party = modules - sys.stdlib_module_names - {import_name(package)}
    return {normalize(DISTRIBUTIONS.get(module, [module])[0]) for module in third_party}


def normalize(name):
    """One spelling for a distribution's name."""
    return name.lower().replace("-", "_")


def test_public_names_resolve(package):
    module = importlib.import_module(import_name(package))
    names = public_names(import_name(package))
    assert names == set(module.__all__), "__all__ must be one literal list"
    missing = [name for name in sorted(names) if not hasattr(module, name)]
    assert not missing


def test_public_names_are_not_modules(package):
    """Importing a submodule sets it as an attribute, which would hide a function of that name."""
    source = ROOT / "packages" / package / "src" / import_name(package)
    modules = {path.stem for path in source.glob("*.py")}
    modules |= {path.parent.name for path in source.glob("*/__init__.py")}
    clashes = public_names(import_name(package)) & modules - {"torch_io"}
    assert not clashes, "rename the module"


def test_public_objects_are_documented(package):
    module = importlib.import_module(import_name(package))
    objects = {name: getattr(module, name) for name in module.__all__}
    bare = [
        name
        for name, value in objects.items()
        if (isinstance(value, type) or callable(value)) and not (value.__doc__ or "").strip()
    ]
    assert not bare


def test_unknown_names_are_refused(package):
    module = importlib.import_module(import_name(package))
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name
