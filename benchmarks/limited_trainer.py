"""Run the trainer with a limit on the GPU's memory, given in GiB as the first argument.

    python -m benchmarks.limited_trainer 16 --instance_data_dir DIR --output_dir DIR [flags]

A limit of 0 means no limit. Beyond the limit, allocations fail as on a smaller GPU.
"""

import sys

import torch

from mimicry.tuning.hf_diffusers.train_dreambooth_lora_sd3 import main

if __name__ == "__main__":
    limit_gib = float(sys.argv.pop(1))
    if limit_gib and torch.cuda.is_available():
        total = torch.cuda.mem_get_info()[1]
        torch.cuda.set_per_process_memory_fraction(limit_gib * 2**30 / total)
    sys.exit(main())
