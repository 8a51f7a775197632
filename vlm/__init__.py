"""The model: configuration, assembly, data plan, training, evaluation, report and merge."""

import logging

# where PEFT finds bitsandbytes, that warns on some CPUs that it has not loaded a faster kernel from the hub
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
