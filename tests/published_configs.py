"""The config.json of popular checkpoints, as published, and the parameters of their tensors."""

LLAMA3 = dict(
    factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
    original_max_position_embeddings=8192, rope_type="llama3",
)  # fmt: skip
YARN_OLMO = dict(
    attention_factor=1.2079441541679836, beta_fast=32, beta_slow=1, factor=8.0,
    original_max_position_embeddings=8192, rope_type="yarn",
)  # fmt: skip
NEAR, FULL = "sliding_attention", "full_attention"
# Fields of nearly all files.
COMMON = dict(initializer_range=0.02, torch_dtype="bfloat16", use_cache=True)
LLAMA = dict(
    architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", pretraining_tp=1,
    rms_norm_eps=1e-05, tie_word_embeddings=False, **COMMON,
)  # fmt: skip
MISTRAL = dict(
    architectures=["MistralForCausalLM"], model_type="mistral", attention_dropout=0.0,
    bos_token_id=1, eos_token_id=2, hidden_act="silu", hidden_size=4096, intermediate_size=14336,
    max_position_embeddings=32768, num_attention_heads=32, num_hidden_layers=32,
    num_key_value_heads=8, rms_norm_eps=1e-05, tie_word_embeddings=False, **COMMON,
)  # fmt: skip
QWEN = dict(
    attention_dropout=0.0, bos_token_id=151643, eos_token_id=151645, hidden_act="silu",
    rms_norm_eps=1e-06, rope_theta=1000000.0, tie_word_embeddings=False, use_sliding_window=False,
    **COMMON,
)  # fmt: skip
OLMO = dict(
    attention_bias=False, attention_dropout=0.0, eos_token_id=100257, hidden_act="silu",
    hidden_size=4096, initializer_range=0.02, intermediate_size=11008, num_attention_heads=32,
    num_hidden_layers=32, num_key_value_heads=32, pad_token_id=100277, rms_norm_eps=1e-06,
    rope_theta=500000, tie_word_embeddings=False,
)  # fmt: skip
PHI = dict(
    architectures=["Phi3ForCausalLM"], model_type="phi3", attention_bias=False,
    attention_dropout=0.0, embd_pdrop=0.0, resid_pdrop=0.0, hidden_act="silu", rms_norm_eps=1e-05,
    rope_scaling=None, tie_word_embeddings=False, **COMMON,
)  # fmt: skip
GEMMA2 = dict(
    architectures=["Gemma2ForCausalLM"], model_type="gemma2", attention_bias=False,
    attention_dropout=0.0, attn_logit_softcapping=50.0, bos_token_id=2, eos_token_id=1,
    pad_token_id=0, cache_implementation="hybrid", final_logit_softcapping=30.0, head_dim=256,
    hidden_act="gelu_pytorch_tanh", hidden_activation="gelu_pytorch_tanh",
    max_position_embeddings=8192, query_pre_attn_scalar=256, rms_norm_eps=1e-06,
    rope_theta=10000.0, sliding_window=4096, vocab_size=256000,
    **{**COMMON, "torch_dtype": "float32"},
)  # fmt: skip
GEMMA3 = dict(  # 4B and larger: text and images
    architectures=["Gemma3ForConditionalGeneration"], model_type="gemma3", boi_token_index=255999,
    eoi_token_index=256000, eos_token_id=[1, 106], image_token_index=262144,
    initializer_range=0.02, mm_tokens_per_image=256, torch_dtype="bfloat16",
    transformers_version="4.50.0.dev0",
    vision_config=dict(
        hidden_size=1152, image_size=896, intermediate_size=4304, model_type="siglip_vision_model",
        num_attention_heads=16, num_hidden_layers=27, patch_size=14, vision_use_head=False,
    ),
)  # fmt: skip
GEMMA3_TEXT = dict(
    model_type="gemma3_text", rope_scaling=dict(factor=8.0, rope_type="linear"), sliding_window=1024
)

