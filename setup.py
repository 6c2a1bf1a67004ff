"""What pyproject.toml can't say: the folder `static` is packed as `studio/static`. All else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["studio*", "jobs*"]), "studio.static"],
    package_dir={"studio.static": "static"},
)
