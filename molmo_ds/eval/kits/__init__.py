"""Adapters: molmo_ds as a model inside other people's evaluation kits."""

from typing import Any


def lmms_manifest() -> Any:
    """What lmms-eval's registry of models wants; it is called at every start of lmms-eval, so it imports little."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("molmo_ds", chat_class_path="molmo_ds.eval.kits.lmms.Molmo")
