"""Suggests an option for an unknown one: by spelling, by its last word, or by its name in other libraries."""

from collections.abc import Sequence
from difflib import get_close_matches

# Options, with their names in other training scripts.
_ELSEWHERE = {
    "data.num_lanes": "batch_size bsz per_device_train_batch_size train_batch_size micro_batch_size num_envs",
    "data.eval_num_lanes": "eval_batch_size val_batch_size per_device_eval_batch_size",
    "data.path": "data dataset dataset_name data_dir data_path corpus train_file input_file",
    "data.tokenizer": "tokenizer_name tokenizer_name_or_path tokenizer_path vocab",
    "data.vocabulary_limit": "vocab_size vocabulary_size max_vocab",
    "model.k1": "seq_len seqlen seq_length sequence_length bptt block_size context_length max_length chunk_size",
    "model.clip_norm": "clip clip_grad grad_clip max_grad_norm clip_grad_norm clip_value gradient_clip_val",
    "model.core": "model arch architecture cell rnn_type model_type",
    "model.core.hidden_size": "hidden hidden_dim nhid n_hidden rnn_size d_model dim",
    "model.core.num_layers": "layers nlayers n_layers n_layer depth",
    "model.core.input_size": "embedding_size emsize embed_dim embedding_dim",
    "model.output_dropout": "dropout",
    "model.embedding_dropout": "dropouti",
    "model.vocabulary_dropout": "dropoute",
    "model.core.weight_drop": "wdrop weight_dropout",
    "model.core.dropout": "dropouth",
    "model.tie_weights": "tied tie",
    "model.activation_penalty": "alpha",
    "model.temporal_penalty": "beta",
    "optimizer": "optim optimizer_name",
    "optimizer.lr": "lr learning_rate base_lr",
    "optimizer.weight_decay": "wd wdecay",
    "lr_scheduler": "scheduler schedule lr_scheduler_type lr_schedule",
    "lr_scheduler.warmup_steps": "warmup warmup_iters num_warmup_steps",
    "trainer.max_epochs": "epochs num_epochs n_epochs epoch num_train_epochs max_epoch",
    "trainer.max_steps": "steps num_steps max_iters iterations num_iters total_steps",
    "trainer.devices": "gpus gpu num_gpus n_gpu ngpu num_devices nproc_per_node",
    "trainer.accelerator": "device cuda",
    "trainer.precision": "fp16 bf16 amp dtype half",
    "trainer.log_every_n_steps": "log_interval logging_steps log_every",
    "trainer.val_check_interval": "eval_interval eval_steps eval_every evaluation_strategy",
    "checkpoint.every_n_steps": "save_steps save_interval save_every checkpoint_interval",
    "seed_everything": "seed random_seed manual_seed",
    "runs_dir": "output_dir out_dir output log_dir logdir save_dir logging_dir work_dir results_dir",
    "run_name": "name experiment exp_name experiment_name version",
    "ckpt_path": "resume resume_from resume_from_checkpoint checkpoint ckpt checkpoint_path load restore model_path",
    "init_from": "pretrained finetune weights init_checkpoint",
    "num_tokens": "length max_new_tokens max_tokens num_samples n_tokens num_generate words",
    "top_k": "topk k",
    "top_p": "topp nucleus_p",
    "temperature": "temp t",
    "prompt": "start text input primer seed_text",
}


def similar_option(name: str, options: Sequence[str]) -> str | None:
    """Returns the most likely option for an unknown one, or None.

    Args:
        name: The unknown option, such as `--batch_size` or `data.num_lane`.
        options: All options; those of a class, such as `--optimizer.lr`, need not be among them.
    """
    dashes = "--" if name.startswith("-") else ""
    given = name.lstrip("-").replace("-", "_")
    known = [option.removeprefix("--") for option in options if option.startswith("--")]
    known = [option for option in known if option != given]
    spelt = get_close_matches(given, known, n=1, cutoff=0.85)
    close = get_close_matches(given, known, n=1, cutoff=0.6)
    word = given.rpartition(".")[2]
    ends = [option for option in known if option == word or option.endswith(f".{word}")]
    found = next(iter([*spelt, *named_elsewhere(word, known), *ends, *close]), None)
    return None if found is None else f"{dashes}{found}"


def named_elsewhere(word: str, known: Sequence[str]) -> list[str]:
    """Returns the options with this name in other libraries that are known, or arguments of a known option."""
    return [
        option
        for option, names in _ELSEWHERE.items()
        if word in (*names.split(), option.rpartition(".")[2])
        and (option in known or option.rpartition(".")[0] in known)
    ]
