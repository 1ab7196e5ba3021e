"""Tests presets against published parameter counts, without allocating anything."""

import pytest

from sip.models import decoder
from sip.models.presets import PRESETS, preset
from sip.structs import UserError

PUBLISHED = {
    "llama2_7b": 6_738_415_616,
    "llama3_8b": 8_030_261_248,
    "llama31_8b": 8_030_261_248,
    "llama32_1b": 1_235_814_400,
    "llama32_3b": 3_212_749_824,
    "mistral_7b": 7_241_732_096,
    "qwen25_0b5": 494_032_768,
    "qwen25_1b5": 1_543_714_304,
    "qwen25_7b": 7_615_616_512,
    "qwen3_0b6": 596_049_920,
    "qwen3_1b7": 1_720_574_976,
    "qwen3_4b": 4_022_468_096,
    "qwen3_8b": 8_190_735_360,
    "qwen3_30b_a3b": 30_532_122_624,
    "qwen3_235b_a22b": 235_093_634_560,
    "gpt_oss_20b": 20_914_757_184,
    "gpt_oss_120b": 116_829_156_672,
    "mixtral_8x7b": 46_702_792_704,
    "olmo2_1b": 1_484_916_736,
    "olmo2_7b": 7_298_617_344,
    "olmo3_7b": 7_298_011_136,
    "smollm3_3b": 3_075_098_624,
    "granite33_2b": 2_533_539_840,
    "granite33_8b": 8_170_864_640,
    "phi3_mini": 3_821_079_552,
    "phi4": 14_659_507_200,
    "gemma2_2b": 2_614_341_888,
    "gemma2_9b": 9_241_705_984,
    "gemma2_27b": 27_227_128_320,
    "gemma3_1b": 999_885_952,
    # By hand: embeddings, 24 layers, the last norm.
    "llama_1b4": 2 * 32000 * 2048 + 24 * (4 * 2048**2 + 3 * 2048 * 5632 + 2 * 2048) + 2048,
}


SIZES = [n for n in PRESETS if n.rpartition("_")[0] in ("llama31", "qwen3", "gpt_oss", "gemma2")]


@pytest.mark.parametrize(
    "name", [n if n in SIZES else pytest.param(n, marks=pytest.mark.slow) for n in PRESETS]
)
def test_a_preset_has_as_many_parameters_as_published(name):
    assert decoder.count(preset(name)) == PUBLISHED[name]


def test_a_preset_that_there_is_not_is_named():
    with pytest.raises(UserError, match="llama9.*llama2_7b"):
        preset("llama9")
