"""The head that every fit starts from."""

import pytest
import torch

from cmgcli.errors import EncoderError
from cmgcli.head import DefectHead
from cmgcli.pretrained_head import load_head, save_head


def test_a_saved_head_comes_back(tmp_path):
    torch.manual_seed(3)
    head = DefectHead(24)
    save_head(head, tmp_path / "head.safetensors")
    for name, tensor in load_head(24, tmp_path / "head.safetensors").state_dict().items():
        torch.testing.assert_close(tensor, head.state_dict()[name], atol=1e-3, rtol=1e-3)


def test_every_encoder_gets_the_pixel_layers_and_token_layers_at_zero():
    other, own = load_head(24), load_head(192)
    assert other.token_in.in_channels == 24
    assert torch.equal(other.stem[0][0].weight, own.stem[0][0].weight)
    assert not other.token_in.weight.any() and not own.token_in.weight.any()


def test_missing_weights_say_what_to_do(tmp_path):
    with pytest.raises(EncoderError, match="missing or damaged.*install cmgcli again"):
        load_head(192, tmp_path / "none.safetensors")
