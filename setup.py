"""Maps the top-level folders into the one namespace `unipercept`; everything else is in pyproject.toml.

The links `unipercept/pipelines -> ../pipelines` are for the checkout alone: the core is searched without them, so that
each module is found once, under its mapped name, also on machines that check links out as plain files.
"""

from setuptools import find_packages, setup

FOLDERS = ("app", "datasets", "kernels", "pipelines")
LINKS = [pattern for folder in FOLDERS for pattern in (folder, f"{folder}.*")]


def packages_in(folder: str, name: str, exclude: list[str]) -> list[str]:
    """The package `name` that lies in `folder`, and those below it."""
    return [name, *(f"{name}.{below}" for below in find_packages(folder, exclude=exclude))]


places = {"unipercept": "unipercept", **{f"unipercept.{folder}": folder for folder in FOLDERS}}
packages = [
    package
    for name, folder in places.items()
    for package in packages_in(folder, name, LINKS if folder == "unipercept" else [])
]
setup(packages=packages, package_dir=places)
