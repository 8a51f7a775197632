"""The tasks by name."""

from shards.errors import BadInput, nearest
from vlm.eval.tasks.base import Task
from vlm.eval.tasks.easy_vqa import EASY_VQA
from vlm.eval.tasks.exact import EXACT
from vlm.eval.tasks.gqa import GQA, GQA_RU
from vlm.eval.tasks.llava_bench import LLAVA_BENCH
from vlm.eval.tasks.mmbench import MMBENCH, MMBENCH_RU
from vlm.eval.tasks.pope import POPE, POPE_RU
from vlm.eval.tasks.scienceqa import SCIENCEQA
from vlm.eval.tasks.text import TEXT
from vlm.eval.tasks.vqa import TEXTVQA, VIZWIZ, VQAV2

TASKS = {
    task.name: task
    for task in (
        EXACT,
        GQA,
        GQA_RU,
        TEXTVQA,
        VIZWIZ,
        VQAV2,
        LLAVA_BENCH,
        EASY_VQA,
        MMBENCH,
        MMBENCH_RU,
        POPE,
        POPE_RU,
        SCIENCEQA,
        TEXT,
    )
}


def find_task(name: str) -> Task:
    """The task of that name, or BadInput."""
    if name not in TASKS:
        raise BadInput(f"task {name!r:.100} is unknown{nearest(name, sorted(TASKS))}")
    return TASKS[name]
