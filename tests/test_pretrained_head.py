"""The head that every fit starts from."""

import pytest
import torch

from cmgcli.errors import EncoderError
from cmgcli.head import DefectHead
from cmgcli.pretrained_head import load_head, save_head


def test_a_saved_head_comes_back(tmp_path):
    torch.manual_seed(3)
    head = DefectHead()
    save_head(head, tmp_path / "head.safetensors")
    for name, tensor in load_head(tmp_path / "head.safetensors").state_dict().items():
        torch.testing.assert_close(tensor, head.state_dict()[name], atol=1e-3, rtol=1e-3)


def test_the_shipped_head_has_learnt():
    """It finds a dark stroke on a surface that it has never seen; a fresh head does not tell it from the rest."""
    torch.manual_seed(0)
    pixels = 0.3 * torch.randn(1, 3, 96, 96)
    pixels[..., 46:50, 20:70] -= 4
    trained, fresh = (head.eval()(pixels)[0, 0] for head in (load_head(), DefectHead()))
    assert trained[11:13, 6:16].mean() > trained[:8].max() + 1
    assert abs(fresh[11:13, 6:16].mean() - fresh[:8].mean()) < 1


def test_missing_weights_say_what_to_do(tmp_path):
    with pytest.raises(EncoderError, match="missing or damaged.*install cmgcli again"):
        load_head(tmp_path / "none.safetensors")