CONFIGS = {
    "Llama-2-7b-hf": dict(
        LLAMA, bos_token_id=1, eos_token_id=2, hidden_size=4096, intermediate_size=11008,
        max_position_embeddings=4096, num_attention_heads=32, num_hidden_layers=32,
        num_key_value_heads=32, rope_scaling=None, torch_dtype="float16",
        transformers_version="4.31.0.dev0", vocab_size=32000,
        _name_or_path="meta-llama/Llama-2-7b-hf",
    ),
    "Meta-Llama-3-8B": dict(
        LLAMA, attention_bias=False, attention_dropout=0.0, bos_token_id=128000,
        eos_token_id=128001, hidden_size=4096, intermediate_size=14336,
        max_position_embeddings=8192, num_attention_heads=32, num_hidden_layers=32,
        num_key_value_heads=8, rope_scaling=None, rope_theta=500000.0,
        transformers_version="4.40.0.dev0", vocab_size=128256,
    ),
    "Llama-3.1-8B-Instruct": dict(
        LLAMA, attention_bias=False, attention_dropout=0.0, bos_token_id=128000,
        eos_token_id=[128001, 128008, 128009], hidden_size=4096, intermediate_size=14336,
        max_position_embeddings=131072, mlp_bias=False, num_attention_heads=32,
        num_hidden_layers=32, num_key_value_heads=8, rope_scaling=LLAMA3, rope_theta=500000.0,
        transformers_version="4.42.3", vocab_size=128256,
    ),
    "Llama-3.2-1B-Instruct": dict(
        LLAMA, attention_bias=False, attention_dropout=0.0, bos_token_id=128000,
        eos_token_id=[128001, 128008, 128009], head_dim=64, hidden_size=2048,
        intermediate_size=8192, max_position_embeddings=131072, mlp_bias=False,
        num_attention_heads=32, num_hidden_layers=16, num_key_value_heads=8,
        rope_scaling={**LLAMA3, "factor": 32.0}, rope_theta=500000.0, tie_word_embeddings=True,
        transformers_version="4.45.0.dev0", vocab_size=128256,
    ),
    "TinyLlama-1.1B-Chat-v1.0": dict(
        LLAMA, attention_bias=False, bos_token_id=1, eos_token_id=2, hidden_size=2048,
        intermediate_size=5632, max_position_embeddings=2048, num_attention_heads=32,
        num_hidden_layers=22, num_key_value_heads=4, rope_scaling=None, rope_theta=10000.0,
        transformers_version="4.35.0", vocab_size=32000,
    ),
    "SmolLM2-135M": dict(
        LLAMA, attention_bias=False, attention_dropout=0.0, bos_token_id=0, eos_token_id=0,
        hidden_size=576, initializer_range=0.041666666666666664, intermediate_size=1536,
        is_llama_config=True, max_position_embeddings=8192, mlp_bias=False, num_attention_heads=9,
        num_hidden_layers=30, num_key_value_heads=3, rope_interleaved=False, rope_scaling=None,
        rope_theta=100000, tie_word_embeddings=True, transformers_version="4.40.1",
        vocab_size=49152,
    ),
    "Mistral-7B-v0.1": dict(
        MISTRAL, rope_theta=10000.0, sliding_window=4096, transformers_version="4.34.0.dev0",
        vocab_size=32000,
    ),
    "Mistral-7B-v0.3": dict(
        MISTRAL, rope_theta=1000000.0, sliding_window=None, transformers_version="4.42.0.dev0",
        vocab_size=32768,
    ),
    "Mixtral-8x7B-v0.1": dict(
        MISTRAL, architectures=["MixtralForCausalLM"], model_type="mixtral",
        num_experts_per_tok=2, num_local_experts=8, output_router_logits=False,
        rope_theta=1000000.0, router_aux_loss_coef=0.02, sliding_window=None,
        transformers_version="4.36.0.dev0", vocab_size=32000,
    ),
    "Qwen2.5-7B-Instruct": dict(
        QWEN, architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_size=3584,
        intermediate_size=18944, max_position_embeddings=32768, max_window_layers=28,
        num_attention_heads=28, num_hidden_layers=28, num_key_value_heads=4,
        sliding_window=131072, transformers_version="4.43.1", vocab_size=152064,
    ),
    "Qwen3-8B": dict(
        QWEN, architectures=["Qwen3ForCausalLM"], model_type="qwen3", attention_bias=False,
        head_dim=128, hidden_size=4096, intermediate_size=12288, max_position_embeddings=40960,
        max_window_layers=36, num_attention_heads=32, num_hidden_layers=36,
        num_key_value_heads=8, rope_scaling=None, sliding_window=None,
        transformers_version="4.51.0", vocab_size=151936,
    ),
    "Qwen3-30B-A3B": dict(
        QWEN, architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe",
        attention_bias=False, decoder_sparse_step=1, head_dim=128, hidden_size=2048,
        intermediate_size=6144, max_position_embeddings=40960, max_window_layers=48,
        mlp_only_layers=[], moe_intermediate_size=768, norm_topk_prob=True,
        num_attention_heads=32, num_experts=128, num_experts_per_tok=8, num_hidden_layers=48,
        num_key_value_heads=4, output_router_logits=False, rope_scaling=None,
        router_aux_loss_coef=0.001, sliding_window=None, transformers_version="4.51.0",
        vocab_size=151936,
    ),
    "gemma-2-2b": dict(
        GEMMA2, hidden_size=2304, intermediate_size=9216, num_attention_heads=8,
        num_hidden_layers=26, num_key_value_heads=4, transformers_version="4.42.4",
    ),
    "gemma-2-9b": dict(
        GEMMA2, hidden_size=3584, intermediate_size=14336, num_attention_heads=16,
        num_hidden_layers=42, num_key_value_heads=8, sliding_window_size=4096,
        transformers_version="4.42.0.dev0",
    ),
    "gemma-2-27b": dict(
        GEMMA2, head_dim=128, hidden_size=4608, intermediate_size=36864, num_attention_heads=32,
        num_hidden_layers=46, num_key_value_heads=16, query_pre_attn_scalar=144,
        sliding_window_size=4096, transformers_version="4.42.0.dev0",
        _attn_implementation="eager",
    ),
    "gemma-3-1b-it": dict(
        COMMON, architectures=["Gemma3ForCausalLM"], model_type="gemma3_text",
        attention_bias=False, attention_dropout=0.0, attn_logit_softcapping=None, bos_token_id=2,
        cache_implementation="hybrid", eos_token_id=[1, 106], final_logit_softcapping=None,
        head_dim=256, hidden_activation="gelu_pytorch_tanh", hidden_size=1152,
        intermediate_size=6912, max_position_embeddings=32768, num_attention_heads=4,
        num_hidden_layers=26, num_key_value_heads=1, pad_token_id=0, query_pre_attn_scalar=256,
        rms_norm_eps=1e-06, rope_local_base_freq=10000, rope_scaling=None, rope_theta=1000000,
        sliding_window=512, sliding_window_pattern=6, transformers_version="4.50.0.dev0",
        vocab_size=262144,
    ),
    "gemma-3-4b-it": dict(
        GEMMA3, text_config=dict(
            GEMMA3_TEXT, hidden_size=2560, intermediate_size=10240, num_hidden_layers=34,
        ),
    ),
    "gemma-3-12b-it": dict(
        GEMMA3, text_config=dict(
            GEMMA3_TEXT, hidden_size=3840, intermediate_size=15360, num_attention_heads=16,
            num_hidden_layers=48, num_key_value_heads=8,
        ),
    ),
    "gemma-3-27b-it": dict(
        GEMMA3, text_config=dict(
            GEMMA3_TEXT, head_dim=128, hidden_size=5376, intermediate_size=21504,
            num_attention_heads=32, num_hidden_layers=62, num_key_value_heads=16,
            query_pre_attn_scalar=168,
        ),
    ),
    "OLMo-2-1124-7B": dict(
        OLMO, architectures=["Olmo2ForCausalLM"], model_type="olmo2",
        max_position_embeddings=4096, rope_scaling=None, torch_dtype="float32",
        transformers_version="4.47.0.dev0", use_cache=True, vocab_size=100352,
    ),
    "Olmo-3-1025-7B": dict(
        OLMO, architectures=["Olmo3ForCausalLM"], model_type="olmo3", dtype="bfloat16",
        layer_types=[NEAR, NEAR, NEAR, FULL] * 8, max_position_embeddings=65536,
        rope_scaling=YARN_OLMO, sliding_window=4096, transformers_version="4.57.1",
        use_cache=False, vocab_size=100278,
    ),
    "SmolLM3-3B": dict(
        COMMON, architectures=["SmolLM3ForCausalLM"], model_type="smollm3", attention_bias=False,
        attention_dropout=0.0, bos_token_id=None, eos_token_id=128012, hidden_act="silu",
        hidden_size=2048, intermediate_size=11008, layer_types=[FULL] * 36,
        max_position_embeddings=65536, max_window_layers=28, mlp_bias=False,
        no_rope_layer_interval=4, no_rope_layers=[1, 1, 1, 0] * 9, num_attention_heads=16,
        num_hidden_layers=36, num_key_value_heads=4, pad_token_id=128004, pretraining_tp=2,
        rms_norm_eps=1e-06, rope_scaling=None, rope_theta=5000000.0, sliding_window=None,
        tie_word_embeddings=True, transformers_version="4.54.0.dev0", use_sliding_window=False,
        vocab_size=128256,
    ),
    "Phi-3-mini-4k-instruct": dict(
        PHI, _name_or_path="Phi-3-mini-4k-instruct", bos_token_id=1, eos_token_id=32000,
        auto_map=dict(
            AutoConfig="configuration_phi3.Phi3Config",
            AutoModelForCausalLM="modeling_phi3.Phi3ForCausalLM",
        ),
        hidden_size=3072, intermediate_size=8192, max_position_embeddings=4096,
        num_attention_heads=32, num_hidden_layers=32, num_key_value_heads=32,
        original_max_position_embeddings=4096, pad_token_id=32000, rope_theta=10000.0,
        sliding_window=2047, transformers_version="4.40.2", vocab_size=32064,
    ),
    "phi-4": dict(
        PHI, bos_token_id=100257, eos_token_id=100265, hidden_size=5120, intermediate_size=17920,
        max_position_embeddings=16384, num_attention_heads=40, num_hidden_layers=40,
        num_key_value_heads=10, original_max_position_embeddings=16384, pad_token_id=100349,
        rope_theta=250000.0, sliding_window=None, transformers_version="4.47.0",
        vocab_size=100352,
    ),
    "granite-3.3-8b-instruct": dict(
        COMMON, architectures=["GraniteForCausalLM"], model_type="granite", attention_bias=False,
        attention_dropout=0.0, attention_multiplier=0.0078125, bos_token_id=0, eos_token_id=0,
        embedding_multiplier=12.0, hidden_act="silu", hidden_size=4096, intermediate_size=12800,
        logits_scaling=16.0, max_position_embeddings=131072, mlp_bias=False,
        num_attention_heads=32, num_hidden_layers=40, num_key_value_heads=8, pad_token_id=0,
        residual_multiplier=0.22, rms_norm_eps=1e-05, rope_scaling=None, rope_theta=10000000.0,
        tie_word_embeddings=True, transformers_version="4.49.0", vocab_size=49159,
    ),
    "gpt-oss-20b": dict(
        architectures=["GptOssForCausalLM"], model_type="gpt_oss", attention_bias=True,
        attention_dropout=0.0, eos_token_id=200002, experts_per_token=4, head_dim=64,
        hidden_act="silu", hidden_size=2880, initial_context_length=4096, initializer_range=0.02,
        intermediate_size=2880, layer_types=[NEAR, FULL] * 12, max_position_embeddings=131072,
        num_attention_heads=64, num_experts_per_tok=4, num_hidden_layers=24,
        num_key_value_heads=8, num_local_experts=32, output_router_logits=False,
        pad_token_id=199999, quantization_config=dict(
            modules_to_not_convert=[
                "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens",
                "lm_head",
            ],
            quant_method="mxfp4",
        ),
        rms_norm_eps=1e-05, rope_scaling=dict(
            beta_fast=32.0, beta_slow=1.0, factor=32.0, original_max_position_embeddings=4096,
            rope_type="yarn", truncate=False,
        ),
        rope_theta=150000, router_aux_loss_coef=0.9, sliding_window=128, swiglu_limit=7.0,
        tie_word_embeddings=False, transformers_version="4.55.0.dev0", use_cache=True,
        vocab_size=201088,
    ),
}  # fmt: skip

