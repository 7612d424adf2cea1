"""Packaging: the module, its templates beside it, and gen_cert.sh on the PATH."""

import re

from setuptools import setup

with open("playground.py", encoding="utf-8") as module:
    version = re.findall(r'^__version__ = "(.+)"$', module.read(), re.M)[0]
with open("README.md", encoding="utf-8") as readme:
    description = readme.read()

setup(
    name="sqlflow_playground",
    version=version,
    description="Gives every user of a SQLFlow playground a database in its Kubernetes cluster, "
                "over mutual TLS",
    long_description=description,
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.9",
    install_requires=["PyYAML"],
    py_modules=["playground"],
    # A package without modules: its files land beside playground.py, where the drop-in copy has them too.
    packages=["k8s_templates"],
    package_data={"k8s_templates": ["*.yaml"]},
    scripts=["gen_cert.sh"],
    entry_points={"console_scripts": ["sqlflow_playground = playground:main"]},
)
