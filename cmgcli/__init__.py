"""cmg: visual inspection that learns what normal looks like from images and their captions.

    import cmgcli
    model = cmgcli.fit("images", "captions.csv")
    for row in model.score(["part.png"]):
        print(row.file, row.score, row.anomalous)

Nothing heavy is imported until one of these names is used.
"""

from importlib import import_module

_HOMES = {"fit": "pipeline", "mask": "pipeline", "Model": "model", "evaluate": "evaluation", "ablate": "evaluation", "CmgError": "errors"}

__all__ = sorted(_HOMES)


def __getattr__(name: str):
    if name in _HOMES:
        return getattr(import_module(f"cmgcli.{_HOMES[name]}"), name)
    raise AttributeError(f"module cmgcli has no attribute {name}")
