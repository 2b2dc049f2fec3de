"""The head that every fit starts from."""

import pytest
import torch

from cmgcli import pretrained_head
from cmgcli.encoder import load_encoder
from cmgcli.errors import EncoderError
from cmgcli.head import DefectHead
from cmgcli.pretrained_head import HEAD, load_head, save_head


def test_a_saved_head_comes_back(monkeypatch, tmp_path):
    encoder = load_encoder("builtin", device="cpu")
    torch.manual_seed(3)
    head = DefectHead(encoder.width)
    save_head(head, tmp_path / HEAD)
    monkeypatch.setattr(pretrained_head, "WEIGHTS", tmp_path)
    for name, tensor in load_head(encoder).state_dict().items():
        torch.testing.assert_close(tensor, head.state_dict()[name], atol=1e-3, rtol=1e-3)


def test_every_encoder_gets_the_pixel_layers_and_token_layers_at_zero(tiny_folder):
    tiny, builtin = load_encoder(f"local-dir:{tiny_folder}", device="cpu"), load_encoder("builtin", device="cpu")
    other, own = load_head(tiny), load_head(builtin)
    assert other.token_in.in_channels == tiny.width
    assert torch.equal(other.stem[0][0].weight, own.stem[0][0].weight)
    assert not other.token_in.weight.any() and not own.token_in.weight.any()


def test_missing_weights_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(pretrained_head, "WEIGHTS", tmp_path)
    with pytest.raises(EncoderError, match="missing or damaged.*install cmgcli again"):
        load_head(load_encoder("builtin", device="cpu"))
