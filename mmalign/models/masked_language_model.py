"""Masked language modelling on a dual encoder's text tower: the text-only control of a run with images.

    token_NL, mask_NL -> text tower's trunk -> state_NLF -> the positions to predict -> state_PF
        -> dense -> GELU -> LayerNorm -> decoder (the input embeddings, transposed) + bias -> logits_PV

P: tokens to predict in this rank's batch, V: rows of the trunk's embedding.
"""

from torch import Tensor, nn

from mmalign.models.dual_encoder import DualEncoder


class MaskedLanguageModel(nn.Module):
    """A dual encoder of which only the text tower trains, and BERT's head (arXiv 1810.04805 and its code)."""

    def __init__(self, dual_encoder: DualEncoder) -> None:
        super().__init__()
        for name, parameter in dual_encoder.named_parameters():
            if not name.startswith("text_tower."):
                parameter.requires_grad_(False)
        # Complete, so that a run of either kind starts from and leaves the same weights.
        self.dual_encoder = dual_encoder
        tower = dual_encoder.text_tower
        embedding = tower.trunk.get_input_embeddings()
        rows, width = embedding.weight.shape
        self.dense = nn.Linear(tower.width, width)
        nn.init.normal_(self.dense.weight, std=0.02)  # BERT's
        nn.init.zeros_(self.dense.bias)
        self.norm = nn.LayerNorm(width)
        self.decoder = nn.Linear(width, rows)
        self.decoder.weight = embedding.weight
        nn.init.zeros_(self.decoder.bias)

    def forward(self, token_NL: Tensor, mask_NL: Tensor, predicted_NL: Tensor) -> Tensor:
        """(P, V) logits, float32 or wider, at the P positions where `predicted_NL` (bool) is true."""
        trunk = self.dual_encoder.text_tower.trunk
        state_NLF = trunk(input_ids=token_NL, attention_mask=mask_NL).last_hidden_state
        # Only these positions pass through the decoder, the most expensive part: V is large, and P is about a
        # sixth of the tokens.
        state_PF = nn.functional.gelu(self.dense(state_NLF[predicted_NL]))
        logits_PV = self.decoder(self.norm(state_PF))
        # A softmax over thousands of tokens is too inexact in 16-bit arithmetic.
        return logits_PV if logits_PV.element_size() > 2 else logits_PV.float()
