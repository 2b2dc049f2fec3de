"""What the built-in encoder knows: caption retrieval on (part, material) pairs that it was never trained on.

    python -m tests.benchmarks.retrieval
"""

import functools
import importlib.util
from pathlib import Path
from types import ModuleType

import torch

from cmgcli.clip import builtin_tokenizer
from cmgcli.encoder import trained_builtin_model


@functools.cache
def training() -> ModuleType:
    """The module that trains the built-in encoder."""
    path = Path(__file__).parents[2] / "examples" / "builtin_encoder" / "train.py"
    spec = importlib.util.spec_from_file_location("train_builtin", path)
    train = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(train)
    return train


def main() -> None:
    train = training()
    images, _, captions, pairs = (sum((list(chunk[i]) for chunk in map(train.render_chunk, jobs())), []) for i in range(4))
    tokens = builtin_tokenizer()(captions)
    top1 = train.retrieval(trained_builtin_model().eval(), torch.stack([torch.from_numpy(image) for image in images]), tokens, torch.tensor(pairs))
    print(f"caption retrieval among 256, held-out pairs, wording and seeds: top-1 {top1:.3f}")


def jobs() -> list[tuple[int, int, bool]]:
    """Four groups of 256 scenes with seeds that the training's own check does not use."""
    return [(950_000_000 + i, 256, True) for i in range(4)]


if __name__ == "__main__":
    main()
