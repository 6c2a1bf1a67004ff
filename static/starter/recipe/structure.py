"""The model's start: a Llama in which copying circuits are laid by hand before training. Knows nothing of data.

From an ordinary random start a model of this size does not find copying within the few million tokens that it sees. So layer 0 starts with
one head that looks at the token before and one that looks two back, and layer 1 with two induction heads: "where did the two tokens that I
just saw stand before, and what followed them?" (Olsson et al., In-context Learning and Induction Heads, 2022). Training changes all of it.

Dimensions of the residual stream at the start: a random code per piece, four constants, the codes of the previous two tokens (compressed).
"""

from __future__ import annotations

import math

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from static.starter.recipe.tokenizer import CONTEXT_LENGTH

HIDDEN, LAYERS, HEADS, HEAD_SIZE, INTERMEDIATE = 256, 4, 4, 64, 512  # all multiples of 64, as 4-bit layers on a CPU need
ROPE_THETA = 1_000_000.0
CODE, CONSTANT, PREVIOUS, SECOND = slice(0, 160), slice(160, 164), slice(164, 196), slice(196, 228)
SPACE_BIT = slice(228, 236)
SCALE = 0.05  # of an entry of the embedding
FAST = 6  # rotary pairs that turn fast enough to tell neighbours apart
SLOW = 11  # from this pair on, they hardly turn within a conversation: good for comparing contents


def build_model(vocab_size: int, end_of_turn: int, pad: int) -> LlamaForCausalLM:
    """An untrained model whose matrices outside the circuits are random, and whose output matrices are zero."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        head_dim=HEAD_SIZE,
        intermediate_size=INTERMEDIATE,
        max_position_embeddings=CONTEXT_LENGTH,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=end_of_turn,
        pad_token_id=pad,
        attn_implementation="sdpa",
    )
    model = LlamaForCausalLM(config).float()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embed" not in name:
                is_output = name.endswith(("o_proj.weight", "down_proj.weight"))
                weight.zero_() if is_output else weight.normal_(std=HIDDEN**-0.5)
        compress = torch.randn(32, 160) / math.sqrt(160)
        for distance, target in ((1, PREVIOUS), (2, SECOND)):
            _lay_look_back_head(model.model.layers[0].self_attn, distance - 1, distance, compress, target)
        directions = torch.linalg.qr(torch.randn(160, 128))[0].T
        for head in range(2):
            _lay_induction_head(model.model.layers[1].self_attn, head, compress, directions[64 * head : 64 * head + 64])
    return model


def piece_codes(num_pieces: int) -> torch.Tensor:
    """(num_pieces, HIDDEN): the start of the embedding: a code of fixed length and the constants."""
    table = torch.zeros(num_pieces, HIDDEN)
    codes = torch.randn(num_pieces, 160)
    table[:, CODE] = codes / codes.norm(dim=1, keepdim=True) * math.sqrt(160) * SCALE
    table[:, CONSTANT] = SCALE
    return table


def space_code() -> torch.Tensor:
    """(HIDDEN,): what a leading space adds to a piece's embedding."""
    code = torch.zeros(HIDDEN)
    code[SPACE_BIT] = 2 * SCALE
    return code


def _lay_look_back_head(attention: torch.nn.Module, head: int, distance: int, compress: torch.Tensor, target: slice) -> None:
    """Query and key are constants; the key is turned forward by `distance`, so that the score peaks that many tokens back."""
    rows = _rows(head)
    turns = ROPE_THETA ** (-torch.arange(FAST) / (HEAD_SIZE / 2))
    strength = 9.0 / 5.0  # four constants of about 1.25 after the norm make 9: neighbours then score about 9 less
    query, key, value = (torch.zeros(HEAD_SIZE, HIDDEN) for _ in range(3))
    query[:FAST, CONSTANT] = strength
    key[:FAST, CONSTANT] = strength * torch.cos(turns * distance)[:, None]
    key[32 : 32 + FAST, CONSTANT] = strength * torch.sin(turns * distance)[:, None]
    value[:32, CODE] = compress
    attention.q_proj.weight[rows] = query
    attention.k_proj.weight[rows] = key
    attention.v_proj.weight[rows] = value
    attention.o_proj.weight[target, rows.start : rows.start + 32] = torch.eye(32) * SCALE * 0.8


def _lay_induction_head(attention: torch.nn.Module, head: int, compress: torch.Tensor, directions: torch.Tensor) -> None:
    """Match (this token, the one before) with (the one before, two before) of an earlier place; copy the code found there."""
    rows = _rows(head)
    slots = torch.cat([torch.arange(SLOW, 32), torch.arange(32 + SLOW, 64)])  # 42 of them
    first, second = slots[torch.arange(42) % 3 != 2], slots[torch.arange(42) % 3 == 2]  # 28 and 14
    take_first, take_second = torch.arange(28) + 4 * head, torch.arange(14) + 18 * head
    query, key = torch.zeros(HEAD_SIZE, HIDDEN), torch.zeros(HEAD_SIZE, HIDDEN)
    query[first[:, None], torch.arange(160)[None]] = 2.1 * compress[take_first]
    key[first, PREVIOUS.start + take_first] = 2.1
    query[second, PREVIOUS.start + take_second] = 2.1
    key[second, SECOND.start + take_second] = 2.1
    attention.q_proj.weight[rows] = query
    attention.k_proj.weight[rows] = key
    attention.v_proj.weight[rows] = 0
    attention.v_proj.weight[rows, CODE] = directions
    attention.o_proj.weight[CODE, rows] = directions.T * SCALE * 3.0


def _rows(head: int) -> slice:
    return slice(head * HEAD_SIZE, (head + 1) * HEAD_SIZE)
