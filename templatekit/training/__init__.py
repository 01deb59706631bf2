"""Training: from tokenized examples to a trained model in a folder. The only room that imports torch.

`run.finetune` is a complete run. `data` reads the data set through the pipeline and `split`s it; `model` loads the
model, which `lora` or `quantization` may change; `run_folder` chooses and locks the folder. `loop.train` then makes
optimizer steps: the `sampler` picks the examples of a step, `micro_batches` cuts them for gradient accumulation, the
`collator` makes tensors, `forward_pass` and `loss` compute the loss of each target token, and `step.train_step`
normalises it over the target tokens of the step, runs the backward pass and lets the `optimizer` change the weights.
The `objective` is supervised or `dpo`; the learning rate comes from `schedule`; `distributed` joins several processes.
Along the way `metrics` writes `metrics.jsonl`, `checkpoint` writes and verifies checkpoints and continues from one,
and `early_stopping` may end the run. At the end `save_model` writes the model, `served_tokenizer` its tokenizer,
`sample_answers` what it answers before and after; `report` shows progress, cost and loss curves.
"""

import os

# On a CPU torch's threads wait for each other by spinning for milliseconds. While another process used the cores, a
# step of SmolLM2 took 4 to 30 s instead of 1. With this spin count it took 2 s, and on an idle machine as long as
# before. The library reads the variable when torch is loaded, so it is set before. The user's setting has priority.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
