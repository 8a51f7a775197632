"""The language model's frozen linear layers in 4-bit NF4 with double quantisation, by bitsandbytes.

Equal to what transformers loads with `BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
bnb_4bit_use_double_quant=True, llm_int8_skip_modules=["model.vision_tower", "model.multi_modal_projector", "lm_head"])`
and the dtype as compute dtype. Source: Dettmers et al., "QLoRA" (2023).
"""

from torch import nn
from transformers import LlavaForConditionalGeneration

from shards.extras import require

# a double-quantised weight: half a byte, a byte for each block of 64, a float32 for each 256 blocks
BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)


def require_bitsandbytes(key: str = "adapter.method: qlora") -> None:
    """BadInput, naming the key of the recipe that asks for it, where bitsandbytes is missing."""
    require("bitsandbytes", "gpu", key)


def quantise(model: LlavaForConditionalGeneration) -> LlavaForConditionalGeneration:
    """The same model, its language model's linear layers exchanged in place; computes in the dtype it was loaded in.

    Weights without values (torch's meta device) stay as they are. Raises BadInput where bitsandbytes is missing.
    """
    require_bitsandbytes()
    import bitsandbytes

    language = model.model.language_model
    linear = [(name, layer) for name, layer in language.named_modules() if isinstance(layer, nn.Linear)]
    for name, layer in linear:
        if layer.weight.device.type == "meta":
            continue
        small = bitsandbytes.nn.Linear4bit(
            layer.in_features,
            layer.out_features,
            bias=layer.bias is not None,
            compute_dtype=layer.weight.dtype,
            compress_statistics=True,
            quant_type="nf4",
            device="meta",
        )
        small.weight = bitsandbytes.nn.Params4bit(
            layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=small
        )
        small.bias = layer.bias
        # one evaluation on a CPU with AVX512-BF16 would repack the weights for good: it computes in bfloat16, and no
        # gradient passes them in training afterwards
        small.support_avx512bf16_for_cpu = False
        # bitsandbytes quantises when the weight is moved, also to where it lies
        language.set_submodule(name, small.to(layer.weight.device), strict=True)
    # PEFT asks the model, not the layer
    model.is_loaded_in_4bit = True
    return model
