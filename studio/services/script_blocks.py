"""Pieces of the script that studio/services/script_text.py puts together: Python as text."""

from __future__ import annotations

LAST_EVALUATION = '''
class LastEvaluation(TrainerCallback):
    """Evaluate after the last step too."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True
'''
PREPARED = '''
class JobTrainer({bases}):
    """The rows are token ids already."""

    def _prepare_dataset(self, dataset, *args, **kwargs):
        return dataset
'''
DEVICE = '''
def device_and_type():
    """The GPU when there is one; bfloat16 where the hardware computes in it."""
    device = "cuda" if DEVICE != "cpu" and torch.cuda.is_available() else "cpu"
    if DEVICE == "cuda" and device == "cpu":
        raise SystemExit("DEVICE is cuda, and PyTorch finds no GPU that it can use. Install one that knows this GPU, or set DEVICE to cpu.")
    if DEVICE == "auto" and device == "cpu":
        print("Training on the processor: PyTorch finds no GPU that it can use.")
    if DTYPE != "auto":
        return device, getattr(torch, DTYPE)
    if device == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "cuda", torch.bfloat16
        return "cuda", torch.{without_bfloat16}
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    if platform.machine() in ("arm64", "aarch64") or any(getattr(torch.cpu, check, lambda: False)() for check in checks):
        return "cpu", torch.bfloat16
    return "cpu", torch.float32
'''
ROWS = """
def read(part):
    with (HERE / f"{stem}.{{part}}.jsonl").open(encoding="utf-8") as file:
        return Dataset.from_list([json.loads(line) for line in file])
"""
POSITIONS = """
def positions():
    \"\"\"The base's configuration with positions for a longer context; layers that see a window only keep theirs.\"\"\"
    config = AutoConfig.from_pretrained(MODEL)
    text = config.get_text_config()
    by_layer = [one for key, one in text.rope_parameters.items() if isinstance(one, dict) and key not in {windows}]
    for one in by_layer or [text.rope_parameters]:
        one.update({scaling})
    text.max_position_embeddings = {context}
    return config
"""
NEIGHBOURS = """
    def neighbours(batch):
        answers = batch["completion_ids"]
        return {"KL_completion_ids": [answers[-1], *answers[:-1]]}

    return rows.map(neighbours, batched=True, batch_size=OPTIONS["per_device_train_batch_size"])
"""
SCALED = """    if device == "cpu":  # accelerate scales the loss of a training in float16 on GPUs only
        trainer.accelerator.native_amp = True
        trainer.accelerator.scaler = torch.amp.GradScaler("cpu")
"""
DETERMINED = """    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    os.environ.setdefault("FLASH_ATTENTION_DETERMINISTIC", "1")
    torch.use_deterministic_algorithms(True, warn_only=True)
"""
NO_REPACKING = """    for module in model.modules():  # the 4-bit kernel for CPUs repacks weights in place, which an evaluation does not survive
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
"""
MAIN_BODY = """
def main():
{determined}    if THREADS:
        torch.set_num_threads(THREADS)
    device, dtype = device_and_type()
    rows, held_out = read("train"), read("eval")
    evaluates = len(held_out) > 0
    model = {auto_class}.from_pretrained(
        MODEL,
        dtype=dtype,{positions}{quantized}
        attn_implementation={attention},
        device_map={{"": 0 if device == "cuda" else "cpu"}},
    )
{unpacked}{packed}    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    tokenizer.pad_token = {padding}
    trainer = {trainer}(
        model=model,
        args={arguments}(
            output_dir=str(ADAPTER.parent / "{stem}-checkpoints"),
            **OPTIONS,
            bf16=dtype == torch.bfloat16,
            fp16=dtype == torch.float16,
            use_cpu=device == "cpu",
            eval_strategy="steps" if evaluates else "no",
            save_strategy="steps" if TAKE_BEST and evaluates else "no",
            save_total_limit=2,
            load_best_model_at_end=TAKE_BEST and evaluates,
            metric_for_best_model="eval_loss",
            greater_is_better=False,
            dataloader_pin_memory=device == "cuda",
            disable_tqdm=True,
        ),
        train_dataset={rows},
        eval_dataset={held_out} if evaluates else None,
        processing_class=tokenizer,
        peft_config=adapter(model),
        callbacks=[LastEvaluation()],
    )
    if PATIENCE and evaluates:
        trainer.add_callback(EarlyStoppingCallback(early_stopping_patience=PATIENCE))
    batches = math.ceil(len(trainer.train_dataset) / OPTIONS["per_device_train_batch_size"])
    per_epoch = max(math.ceil(batches / OPTIONS["gradient_accumulation_steps"]), 1)
    steps = OPTIONS["max_steps"] if OPTIONS["max_steps"] > 0 else math.ceil(OPTIONS["num_train_epochs"] * per_epoch)
    trainer.args.eval_steps = trainer.args.save_steps = EVAL_STEPS or max(math.ceil(steps / 10), 1)
    for parameter in trainer.model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
{before}{scaled}    done = trainer.train()
    trainer.model.save_pretrained(ADAPTER, save_embedding_layers=False{saving})
    tokenizer.chat_template = (HERE / "{stem}.chat_template.jinja").read_text(encoding="utf-8")
    tokenizer.save_pretrained(ADAPTER)
    print(json.dumps({{"steps": done.global_step, "train_loss": done.training_loss, "seconds": done.metrics["train_runtime"]}}))
"""
MAIN = """
if __name__ == "__main__":
    main()
"""
FASTER = """    kind, values = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    trainer.optimizer = create_loraplus_optimizer(model=trainer.model, optimizer_cls=kind, loraplus_lr_ratio={ratio}, **values)
"""
PISSA = """    start = str(ADAPTER.parent / "pissa-start")  # PiSSA changes the base: what is saved is the difference to the start
    trainer.model.peft_config["default"].init_lora_weights = True
    trainer.model.save_pretrained(start)
    trainer.model.peft_config["default"].init_lora_weights = "pissa"
"""
DEAD_ROWS = """
    found = {made}
    # DoRA divides by the length of each row of weights: layers with a row of zeros are left out
    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, torch.nn.Linear)]
    layers = [(name, layer) for name, layer in layers if layer is not model.get_output_embeddings()]
    dead = [name for name, layer in layers if (dequantize_module_weight(layer).float().norm(dim=1) == 0).any()]
    found.exclude_modules = dead or None
    return found
"""
TARGETS = """
    fused.prepare_peft()
    plain = text_models.without_weights(text_models.config_of(Path(MODEL)))
    found = targets.lora_targets(plain, {wanted}, targets.learning_layers(model))
"""
EVERYTHING = """
    # a trained copy of each layer beside the frozen one
    ends = [model.get_input_embeddings(), model.get_output_embeddings()]
    layers, whole_layers = set(), set()
    for name, module in model.named_modules():
        if any(module is end for end in ends):
            whole_layers.add(name.rpartition(".")[2])
        elif next(module.parameters(recurse=False), None) is not None:
            layers.add(name.rpartition(".")[2])
    return LNTuningConfig(task_type="CAUSAL_LM", target_modules=sorted(layers), modules_to_save=sorted(whole_layers))
"""
BOTTLENECK = """
    names = bottleneck.targets([name for name, _ in model.named_modules()], {mh_adapter})
    return {made}
"""
