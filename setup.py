"""Packaging: the module, its templates beside it, and gen_cert.sh on the PATH."""

import re

from setuptools import setup

REPOSITORY = "https://github.com/sql-machine-learning/playground"

with open("playground.py", encoding="utf-8") as module:
    version = re.findall(r'^__version__ = "(.+)"$', module.read(), re.M)[0]
with open("README.md", encoding="utf-8") as readme:
    # A package index has no files beside the README: its links lead to this version's in the repository.
    description = re.sub(r"\]\((?!https?:|#)", f"]({REPOSITORY}/blob/v{version}/", readme.read())

setup(
    name="sqlflow_playground",
    version=version,
    description="Gives every user of a SQLFlow playground a database in its Kubernetes cluster, "
                "over mutual TLS",
    long_description=description,
    long_description_content_type="text/markdown",
    author="The SQLFlow authors",
    url=REPOSITORY,
    project_urls={"Documentation": f"{REPOSITORY}/tree/v{version}/docs", "Issues": f"{REPOSITORY}/issues",
                  "Changes": f"{REPOSITORY}/blob/v{version}/CHANGELOG.md",
                  "Security": f"{REPOSITORY}/blob/v{version}/SECURITY.md"},
    license="Apache-2.0",
    classifiers=[
        "Development Status :: 5 - Production/Stable",
        "Environment :: No Input/Output (Daemon)",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        *(f"Programming Language :: Python :: 3.{minor}" for minor in range(9, 15)),
        "Topic :: Database",
        "Topic :: Internet :: WWW/HTTP :: HTTP Servers",
        "Topic :: System :: Clustering",
    ],
    python_requires=">=3.9",
    install_requires=["PyYAML"],
    # The two names are the drop-in copy's: `python -m playground` starts it, and playground.py finds the
    # templates in k8s_templates/ beside itself. So both are at the top of site-packages, the folder as a
    # package without modules.
    py_modules=["playground"],
    packages=["k8s_templates"],
    package_data={"k8s_templates": ["*.yaml"]},
    scripts=["gen_cert.sh"],
    entry_points={"console_scripts": ["sqlflow_playground = playground:main"]},
)