PARAMETERS = {
    "Llama-2-7b-hf": 6_738_415_616,
    "Meta-Llama-3-8B": 8_030_261_248,
    "Llama-3.1-8B-Instruct": 8_030_261_248,
    "Llama-3.2-1B-Instruct": 1_235_814_400,
    "TinyLlama-1.1B-Chat-v1.0": 1_100_048_384,
    "SmolLM2-135M": 134_515_008,
    "Mistral-7B-v0.1": 7_241_732_096,
    "Mistral-7B-v0.3": 7_248_023_552,
    "Mixtral-8x7B-v0.1": 46_702_792_704,
    "Qwen2.5-7B-Instruct": 7_615_616_512,
    "Qwen3-8B": 8_190_735_360,
    "Qwen3-30B-A3B": 30_532_122_624,
    "gemma-2-2b": 2_614_341_888,
    "gemma-2-9b": 9_241_705_984,
    "gemma-2-27b": 27_227_128_320,
    "gemma-3-1b-it": 999_885_952,
    "gemma-3-4b-it": 4_300_079_472,
    "gemma-3-12b-it": 12_187_325_040,
    "gemma-3-27b-it": 27_432_406_640,
    "OLMo-2-1124-7B": 7_298_617_344,
    "Olmo-3-1025-7B": 7_298_011_136,
    "SmolLM3-3B": 3_075_098_624,
    "Phi-3-mini-4k-instruct": 3_821_079_552,
    "phi-4": 14_659_507_200,
    "granite-3.3-8b-instruct": 8_170_864_640,
    "gpt-oss-20b": 20_914_757_184,
}


def images(width: int) -> int:
    """Returns how many of Gemma 3's parameters are for images: its vision tower, the same from 4B
    to 27B, and a projection to the language model's width with its norm."""
    return 416_866_032 + 1152 * width + 1152
