"""The manifests of k8s/ as kustomize makes them."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlops_assets_tests.deploy.compose import ROOT

kubectl = pytest.mark.skipif(shutil.which("kubectl") is None, reason="no kubectl, which brings kustomize")


def kustomize(folder: Path) -> list[dict[str, Any]]:
    """The objects of a folder."""
    made = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, timeout=60, check=False
    )
    assert made.returncode == 0, made.stderr
    return [each for each in yaml.safe_load_all(made.stdout) if each]


def with_component(folder: str, component: str, scratch: Path) -> list[dict[str, Any]]:
    """The objects of a folder of k8s/ that takes up a component too; both paths as its kustomization writes them."""
    shutil.copytree(ROOT / "k8s", scratch / "k8s")
    file = scratch / "k8s" / folder / "kustomization.yaml"
    lines = [line for line in file.read_text().splitlines() if not line.startswith("components:")]
    file.write_text("\n".join([*lines, f"components: [{component}]\n"]))
    return kustomize(file.parent)
