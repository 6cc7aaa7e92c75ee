"""SD 1.x and SDXL: loading, conditioning, noise prediction, attention. diffusers is imported on first use."""

from adapter_mu.models.announce import announce_blocks
from adapter_mu.models.attention import (
    check_twice_differentiable,
    prepare_for_first_order,
    prepare_for_meta,
    smallest_inputs,
)
from adapter_mu.models.conditioning import Conditioning, encode_prompts, unconditional
from adapter_mu.models.config import config_folder, load_config, standard_name
from adapter_mu.models.load import BUILT_IN, LoadedModel, load_model
from adapter_mu.models.noise import add_noise, diffusion_loss, predict_noise, row_losses
from adapter_mu.models.parking import encoders_at, on_device, quantized_unet
from adapter_mu.models.parts import check_part, part_files, with_parts
from adapter_mu.models.quantized import is_quantized
from adapter_mu.models.swap import copy_unet, with_unet

__all__ = [
    "BUILT_IN",
    "Conditioning",
    "LoadedModel",
    "add_noise",
    "announce_blocks",
    "check_part",
    "check_twice_differentiable",
    "config_folder",
    "copy_unet",
    "diffusion_loss",
    "encode_prompts",
    "encoders_at",
    "is_quantized",
    "load_config",
    "load_model",
    "on_device",
    "part_files",
    "predict_noise",
    "prepare_for_first_order",
    "prepare_for_meta",
    "quantized_unet",
    "row_losses",
    "smallest_inputs",
    "standard_name",
    "unconditional",
    "with_parts",
    "with_unet",
]
