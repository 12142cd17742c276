"""The stages on real models, one file a command: a Hugging Face folder and a data file in, a folder
out that transformers and vLLM load.

    options    preset <- FILE.toml <- --set <- flags, checked; config.toml of a run
    inputs     model, tokenizer, rows, rewards, the memory plan
    stage      a directory, a trainer, safe points, DIR/final
    grpo sft reject distill eval generate     the commands

Everything here is also a few lines of Python (docs/real_models.md); nothing here computes.
"""
